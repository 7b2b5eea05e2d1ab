"""The gates recorded before, drawn: the ratio of each time metric over them with its interval, and the same as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from quantadvisor.documents import Gate, GateMetric

from . import svg, units

MOST = 100
"""The latest so many gates are drawn."""
SHAPES = {"pass": "circle", "regression": "cross", "anomalous": "triangle", "inconclusive": "diamond"}
CSS = """
svg { max-width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg .tick, svg .axis { fill: var(--soft); font-size: 11.5px; } svg .grid, svg .rule { stroke: var(--rule); }
svg .limit { stroke: var(--bad); stroke-dasharray: 5 4; } svg .one { stroke: var(--soft); }
svg .pass { fill: var(--good); stroke: var(--good); } svg .regression { fill: var(--bad); stroke: var(--bad); }
svg .anomalous, svg .inconclusive { fill: var(--warn); stroke: var(--warn); }
h2 { font: 400 1.3rem/1.3 Georgia, serif; margin: 2rem 0 .3rem; } .narrow { display: none; }
@media (max-width: 44rem) { .wide { display: none; } .narrow { display: block; } }
"""


class Point(NamedTuple):
    gate: Gate
    metric: GateMetric


def section(gate: Gate, history: Sequence[Gate]) -> Markup:
    """Headed pictures of what this gate timed, over the recorded gates of the same workload and device; empty for one."""
    alike = [one for one in history if (one.workload, one.device, one.mode) == (gate.workload, gate.device, gate.mode)][-MOST:]
    if len(alike) < 2:
        return Markup("")
    parts = [Markup("<h2>Recorded gates</h2>\n"), paragraph(f"{len(alike)} of this workload on this device; oldest first")]
    series = {key(gate, m): points(gate, m, alike) for m in gate.metrics if m.kind == "time" and m.decides}
    for name, found in series.items():
        if len(found) >= 2:
            parts += [figure(name, found, width, style, gate.threshold) for width, style in widths()]
    return Markup("").join([*parts, table(series)])


def widths() -> tuple[tuple[int, str], ...]:
    return (svg.WIDE, "wide"), (svg.NARROW, "narrow")


def paragraph(words: str) -> Markup:
    return Markup('<p class="soft">{}</p>\n').format(words)


def key(gate: Gate, metric: GateMetric) -> str:
    """In live gates the candidate is a path, which may change from one to the next."""
    return metric.name if gate.mode == "live" else f"{metric.of} {metric.name}"


def points(gate: Gate, metric: GateMetric, alike: Sequence[Gate]) -> list[Point]:
    wanted = key(gate, metric)
    return [Point(one, m) for one in alike for m in one.metrics if m.ratio is not None and key(one, m) == wanted]


def figure(name: str, found: Sequence[Point], width: int, style: str, threshold: float) -> Markup:
    """One drawing: a mark for each gate, its interval as a line, 1 and the threshold across."""
    height = 220
    known = [edge for p in found for edge in (p.metric.ratio, p.metric.low, p.metric.high) if edge is not None]
    low, high = min([*known, 1 - threshold]), max([*known, 1 + 2 * threshold])
    margin = 0.05 * (high - low)
    x, y = svg.Span(0.5, len(found) + 0.5, log=False), svg.Span(low - margin, high + margin, log=False)
    frame = svg.frame(width, height, x, y, ("gate", f"{name}: now / baseline"), (whole, ratio))
    across = (frame.x.start, frame.x.end)
    parts = frame.draw(min(10, len(found)), 5)
    parts += [svg.line(across[0], frame.y.at(at), across[1], frame.y.at(at), of) for at, of in limits(threshold)]
    for place, point in enumerate(found, start=1):
        at, metric = frame.x.at(place), point.metric
        ends = [frame.y.at(edge if edge is not None else metric.ratio or 1.0) for edge in (metric.low, metric.high)]
        parts.append(svg.line(at, ends[0], at, ends[1], metric.state))
        shown = f"{point.gate.created_at}: {said(metric)}, {metric.state}"
        parts.append(svg.mark(at, frame.y.at(metric.ratio or 1.0), SHAPES[metric.state], metric.state, shown))
    summary = f"{name} of {len(found)} gates, latest {said(found[-1].metric)}, {found[-1].metric.state}"
    return Markup('<div class="{}">{}</div>\n').format(style, svg.drawing(width, height, summary, *parts))


def limits(threshold: float) -> tuple[tuple[float, str], ...]:
    return (1.0, "one"), (1 + threshold, "limit")


def table(series: dict[str, list[Point]]) -> Markup:
    """When, what and how each gate decided; ratios with their intervals."""
    gates = list(dict.fromkeys(p.gate.created_at + p.gate.candidate for found in series.values() for p in found))
    rows: dict[str, dict[str, Point]] = {gate: {} for gate in gates}
    for name, found in series.items():
        for point in found:
            rows[point.gate.created_at + point.gate.candidate][name] = point
    heads = ["when", "candidate", "decision", *series]
    lines = []
    for row in rows.values():
        gate = next(iter(row.values())).gate
        ratios = [said(row[name].metric) if name in row else units.ABSENT for name in series]
        lines.append(
            Markup("").join(Markup("<td>{}</td>").format(cell) for cell in (gate.created_at, gate.candidate, gate.state, *ratios))
        )
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in heads)
    body = Markup("").join(Markup("<tr>{}</tr>\n").format(line) for line in lines)
    return Markup(
        '<div class="table" tabindex="0" role="region" aria-label="Recorded gates">\n'
        "<table>\n<thead><tr>{}</tr></thead>\n<tbody>\n{}</tbody>\n</table>\n</div>\n"
    ).format(head, body)


def said(metric: GateMetric) -> str:
    return interval(metric.ratio, metric.low, metric.high)


def interval(ratio: float | None, low: float | None, high: float | None) -> str:
    """`1.031 [1.012, 1.049]`; a side that is not known yet is a question mark."""
    if ratio is None:
        return units.ABSENT
    sides = ["?" if side is None else f"{side:.3f}" for side in (low, high)]
    return f"{ratio:.3f}" if sides == ["?", "?"] else f"{ratio:.3f} [{', '.join(sides)}]"


def whole(value: float) -> str:
    return f"{value:.0f}" if value == round(value) else ""


def ratio(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")
