"""Candidates and layers as points: quality against speed, predicted against measured, activation outliers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from markupsafe import Markup

from quantadvisor.documents import LayerActivations, NumberClass, Results

from . import facts, units, wording
from .svg import (
    NARROW,
    WIDE,
    Axis,
    Box,
    Frame,
    Legend,
    Picture,
    Span,
    drawing,
    frame,
    line,
    log_range,
    mark,
    place_labels,
    polyline,
    rect,
    span,
    text,
    twice,
)  # fmt: skip

KL_FLOOR = 1e-5
"""Nats per token; smaller divergences are drawn here."""


STANDINGS = {
    "advised": ("p-advised", "diamond"),
    "tied": ("p-tied", "square"),
    "baseline": ("p-baseline", "triangle"),
    "feasible": ("p-feasible", "circle"),
    "excluded": ("p-excluded", "cross"),
}


def _standing(results: Results, name: str, barred: bool) -> str:
    if name == results.verdict.choice:
        return "advised"
    if name == results.profile.baseline:
        return "baseline"
    if name in results.verdict.tied_with:
        return "tied"
    return "excluded" if barred else "feasible"


@dataclass(frozen=True)
class Spot:
    """One candidate: request speed over the baseline and its interval, mean KL in nats per token (floored), top-1 agreement,
    name, standing."""

    speed: float
    low: float
    high: float
    kl: float
    top1: float
    name: str
    standing: str
    inside: bool
    """Is it within all that the workload constrains, by the run's own judgement?"""
    kind: NumberClass


def front(spots: Sequence[Spot]) -> list[Spot]:
    """The Pareto front: those that no other one beats in speed or KL without losing in the other; slowest first."""
    found: list[Spot] = []
    for spot in sorted(spots, key=lambda spot: (-spot.speed, spot.kl, spot.name)):
        if not found or spot.kl < found[-1].kl:
            found.append(spot)
    return found[::-1]


def _spots(results: Results) -> list[Spot]:
    """Every candidate whose speed and quality were measured, by standing."""
    spots = []
    for c in results.candidates:
        speed, base = facts.speed_effect(results, c), facts.request_s(results, facts.baseline(results))
        if c.quality is None or speed is None or base is None:
            continue
        ends = facts.request_bounds(results, c)
        low, high = (facts.over(base, ends[1]) or speed, facts.over(base, ends[0]) or speed) if ends else (speed, speed)
        inside, kl, top1 = c.excluded is None, max(KL_FLOOR, c.quality.kl.mean), c.quality.top1.mean
        standing = _standing(results, c.name, not inside)
        spots.append(Spot(speed, low, high, kl, top1, c.name, standing, inside, facts.speed_kind(results, c)))
    first = list(STANDINGS)
    return sorted(spots, key=lambda spot: (first.index(spot.standing), spot.name))


def quality_speed(results: Results) -> Picture | None:
    """Candidates: KL divergence against the speed of a request over the baseline; front, ties and the budget: a line where it
    is on KL, in words whatever it is on."""
    spots = _spots(results)
    if not spots:
        return None
    best = front(spots)
    inside = sum(spot.inside for spot in spots)
    fastest = max(spots, key=lambda spot: (spot.speed, spot.name))
    title = "Quality against speed"
    summary = f"{inside} of {len(spots)} measured candidates are inside all constraints, {len(best)} are on the Pareto front; "
    summary += f"the fastest of all is {fastest.name} at {units.times(fastest.speed)}."
    table = tuple(
        (
            spot.name, units.times(spot.speed), units.bounds(spot.low, spot.high, units.times),
            "≤ 0.00001" if spot.kl <= KL_FLOOR else units.nats(spot.kl), units.percent(spot.top1, 1), spot.standing,
            "yes" if spot in best else "no", spot.kind,
        )
        for spot in sorted(spots, key=lambda spot: (-spot.speed, spot.name))
    )  # fmt: skip
    used = {spot.standing for spot in spots}
    legend = [Legend(style, name, shape) for name, (style, shape) in STANDINGS.items() if name in used]
    legend += [Legend("front", "Pareto front", "none", line=True)]
    note = "Right is faster, low is closer to the fp32 model. Divergences below 0.00001 are drawn at 0.00001; the whiskers of "
    note += "the advice and its ties are the intervals of their request time. "
    note += f"Quality budget: {'; '.join(wording.quality_budget(results.workload)) or 'none'}."
    head = ("Candidate", "Request speed", "Interval", "KL divergence", "Top-1 agreement", "Standing", "On the front", "Class")
    draw = partial(_quality, spots=spots, budget=results.workload.quality.kl_mean_max)
    drawn = [twice(title, summary, partial(draw, log=log)) for log in (True, False)]
    return Picture("quality-speed", title, summary, *drawn[0], head, table, tuple(legend), note, drawn[1])


def _quality(width: float, height: float, label: str, *, spots: list[Spot], budget: float | None, log: bool) -> Markup:
    speeds = span([spot.speed for spot in spots] + [1.0], 1.2, log)
    kls = span([spot.kl for spot in spots] + ([budget] if budget else []), 2, log)
    words = ("request speed over the baseline", "mean KL divergence, nats per token")
    plot = frame(width, height, speeds, kls, words, (units.times_short, units.plain))
    parts, taken = plot.draw(6 if width > 400 else 4, 6), []
    if budget is not None:
        y = plot.y.at(budget)
        parts.append(line(plot.x.start, y, plot.x.end, y, "limit"))
        parts.append(text(plot.x.start + 4, y - 5, f"budget {units.plain(budget)}", "tick"))
        taken = [Box(plot.x.start, y - 17, plot.x.start + 90, y + 2), Box(plot.x.start, y - 1, plot.x.end, y + 1)]
    parts.append(_front(plot, spots))
    named, drawn = [], []
    for spot in spots:
        style, shape = STANDINGS[spot.standing]
        hint = f"{spot.name}: {units.times(spot.speed)}, KL {units.nats(spot.kl)} ({spot.standing})"
        x, y = plot.x.at(spot.speed), plot.y.at(spot.kl)
        if spot.standing in ("advised", "tied"):
            drawn.append(line(plot.x.at(spot.low), y, plot.x.at(spot.high), y, f"{style} whisker"))
        drawn.append(mark(x, y, shape, f"{style} point", hint, 5.5))
        short = spot.standing if spot.standing in ("advised", "baseline") else ""
        named.append((x, y, spot.name if width > 400 else short))
    return drawing(width, height, label, *parts, *reversed(drawn), *place_labels(named, width, plot.y.start, taken))


def _front(plot: Frame, spots: list[Spot]) -> Markup:
    """Steps: at a speed, the least divergence that is to be had at that speed or above it."""
    best = front(spots)
    path = [(plot.x.start, plot.y.at(best[0].kl))]
    for spot, following in zip(best, [*best[1:], None], strict=True):
        x, y = plot.x.at(spot.speed), plot.y.at(spot.kl)
        path += [(x, y)] + ([(x, plot.y.at(following.kl))] if following else [(x, plot.y.end)])
    return polyline(path, "front")


LEDGER_HEAD = ("Candidate", "Quantity", "Predicted", "Measured", "Ratio", "Rests on")


def ledger_rows(results: Results) -> list[tuple[str, str, str, str, str, str]]:
    """Predicted against measured: candidate, quantity, predicted, measured, ratio, what it rests on."""
    unit = {
        "ttft_s": units.duration, "tpot_s": units.duration, "peak_bytes": units.size, "max_concurrency": units.whole,
    }  # fmt: skip
    return [
        (
            row.candidate, facts.QUANTITIES[row.quantity], unit[row.quantity](row.predicted),
            unit[row.quantity](row.measured), units.times(row.ratio), row.basis,
        )
        for row in results.ledger
    ]  # fmt: skip


Group = tuple[str, list[tuple[float, str]]]
"""A row of the picture: its label, and (ratio, candidate) of its predictions."""


def prediction(results: Results) -> Picture | None:
    """Predicted over measured, one row per quantity and runtime; the band is ±15 %."""
    groups: list[Group] = []
    for quantity, name in facts.QUANTITIES.items():
        rows = [row for row in results.ledger if row.quantity == quantity and row.ratio > 0]
        for runtime in sorted({facts.runtime_of(row.candidate) for row in rows}):
            own = [(row.ratio, row.candidate) for row in rows if facts.runtime_of(row.candidate) == runtime]
            groups.append((f"{name} · {runtime}", sorted(own)))
    if not groups:
        return None
    error, title = facts.time_error(results), "Predicted against measured"
    summary = f"{len(results.ledger)} predictions, each written before its artifact was first run"
    summary += f"; TTFT and TPOT are off by {units.percent(error[0], 1)} in the median." if error else "."
    wide, narrow = (_prediction(width, f"{title}. {summary}", groups) for width in (WIDE, NARROW))
    legend = (Legend("s0", "one candidate", "circle"), Legend("band", "within 15 %"))
    note = "Logarithmic. Right of 1× the prediction was too high (too slow, too large), left of it too low."
    return Picture("prediction", title, summary, wide, narrow, LEDGER_HEAD, tuple(ledger_rows(results)), legend, note)


def _prediction(width: float, label: str, groups: list[Group]) -> Markup:
    ratios = [ratio for _, members in groups for ratio, _ in members]
    across, wide = log_range([*ratios, 0.8, 1.25], 1.06) or (0.5, 2.0), width > 400
    left, step = (200.0, 28.0) if wide else (8.0, 42.0)
    axis = Axis(*across, left, width - 10, log=True)
    bottom = 8 + step * len(groups)
    parts = [rect(axis.at(1 / 1.15), 4, axis.at(1.15) - axis.at(1 / 1.15), bottom - 4, "band")]
    for value in axis.ticks(6 if wide else 4):
        parts.append(line(axis.at(value), 4, axis.at(value), bottom, "grid"))
        parts.append(text(axis.at(value), bottom + 16, units.times_short(value), "tick", "middle"))
    parts.append(line(axis.at(1), 4, axis.at(1), bottom, "rule"))
    for place, (name, members) in enumerate(groups):
        y = 4 + step * (place + 1) - (10 if wide else 8)
        parts.append(text(0, y + 4 if wide else y - 12, name, "label", room=left - 12 if wide else width))
        for ratio, candidate in members:
            parts.append(mark(axis.at(ratio), y, "circle", "s0 point", f"{candidate}: {units.times(ratio)}", 4))
    return drawing(width, bottom + 22, label, *parts)


def layer_of(name: str, place: int) -> int:
    """Layer number in a module's name; its place where there is none."""
    found = re.search(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d{1,6})(?:\.|$)", name)
    return int(found.group(1)) if found else place


def outliers(results: Results) -> Picture | None:
    """Largest magnitude at each linear's input by layer, against the threshold of LLM.int8()."""
    stats = results.profile.activations
    if stats is None or not any(item.absmax > 0 for item in stats.layers):
        return None
    points = [(layer_of(item.name, place), item) for place, item in enumerate(stats.layers) if item.absmax > 0]
    worst = max(points, key=lambda point: (point[1].absmax, point[1].name))[1]
    title = "Activation outliers by layer"
    summary = f"{units.percent(stats.outlier_layers_share)} of the linears see a magnitude of "
    summary += f"{stats.outlier_threshold:g} or more; the largest is {units.digits(worst.absmax)} at {worst.name}."
    wide, narrow = twice(title, summary, lambda w, h, label: _outliers(w, h - 60, label, points, stats.outlier_threshold, worst))
    legend = (Legend("s0", "input of one linear", "circle"),)
    note = f"Over {stats.tokens:,} tokens. Criterion of LLM.int8(), arXiv:2208.07339. Errors are relative squared ones."
    table = tuple(_activation_row(item) for item in stats.layers)
    return Picture("outliers", title, summary, wide, narrow, ACTIVATION_HEAD, table, legend, note)


ACTIVATION_HEAD = (
    "Linear",
    "Largest magnitude",
    "Median channel",
    "Outlier channels",
    "Tokens with outliers",
    "INT8 error per tensor",
    "per token",
    "per channel",
    "Class",
)


def _activation_row(item: LayerActivations) -> tuple[str, ...]:
    errors = (item.error_per_tensor, item.error_per_token, item.error_per_channel)
    return (
        item.name,
        units.digits(item.absmax),
        units.digits(item.absmax_channel_p50),
        f"{item.outlier_channels:,}",
        units.percent(item.outlier_tokens_share, 1),
        *(units.plain(value) for value in errors),
        "measured",
    )


def _outliers(
    width: float,
    height: float,
    label: str,
    points: list[tuple[int, LayerActivations]],
    threshold: float,
    worst: LayerActivations,
) -> Markup:
    last = max(layer for layer, _ in points)
    up = log_range([item.absmax for _, item in points] + [threshold]) or (1.0, 10.0)
    ticks = (units.digits_short, units.digits_short)
    plot = frame(width, height, Span(-0.5, last + 0.5, False), Span(*up), ("layer", "largest magnitude"), ticks)
    parts, y = plot.draw(8 if width > 400 else 5, 6), plot.y.at(threshold)
    parts.append(line(plot.x.start, y, plot.x.end, y, "limit"))
    for layer, item in points:
        hint = f"{item.name}: {units.digits(item.absmax)}"
        parts.append(mark(plot.x.at(layer), plot.y.at(item.absmax), "circle", "s0 point", hint, 3))
    parts.append(text(plot.x.end - 2, y - 5, f"outlier from {threshold:g}", "tick", "end"))
    at = next(layer for layer, item in points if item is worst)
    spot = (plot.x.at(at), plot.y.at(worst.absmax), worst.name.rpartition("layers.")[2])
    return drawing(width, height, label, *parts, *place_labels([spot], width, height))
