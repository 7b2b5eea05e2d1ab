"""Bars: where bytes and time go, and where the speed-up came from. Pure functions of a Results, seconds and bytes."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from markupsafe import Markup

from quantadvisor.documents import LedgerItem, Results, Shares, Speedup

from . import facts, ranking, units, verdict
from .kernel_plots import kernel_speed, roofline
from .map_plots import decision_map, memory_grid, memory_grid_before
from .plots import outliers, prediction, quality_speed
from .svg import NARROW, WIDE, Axis, Legend, Picture, drawing, line, rect, text

MOST = 9
"""Bars drawn of a long list; its table has all."""
TENSOR_LEGEND = tuple(Legend(f"t-{name}", facts.TENSORS[name]) for name in facts.PARTS)


Parts = tuple[tuple[str, float, str], ...]
"""Of a bar: (class, size, words)."""


@dataclass(frozen=True)
class Bar:
    """One row: its label, its parts, what is written at its end."""

    label: str
    parts: Parts
    end: str

    @property
    def total(self) -> float:
        return sum(size for _, size, _ in self.parts)


def pictures(results: Results, wanted: Container[str] | None = None) -> list[Picture]:
    """All pictures that the results hold numbers for, or of those the wanted ones, in the order of the page."""
    made = {
        "memory": memory, "memory-grid": memory_grid, "memory-grid-before": memory_grid_before, "map": decision_map,
        "time-prefill": time_prefill, "time-decode": time_decode, "origin": origin, "quality-speed": quality_speed,
        "users": users, "prediction": prediction, "roofline": roofline, "kernel-speed": kernel_speed, "outliers": outliers,
    }  # fmt: skip
    drawn = (draw(results) for key, draw in made.items() if wanted is None or key in wanted)
    return [picture for picture in drawn if picture is not None]


def bars(width: float, label: str, rows: list[Bar], limit: tuple[float, str] | None = None, thick: int = 20) -> Markup:
    """Stacked bars below their labels, one scale from zero; `limit`: a mark across, off the scale where far beyond."""
    longest = max((row.total for row in rows), default=0.0)
    shown = limit is not None and longest > 0 and limit[0] <= 2.5 * longest
    top, step = 26.0 if limit is not None else 4.0, thick + 32
    axis = Axis(0, max(longest, limit[0] if limit and shown else 0.0) or 1.0, 0, width - 2)
    parts: list[Markup] = []
    for place, row in enumerate(rows):
        y = top + place * step
        parts.append(text(0, y + 14, row.label, "label", room=width - 12 - len(row.end) * 8))
        parts.append(text(width, y + 14, row.end, "value", "end"))
        parts += _stack(axis, row, y + 21, thick)
        if limit is not None and shown:
            parts.append(line(axis.at(limit[0]), y + 18, axis.at(limit[0]), y + 24 + thick, "limit"))
    if limit is not None:
        x = axis.at(limit[0]) if shown else width
        said = limit[1] if shown else f"{limit[1]}, beyond this scale →"
        parts.append(text(x, 12, said, "label" if shown else "tick", "end" if x > width / 2 else "start"))
    return drawing(width, top + len(rows) * step, label, *parts)


def _stack(axis: Axis, row: Bar, y: float, thick: int) -> list[Markup]:
    """The bar itself; a part wide enough carries its words."""
    parts, start = [rect(0, y, axis.end, thick, "track")], 0.0
    for style, size, words in row.parts:
        x, end = axis.at(start), axis.at(start + size)
        parts.append(rect(x, y, max(0.0, end - x - 1), thick, style, words))
        for said in (words, words.rpartition(" · ")[2]):
            if len(said) * 7 + 10 <= end - x and style != "t-none" and thick >= 18:
                parts.append(text(x + 5, y + 14, said, "inside"))
                break
        start += size
    return parts


def bars_twice(
    title: str, summary: str, rows: list[Bar], limit: tuple[float, str] | None = None, thick: int = 20
) -> tuple[Markup, Markup]:
    """The wide and the narrow drawing of the same bars."""
    label = f"{title}. {summary}"
    return bars(WIDE, label, rows, limit, thick), bars(NARROW, label, rows, limit, thick)


def _split(shares: Shares, total: float) -> Parts:
    """Parts of a bar from shares of a total."""
    named = {name: max(0.0, float(getattr(shares, name))) for name in facts.PARTS}
    return tuple(
        (f"t-{name}", share * total, f"{facts.TENSORS[name]} · {units.percent(share)}")
        for name, share in named.items()
        if share > 0
    )


def _ledger_parts(items: tuple[LedgerItem, ...]) -> Parts:
    order = ("weights", "kv_cache", "activations", "overhead")
    total = sum(item.bytes for item in items) or 1
    found = []
    for name in order:
        held = sum(item.bytes for item in items if item.tensor == name)
        style = "t-other" if name == "overhead" else f"t-{name}"
        if held > 0:
            found.append((style, float(held), f"{facts.TENSORS[name]} · {units.percent(held / total)}"))
    return tuple(found)


def memory(results: Results) -> Picture | None:
    """Bytes by tensor at the declared workload, against the limit."""
    ledger, capacity = results.profile.memory, results.diagnosis.capacity
    parts = _ledger_parts(ledger.items) or _split(capacity.shares, capacity.total)
    if not parts:
        return None
    total = sum(size for _, size, _ in parts)
    limit, peak, after = facts.memory_limit(results)[0], ledger.measured_peak_bytes, _after(results)
    whose = facts.profiled(results)
    rows = [Bar(f"{whose.capitalize()}, by ledger: {results.diagnosis.of}", parts, units.size(total))]
    if peak is not None:
        rows.append(Bar(f"{whose.capitalize()}, measured peak", (("t-none", float(peak), "measured peak"),), units.size(peak)))
    rows += [after] if after is not None else []
    biggest = max(parts, key=lambda part: part[1])[2].replace(" · ", " with ")
    needing = "The baseline" if whose == "baseline" else results.diagnosis.of
    summary = f"{needing} needs {units.size(total)} at this workload, most of it {biggest}; {units.size(limit)} allowed."
    wide, narrow = bars_twice("Memory by tensor", summary, rows, (float(limit), f"limit {units.size(limit)}"))
    legend = (*TENSOR_LEGEND[:3], Legend("t-other", "overhead"), Legend("t-none", "measured, not split"))
    return Picture(
        "memory", "Memory by tensor, against the limit", summary, wide, narrow,
        ("Tensor", "Bytes", "Share", "Class"), tuple(_memory_rows(results, parts, after)), legend,
    )  # fmt: skip


def _memory_rows(results: Results, parts: Parts, after: Bar | None) -> list[tuple[str, ...]]:
    """Baseline by tensor and its peak, the advice likewise, the limit; each with its class."""
    ledger, total = results.profile.memory, sum(size for _, size, _ in parts)
    kinds = {facts.TENSORS[item.tensor]: item.kind for item in ledger.items}
    rows: list[tuple[str, ...]] = []
    for _, size, words in parts:
        name = words.partition(" · ")[0]
        rows.append((name, units.size(size), units.percent(size / total, 1), kinds.get(name, "modelled")))
    rows.append(("ledger, together", units.size(total), "100.0 %", "modelled"))
    if ledger.measured_peak_bytes is not None:
        rows.append((f"{facts.profiled(results)}, measured peak", units.size(ledger.measured_peak_bytes), "", "measured"))
    if after is not None:
        for _, size, words in after.parts:
            name, _, share = words.partition(" · ")
            rows += [(f"advised, {name}", units.size(size), share, "modelled")] if share else []
        rows.append(("advised, measured peak", after.end, "", "measured"))
    limit, whence = facts.memory_limit(results)
    return [*rows, (f"limit ({whence})", units.size(limit), "", "declared")]


def _after(results: Results) -> Bar | None:
    """The advised candidate's peak, by tensor where that was worked out."""
    advised = facts.choice(results)
    peak = facts.measured(advised, "peak_bytes")
    if peak is None or advised is None or not results.verdict.change:
        return None
    after = results.choice_diagnosis
    parts = _split(after.capacity.shares, peak) if after is not None else ()
    return Bar(f"Advised, measured peak: {advised.name}", parts or (("t-none", peak, "peak"),), units.size(peak))


def time_prefill(results: Results) -> Picture | None:
    return _time(results, "prefill", "Prefill: time by tensor", "ttft_s")


def time_decode(results: Results) -> Picture | None:
    return _time(results, "decode", "Decode: time by tensor", "tpot_s")


def _time(results: Results, phase: str, title: str, field: str) -> Picture | None:
    """Seconds per forward pass by tensor: baseline, best unquantized, and what the advice measured (not split)."""
    rows, table = [], []
    for what, found in facts.diagnoses(results):
        side = getattr(found, phase)
        parts = _split(side.shares, side.total)
        if not parts or side.total <= 0:
            continue
        rows.append(Bar(f"{what.capitalize()}: {found.of}", parts, units.duration(side.total)))
        table += [
            (found.of, facts.TENSORS[name], units.duration(getattr(side.shares, name) * side.total),
             units.percent(getattr(side.shares, name), 1), "modelled")
            for name in facts.PARTS
        ]  # fmt: skip
    if not rows:
        return None
    advised, lost = facts.choice(results), getattr(results.diagnosis, phase).inefficiency
    own, whole = facts.figure(advised, field), False
    if advised is not None and own is not None and advised.name not in {row[0] for row in table}:
        name, whole = facts.QUANTITIES[field], True
        took = units.duration(own.median)
        rows.append(Bar(f"Advised, measured {name}: {advised.name}", (("t-none", own.median, name),), took))
        table.append((advised.name, f"{name}, not split", took, "", own.kind))
    binds = getattr(results.diagnosis, phase)
    where = "the baseline" if facts.profiled(results) == "baseline" else results.diagnosis.of
    summary = (
        f"On {where} a forward pass takes {units.duration(binds.total)}; {facts.TENSORS[binds.binds]} "
        f"hold{'' if binds.binds in ('weights', 'activations') else 's'} "
        f"{units.percent(getattr(binds.shares, binds.binds))} of it."
    )
    note = f"Of the binding linears' time the kernel loses {units.percent(lost)} against the roof." if lost else ""
    wide, narrow = bars_twice(title, summary, rows)
    legend = (*TENSOR_LEGEND, *((Legend("t-none", "measured, not split"),) if whole else ()))
    head = ("Candidate", "Tensor", "Seconds per pass", "Share", "Class")
    return Picture(f"time-{phase}", title, summary, wide, narrow, head, tuple(table), legend, note)


def origin(results: Results) -> Picture | None:
    """Where the speed-up came from: runtime, then method, on a logarithmic scale where factors add up."""
    pairs = (("Request", results.verdict.speedup), ("Decode step", results.verdict.decode_speedup))
    kinds = {"Request": facts.chain_kind(results, facts.TIMES), "Decode step": facts.chain_kind(results, ("tpot_s",))}
    rows = [(name, value) for name, value in pairs if value is not None and min(value.total, value.runtime) > 0]
    if not rows or not results.verdict.change:
        return None
    label = "; ".join(
        f"{name}: {units.times(value.runtime)} from the runtime times {units.times(value.method)} from the method is "
        f"{units.times(value.total)}"
        for name, value in rows
    )
    title = "Where the speed-up came from"
    wide, narrow = (_origin(width, f"{title}. {label}", rows) for width in (WIDE, NARROW))
    table = tuple((n, units.times(v.runtime), units.times(v.method), units.times(v.total), kinds[n]) for n, v in rows)
    legend = (Legend("t-runtime", "runtime, nothing quantized"), Legend("t-method", "method, on that runtime"))
    note = "Logarithmic scale, along baseline → best unquantized → advice. Equal lengths are equal factors."
    head = ("What", "Runtime", "Method", "Together", "Class")
    return Picture("origin", title, label + ".", wide, narrow, head, table, legend, note)


def _origin(width: float, label: str, rows: list[tuple[str, Speedup]]) -> Markup:
    ends = [1.0] + [value for _, row in rows for value in (row.runtime, row.total) if value > 0]
    axis = Axis(min(ends) / 1.04, max(ends) * 1.04, 2, width - 2, log=True)
    bottom = 8.0 + len(rows) * 58
    parts: list[Markup] = []
    for value in axis.ticks(6 if width > 400 else 4):
        for place in range(len(rows)):
            parts.append(line(axis.at(value), 22 + place * 58.0, axis.at(value), 50 + place * 58.0, "grid"))
        anchor = "start" if axis.at(value) < 12 else "end" if axis.at(value) > width - 12 else "middle"
        parts.append(text(axis.at(value), bottom + 16, units.times_short(value), "tick", anchor))
    for place, (name, row) in enumerate(rows):
        y = 4 + place * 58.0
        parts.append(text(2, y + 14, name, "label"))
        parts.append(text(width, y + 14, units.times(row.total), "value", "end"))
        for style, start, end, words in (
            ("t-runtime", 1.0, row.runtime, f"runtime · {units.times(row.runtime)}"),
            ("t-method", row.runtime, row.total, f"method · {units.times(row.method)}"),
        ):
            left, right = sorted((axis.at(start), axis.at(end)))
            lower = 11.0 if style == "t-method" and row.method < 1 else 0.0
            height = 10.0 if row.method < 1 or row.runtime < 1 else 20.0
            parts.append(rect(left, y + 22 + lower, max(2.0, right - left - 1), height, style, words))
            if len(words) * 7 + 6 <= right - left and height == 20:
                parts.append(text(left + 5, y + 36, words, "inside"))
        parts.append(line(axis.at(1), y + 18, axis.at(1), y + 46, "rule"))
    return drawing(width, bottom + 22, label, *parts)


def users(results: Results) -> Picture | None:
    """Requests in flight inside limit and SLO at the declared context, by candidate, most first."""
    known = results.decision_map.candidates if results.decision_map is not None else ()
    held = sorted((c for c in known if c.outside is None), key=lambda c: (-c.users, c.name))
    if len(held) < 2:
        return _users_that_fit(results)
    ends = {"memory": "memory", "ttft": "TTFT", "tpot": "TPOT"}
    own = [c for c in held if c.name in (results.verdict.choice, results.profile.baseline)]
    others = [c for c in held if c not in own][: MOST - len(own)]
    drawn = [c for c in held if c in own or c in others]
    rows = [_users_bar(results, c.name, c.users, f"{c.users:,} · {ends[c.limited_by]}") for c in drawn]
    bound = "inside memory limit and SLO" if results.workload.slo else "inside the memory limit (no SLO declared)"
    title = "Users under the SLO, by candidate" if results.workload.slo else "Users at once, by candidate"
    context = f"{results.workload.traffic.context_length:,} tokens of context"
    summary = f"Requests in flight {bound} at {context}; most on {held[0].name}: {held[0].users:,}."
    summary += (
        f" {len(drawn)} of {len(held)} are drawn, the advice and the baseline among them." if len(drawn) < len(held) else ""
    )
    wide, narrow = bars_twice(title, summary, rows, thick=8)
    base = facts.on_map(results, results.profile.baseline)
    table = tuple(
        (
            c.name, f"{c.users:,}", verdict.ENDS[c.limited_by], units.duration(c.ttft_s), units.duration(c.tpot_s),
            units.times(facts.over(c.users, base.users if base else None)), c.users_kind, c.basis,
        )
        for c in held
    )  # fmt: skip
    head = ("Candidate", "Users", "Until", "TTFT with them", "TPOT with them", "Over the baseline", "Class", "Rests on")
    note = "Times with that many in flight are modelled. Behind each bar: what ends it."
    return Picture("users", title, summary, wide, narrow, head, table, note=note)


def _users_bar(results: Results, name: str, value: float, end: str) -> Bar:
    mine = name == results.verdict.choice
    mark = " (advised)" if mine else " (baseline)" if name == results.profile.baseline else ""
    return Bar(name + mark, (("t-good" if mine else "t-none", value, end),), end)


def _users_that_fit(results: Results) -> Picture | None:
    """The same from the candidates alone, for results without a map."""
    ranked = [row.item for row in ranking.rank(results) if row.status not in ("refused", "excluded")]
    held = [(item, value) for item in ranked if (value := facts.users(item)) is not None and value > 0]
    if len(held) < 2:
        return None
    rows = [_users_bar(results, item.name, value, units.whole(value)) for item, value in held[:MOST]]
    most = max(held, key=lambda pair: (pair[1], pair[0].name))
    title = "Users at once, by candidate"
    summary = f"Requests in flight that fit inside the limits; most on {most[0].name}: {units.whole(most[1])}."
    summary += f" The first {MOST} of {len(held)} are drawn." if len(held) > MOST else ""
    wide, narrow = bars_twice(title, summary, rows, thick=8)
    table = tuple(
        (item.name, units.whole(value), units.times(facts.capacity_effect(results, item)), facts.users_kind(item))
        for item, value in held
    )
    return Picture("users", title, summary, wide, narrow, ("Candidate", "Users", "Over the baseline", "Class"), table)
