"""Kernels: the roofline with every timing, and the speed-up over M (rows that pass at once)."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from markupsafe import Markup

from quantadvisor.documents import Figure, KernelTiming, NumberClass, Results, Scheme

from . import facts, units
from .svg import (
    Frame,
    Legend,
    Picture,
    Span,
    drawing,
    frame,
    line,
    log_range,
    mark,
    polyline,
    span,
    text,
    twice,
)

SERIES = 8
"""Most lines in one picture; the rest is in its table."""
SHAPES = ("circle", "square", "triangle", "diamond", "down", "cross")
COUNTED = "Bytes counted: stored weights with scales, inputs, outputs; a point above a roof read from the caches."
KINDS = {
    "none": ("s0", "circle", "nothing quantized"),
    "weights": ("s1", "square", "weights only"),
    "activations": ("s2", "triangle", "weights and activations"),
}


def kernel_kind(scheme: Scheme) -> str:
    if scheme.activations is not None:
        return "activations"
    return "none" if scheme.weights is None else "weights"


def intensity(timing: KernelTiming) -> float:
    """Operations per byte: 2·M·N·K over stored weights (scales too), inputs and outputs."""
    wide = 4 if timing.scheme.compute == "fp32" else 2
    weights = timing.scheme.weights
    per_weight = float(wide) if weights is None else weights.bits / 8
    if weights is not None and weights.group_size:
        per_weight += wide / weights.group_size
    moved = timing.n * timing.k * per_weight + timing.m * (timing.k + timing.n) * wide
    return 2.0 * timing.m * timing.n * timing.k / moved


def achieved(timing: KernelTiming) -> float | None:
    """Operations per second, or None where it was not timed."""
    if timing.time_s is None or timing.time_s.median <= 0:
        return None
    return 2.0 * timing.m * timing.n * timing.k / timing.time_s.median


def kernel_name(timing: KernelTiming) -> str:
    """`probe scheme @ runtime + option`, as in the candidates' names."""
    option = f"+{timing.option}" if timing.option else ""
    return f"{timing.scheme.name}@{timing.runtime}{option} ({timing.probe})"


Point = tuple[float, float, KernelTiming]
"""Operations per byte, operations per second achieved, and whose they are."""


def roofline(results: Results) -> Picture | None:
    """Every timed kernel against the device's measured roofs."""
    peaks = results.device.peaks or results.profile.device.peaks
    points = [(intensity(t), rate, t) for t in results.profile.kernels if (rate := achieved(t)) is not None]
    if peaks is None or not points:
        return None
    roofs = {name: fig.median for name, fig in sorted(peaks.flops_per_s.items()) if fig.median > 0}
    read = peaks.read_bytes_per_s.median
    shares = [timing.roofline_share for *_, timing in points if timing.roofline_share is not None]
    half = f"; half of them reach {units.percent(median(shares))} or more of their own roof" if shares else ""
    title, summary = "Roofline: every kernel measured", f"{len(points)} kernel timings{half}."
    wide, narrow = twice(title, summary, lambda w, h, label: _roofline(w, h, label, read, roofs, points))
    table = tuple(
        (
            kernel_name(t), str(t.m), str(t.n), str(t.k), units.digits(ops), units.operations(rate),
            facts.worst_kind([t.time_s]),
        )
        for ops, rate, t in points
    )  # fmt: skip
    used = {kernel_kind(t.scheme) for _, _, t in points}
    legend = tuple(Legend(style, words, shape) for key, (style, shape, words) in KINDS.items() if key in used)
    named = "; ".join(f"{name} {units.operations(value)}" for name, value in roofs.items())
    note = f"Roofs as measured: read {units.bandwidth(read)}; {named}. {COUNTED}"
    head = ("Kernel", "M", "N", "K", "Operations per byte", "Achieved", "Class")
    return Picture("roofline", title, summary, wide, narrow, head, table, legend, note)


def _roofline(width: float, height: float, label: str, read: float, roofs: dict[str, float], points: list[Point]) -> Markup:
    ops = log_range([x for x, _, _ in points], 1.6) or (1.0, 10.0)
    rates = log_range([y for _, y, _ in points] + list(roofs.values()), 1.6) or (1.0, 10.0)
    words = ("operations per byte", "operations per second, achieved")
    plot = frame(width, height, Span(*ops), Span(*rates), words, (units.digits_short, units.digits_short))
    parts = plot.draw(5, 6)
    for name, peak in roofs.items() if read > 0 else ():
        parts += _roof(plot, read, name, peak)
    for x, y, timing in points:
        style, shape, _ = KINDS[kernel_kind(timing.scheme)]
        hint = f"{kernel_name(timing)}, M={timing.m}, N={timing.n}, K={timing.k}: {units.operations(y)}"
        parts.append(mark(plot.x.at(x), plot.y.at(y), shape, f"{style} point", hint, 3.5))
    return drawing(width, height, label, *parts)


def _roof(plot: Frame, read: float, name: str, peak: float) -> list[Markup]:
    """min(peak, read · intensity) inside the plot: the slope, the corner, the flat part."""
    first = max(plot.x.low, plot.y.low / read)
    corners = [first, *([peak / read] if first < peak / read < plot.x.high else []), plot.x.high]
    path = [(plot.x.at(x), plot.y.at(min(peak, read * x))) for x in corners]
    end = path[-1][1]
    return [polyline(path, "roof"), text(plot.x.end - 2, end - 5, f"{name} peak", "tick", "end")]


@dataclass(frozen=True)
class Line:
    """One kernel over M: (M, speed-up over the reference), and the class of the times on both sides."""

    name: str
    points: tuple[tuple[int, float], ...]
    kind: NumberClass


def reference(results: Results) -> str | None:
    """The kernel that speed-ups are relative to: torch without quantization, in the baseline's float type."""
    plain = [t for t in results.profile.kernels if kernel_kind(t.scheme) == "none" and t.time_s is not None]
    today = facts.baseline(results)
    compute = today.scheme.compute if today is not None else "fp32"
    torch = [t for t in plain if t.runtime == "torch"]
    same = [t for t in torch if t.scheme.compute == compute]
    own = [t for t in plain if today is not None and t.runtime == today.runtime]
    return min((kernel_name(t) for t in same or torch or own), default=None)


def kernel_lines(results: Results, against: str) -> list[Line]:
    """Each kernel's speed-up at each M over all linears of the model (lm_head apart), weighted by their counts."""
    counts = {(s.n, s.k): s.count for s in results.profile.inventory.linears if not s.lm_head}
    times: dict[str, dict[int, dict[tuple[int, int], Figure]]] = {}
    for t in results.profile.kernels:
        shape = (t.n, t.k)
        if t.time_s is not None and t.time_s.median > 0 and (shape in counts or not counts):
            times.setdefault(kernel_name(t), {}).setdefault(t.m, {})[shape] = t.time_s
    found = []
    for name, by_m in sorted(times.items()):
        points: list[tuple[int, float]] = []
        used: list[Figure] = []
        for m, own in sorted(by_m.items()):
            base = times[against].get(m, {})
            both = sorted(own.keys() & base.keys())
            if both and name != against:
                old, new = (sum(side[shape].median * counts.get(shape, 1) for shape in both) for side in (base, own))
                used += [side[shape] for shape in both for side in (base, own)]
                points += [(m, old / new)] if old > 0 and new > 0 else []
        if points:
            found.append(Line(name, tuple(points), facts.worst_kind(used)))
    return found


def workload_m(results: Results) -> list[tuple[str, int]]:
    """Rows of the linears' input that the workload implies: one per request in decode, the prompts in prefill."""
    traffic = results.workload.traffic
    return [("decode", traffic.concurrency), ("prefill", traffic.concurrency * traffic.prompt_length)]


def kernel_speed(results: Results) -> Picture | None:
    """Speed-up of every kernel over M, with the workload's M marked."""
    against = reference(results)
    lines = kernel_lines(results, against) if against is not None else []
    if against is None or not lines:
        return None
    fastest = sorted(lines, key=lambda item: -max(y for _, y in item.points))[:SERIES]
    drawn, marked = sorted(fastest, key=lambda item: item.name), workload_m(results)
    left = f" {len(lines) - len(drawn)} more kernels are in the table." if len(drawn) < len(lines) else ""
    title = "Kernel speed-up over M"
    summary = f"Time of all linears on {against} over the time on each kernel, by the rows M that pass at once.{left}"
    wide, narrow = twice(title, summary, lambda w, h, label: _kernel_speed(w, h, label, drawn, marked, True))
    linear = twice(title, summary, lambda w, h, label: _kernel_speed(w, h, label, drawn, marked, False))
    table = tuple((item.name, f"{m:,}", units.times(y), item.kind) for item in lines for m, y in item.points)
    legend = tuple(Legend(f"s{i}", item.name, SHAPES[i % len(SHAPES)], line=True) for i, item in enumerate(drawn))
    where = ", ".join(f"{name} M = {m:,}" for name, m in marked)
    note = f"Dashed: this workload's {where}. Above 1× a kernel is faster than the reference."
    head = ("Kernel", "M", "Speed-up", "Class")
    return Picture("kernel-speed", title, summary, wide, narrow, head, table, legend, note, linear)


def _kernel_speed(width: float, height: float, label: str, lines: list[Line], marked: list[tuple[str, int]], log: bool) -> Markup:
    across = log_range([*(m for item in lines for m, _ in item.points), *(m for _, m in marked)], 1.3) or (1.0, 10.0)
    up = span([y for item in lines for _, y in item.points] + [1.0], 1.25, log)
    words = ("M, rows at once", "speed-up over the reference")
    plot = frame(width, height, Span(*across), up, words, (units.digits_short, units.times_short))
    parts = plot.draw(6 if width > 400 else 4, 6)
    parts.append(line(plot.x.start, plot.y.at(1), plot.x.end, plot.y.at(1), "rule"))
    for name, m in marked:
        x = plot.x.at(m)
        side, anchor = (4, "start") if x < width / 2 else (-4, "end")
        parts.append(line(x, plot.y.start, x, plot.y.end, "limit"))
        parts.append(text(x + side, plot.y.end + 11, name, "tick", anchor))
    for place, item in enumerate(lines):
        points = [(plot.x.at(m), plot.y.at(y)) for m, y in item.points]
        parts.append(polyline(points, f"s{place} path"))
        for (m, y), (px, py) in zip(item.points, points, strict=True):
            hint = f"{item.name}, M={m:,}: {units.times(y)}"
            parts.append(mark(px, py, SHAPES[place % len(SHAPES)], f"s{place} point", hint, 4))
    return drawing(width, height, label, *parts)
