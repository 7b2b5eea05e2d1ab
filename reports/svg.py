"""Drawing: SVG elements as escaped markup, axes, and the Picture that a chart function returns.

Colours are classes of the page's style sheet, so that one picture serves light, dark and print. Nothing carries a
`style` attribute: the page's Content-Security-Policy forbids it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDE, NARROW = 640, 336
"""Widths of the two drawings of each picture, in px: for a desk and for a phone."""
CHARACTER = 7.2
"""Mean width of a character of the pictures' 12 px text, px."""


Write = Callable[[float], str]
"""How a tick is written."""


@dataclass(frozen=True)
class Legend:
    """One entry below a picture: the class that colours it, and how its mark looks."""

    style: str
    label: str
    mark: str = "square"
    line: bool = False


@dataclass(frozen=True)
class Picture:
    """A drawing in two widths, its text alternative, and its numbers as a table."""

    key: str
    title: str
    summary: str
    wide: Markup
    narrow: Markup
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    legend: tuple[Legend, ...] = ()
    note: str = ""
    linear: tuple[Markup, Markup] | None = None
    """The same in both widths on a linear scale, where both scales help."""


def tag(name: str, *children: str | Markup, **attributes: object) -> Markup:
    """One element; attribute names lose a trailing `_` and write `-` for `_`; floats get one decimal.

    Joined as plain strings, each escaped once: `Markup.format` took nine tenths of a page.
    """
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{value:.1f}"'
        if isinstance(value, float)
        else f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{shown}>{''.join(map(escape, children))}</{name}>")


def text(x: float, y: float, words: str, style: str = "", anchor: str = "start", room: float | None = None) -> Markup:
    """Text at a baseline, cut to `room` px with an ellipsis (the whole words stay as its tooltip)."""
    shown = fit(words, room) if room is not None else words
    hint = (tag("title", words),) if shown != words else ()
    return tag("text", shown, *hint, x=float(x), y=float(y), class_=style or None, text_anchor=anchor)


def fit(words: str, room: float) -> str:
    keep = max(1, int(room / CHARACTER))
    return words if len(words) <= keep else words[: keep - 1] + "…"


def rect(x: float, y: float, width: float, height: float, style: str, hint: str = "") -> Markup:
    children = (tag("title", hint),) if hint else ()
    sides = {"x": float(x), "y": float(y), "width": float(max(0.0, width)), "height": float(height)}
    return tag("rect", *children, class_=style, **sides)


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return tag("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=style)


def polyline(points: Iterable[tuple[float, float]], style: str) -> Markup:
    return tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=style)


def mark(x: float, y: float, shape: str, style: str, hint: str = "", radius: float = 4.5) -> Markup:
    """A data point: `circle`, `square`, `triangle`, `diamond` or `cross`."""
    children = (tag("title", hint),) if hint else ()
    if shape == "circle":
        return tag("circle", *children, cx=float(x), cy=float(y), r=float(radius), class_=style)
    corners = {
        "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        "triangle": ((0.0, -1.2), (1.1, 0.8), (-1.1, 0.8)),
        "diamond": ((0.0, -1.25), (1.25, 0.0), (0.0, 1.25), (-1.25, 0.0)),
        "down": ((0.0, 1.2), (1.1, -0.8), (-1.1, -0.8)),
        "cross": (
            (-1.2, -0.4), (-0.4, -0.4), (-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4),
            (1.2, 0.4), (0.4, 0.4), (0.4, 1.2), (-0.4, 1.2), (-0.4, 0.4), (-1.2, 0.4),
        ),
    }[shape]  # fmt: skip
    path = " ".join(f"{x + dx * radius:.1f},{y + dy * radius:.1f}" for dx, dy in corners)
    return tag("polygon", *children, points=path, class_=style)


def drawing(width: float, height: float, label: str, *parts: Markup) -> Markup:
    """The svg element; `label` is its text alternative."""
    box = f"0 0 {width:.0f} {height:.0f}"
    size = {"width": f"{width:.0f}", "height": f"{height:.0f}"}
    return tag("svg", *parts, viewBox=box, role="img", aria_label=label, focusable="false", **size)


@dataclass(frozen=True)
class Axis:
    """Maps values to px. `log`: decimal logarithm; values at or below 0 stick to the low end there."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        if self.log:
            low, high = math.log10(self.low), math.log10(self.high)
            value = math.log10(max(value, self.low))
        else:
            low, high = self.low, self.high
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Round values inside the axis, at most about that many."""
        return _log_ticks(self.low, self.high, most) if self.log else _linear_ticks(self.low, self.high, most)


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    if not high > low:
        return [low]
    rough = (high - low) / max(1, most)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * unit for unit in (1, 2, 5, 10) if power * unit >= rough)
    first = math.ceil(low / step - 1e-9)
    return [step * place for place in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for units in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [unit * 10.0**power for power in range(first, last + 1) for unit in units]
        inside = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(inside) <= most:
            return inside if len(inside) > 2 else _linear_ticks(low, high, most)
    stride = math.ceil(len(inside) / most)
    return inside[::stride]


def log_range(values: Iterable[float], margin: float = 1.25) -> tuple[float, float] | None:
    """Bounds around the positive values, widened by `margin`; None where there are none."""
    found = [value for value in values if value > 0 and math.isfinite(value)]
    return (min(found) / margin, max(found) * margin) if found else None


@dataclass(frozen=True)
class Frame:
    """A plot area with its two axes and how their ticks are written."""

    x: Axis
    y: Axis
    x_label: str
    y_label: str
    x_unit: Write
    y_unit: Write

    def draw(self, x_ticks: int = 6, y_ticks: int = 6) -> list[Markup]:
        """Grid, tick labels and axis names."""
        left, right, bottom, top = self.x.start, self.x.end, self.y.start, self.y.end
        parts = [text(0, 12, self.y_label, "axis", room=right)]
        for value in self.y.ticks(y_ticks):
            parts.append(line(left, self.y.at(value), right, self.y.at(value), "grid"))
            parts.append(text(left - 6, self.y.at(value) + 4, self.y_unit(value), "tick", "end"))
        for value in self.x.ticks(x_ticks):
            parts.append(line(self.x.at(value), bottom, self.x.at(value), top, "grid"))
            parts.append(text(self.x.at(value), bottom + 16, self.x_unit(value), "tick", "middle"))
        parts.append(line(left, bottom, right, bottom, "rule"))
        parts.append(text(right, bottom + 33, self.x_label, "axis", "end"))
        return parts


@dataclass(frozen=True)
class Span:
    """Bounds of one axis and whether it is logarithmic."""

    low: float
    high: float
    log: bool = True


def span(values: Iterable[float], margin: float, log: bool) -> Span:
    """Bounds around the values: by the factor `margin` on a logarithmic axis, from zero on a linear one."""
    found = list(values)
    if log:
        low, high = log_range(found, margin) or (0.5, 2.0)
        return Span(low, high)
    return Span(0.0, 1.05 * max(found, default=0.0) or 1.0, False)


def frame(width: float, height: float, x: Span, y: Span, labels: tuple[str, str], unit: tuple[Write, Write]) -> Frame:
    """The plot area inside a drawing: 52 px left for ticks, 40 px below, 24 px above; `labels`, `unit`: of x and y."""
    across = Axis(x.low, x.high, 52, width - 8, x.log)
    return Frame(across, Axis(y.low, y.high, height - 40, 24, y.log), *labels, *unit)


def twice(title: str, summary: str, draw: Callable[[float, float, str], Markup]) -> tuple[Markup, Markup]:
    """The wide and the narrow drawing of one plot; `draw` takes width, height and text alternative."""
    label = f"{title}. {summary}"
    return draw(WIDE, 370, label), draw(NARROW, 330, label)


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        return self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom


def place_labels(marks: list[tuple[float, float, str]], width: float, height: float, taken: Iterable[Box] = ()) -> list[Markup]:
    """Labels beside their marks, in order of importance, each where it meets no mark and no other label, or dropped."""
    used = [Box(x - 5, y - 5, x + 5, y + 5) for x, y, _ in marks] + list(taken)
    parts = []
    for x, y, words in marks:
        long = len(words) * CHARACTER
        for left, base in ((x + 8, y + 4), (x - 8 - long, y + 4), (x - long / 2, y - 9), (x - long / 2, y + 18)):
            box = Box(left, base - 10, left + long, base + 3)
            inside = box.left >= 0 and box.right <= width and box.top >= 0 and box.bottom <= height
            if words and inside and not any(box.meets(other) for other in used):
                used.append(box)
                parts.append(text(left, base, words, "label"))
                break
    return parts
