"""The page of `advisor plan`, one self-contained file in the report's style: all times and bytes modelled, quality cited.

Pure functions of a CapacityPlan. One article for each device; what several devices give stands side by side on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from quantadvisor.documents import Bounds, CapacityPlan, DevicePlan, MapCandidate, PlanCandidate, Workload

from . import facts, family, units, wording
from .charts import Bar, bars_twice
from .html import page
from .map_plots import map_of, memory_of
from .svg import NARROW, WIDE, Axis, Picture, drawing, line, mark, text
from .verdict import KeyNumber, speed_words

DRAWN = 10
"""Candidates in the pictures; the ranking has all."""
STEMS = {
    "bf16": "16-bit weights, nothing quantized",
    "fp8": "FP8 weights and activations",
    "fp8-block": "FP8 weights and activations, a scale per block",
    "w8a8-int8": "INT8 weights and activations",
    "w8a16": "8-bit weights, 16-bit activations",
    "w4a16": "4-bit weights, 16-bit activations",
    "nvfp4": "NVFP4 weights and activations",
}
RUNTIMES = {"vllm": "vLLM", "sglang": "SGLang", "trtllm": "TensorRT-LLM"}
GLOSSARY = (
    *(entry for entry in wording.GLOSSARY if entry[0] in ("TTFT", "TPOT", "Request latency", "KV cache", "Roofline", "Context")),
    ("fp8-kv8@vllmx8", "A candidate: the scheme of weights and activations, of the cache (kv8: FP8), the runtime, the GPUs."),
    ("Users", "Requests in flight that fit into memory and keep the SLO at its percentile, all prompts arriving at once first."),
    ("Interval", "Holds 80 % of measured points of groups that the fit had not seen; docs/validation.md has the figures."),
    ("Modelled, cited", "Computed from measured kernel tables and data sheets of others; taken from a source that is named."),
    ("Kernels", "Class of the isolated kernels' times: measured at that size, interpolated, or roofline beyond the tables."),
)


class Line(NamedTuple):
    """One candidate of the ranking."""

    number: int
    item: PlanCandidate
    status: str
    reason: str
    ttft: tuple[str, ...]
    tpot: tuple[str, ...]
    users: str
    rate: str
    cost: str
    memory: str
    kernels: str


def render_plan(plan: CapacityPlan) -> str:
    """The HTML."""
    return page(
        "plan.html.j2",
        title=f"QuantAdvisor plan · {plan.workload.model}",
        plan=plan,
        devices=[view(one, plan.workload, place) for place, one in enumerate(plan.devices, start=1)],
        headline=headline(plan),
        traffic=facts.traffic_words(plan.workload.traffic),
        constraints=constraints(plan.workload),
        objective=facts.OBJECTIVES[plan.workload.objective],
        side=side(plan) if len(plan.devices) > 1 else None,
        family=[family.row(one) for one in plan.family],
        family_head=family.HEAD,
        family_said=family.of_plan(plan),
        family_source=plan.family[0].source if plan.family else "",
        glossary=GLOSSARY,
    )


def view(found: DevicePlan, workload: Workload, place: int) -> dict[str, Any]:
    """All that the template shows of one device."""
    lines = ranking(found, workload)
    drawn = pictures(found, workload)
    return {
        "id": f"d{place}",
        "name": found.device,
        "plan": found,
        "headline": device_headline(found),
        "reason": units.typeset(found.reason),
        "numbers": key_numbers(found),
        "effects": effects(found),
        "holds": wording.reaches(found.decision_map, workload.traffic) if found.decision_map else [],
        "lines": [one for one in lines if one.status != "refused"],
        "refused": refused(lines),
        "priced": workload.price_per_hour is not None,
        "pictures": {one.key: one for one in drawn},
    }


def headline(plan: CapacityPlan) -> str:
    """Where to serve what: the device whose choice is the best by the objective."""
    best = best_device(plan)
    if best is None:
        return f"No device named serves {plan.workload.model} within these constraints."
    return f"{device_headline(best)}{', the best of those named' if len(plan.devices) > 1 else ''}."


def best_device(plan: CapacityPlan) -> DevicePlan | None:
    held = [(one.candidates[0].objective, one) for one in plan.devices if one.choice and one.candidates[0].objective is not None]
    pick = min if plan.workload.objective == "latency" else max
    return pick(held, key=lambda pair: pair[0])[1] if held else None


def device_headline(found: DevicePlan) -> str:
    if found.choice is None:
        return f"Nothing serves this workload on {found.device}"
    one = found.candidates[0]
    gpus = found.device if one.tensor == 1 else f"{one.tensor} {found.device}"
    return f"{scheme_words(one.scheme)} on {RUNTIMES[one.runtime]}, {gpus}"


def scheme_words(scheme: str) -> str:
    stem = scheme.removesuffix("-kv8")
    return STEMS[stem] + (", FP8 cache" if stem != scheme else "")


def key_numbers(found: DevicePlan) -> list[KeyNumber]:
    if found.choice is None:
        return []
    one = found.candidates[0]
    made = [
        KeyNumber("Time per output token", bounded(one.tpot_ms)[0], f"80 % interval {bounded(one.tpot_ms)[1]}", "modelled"),
        KeyNumber("Time to first token", bounded(one.ttft_ms)[0], f"80 % interval {bounded(one.ttft_ms)[1]}", "modelled"),
        KeyNumber("Users", f"{one.users_within_slo:,}", "requests in flight inside memory and SLO", "modelled"),
        KeyNumber("Output per GPU", units.tokens_rate(one.tokens_per_s_per_gpu), "at the declared concurrency", "modelled"),
    ]
    if one.cost_per_million_tokens is not None:
        made.append(
            KeyNumber("Cost per million tokens", money(one.cost_per_million_tokens), "of output, at the spec's price", "modelled")
        )
    return made


def effects(found: DevicePlan) -> list[tuple[str, str]]:
    """Speed and capacity, apart."""
    if found.speed_effect is None or found.capacity_effect is None or found.choice == found.unquantized:
        return []
    over = f"{found.unquantized}, the best that quantizes nothing"
    return [
        ("Speed", f"A token is {speed_words(found.speed_effect)}, against {over}."),
        ("Capacity", f"{units.times(found.capacity_effect)} the requests fit into memory, against {over}."),
    ]


def constraints(workload: Workload) -> str:
    made = []
    if workload.slo is not None:
        bounds = (("TTFT", workload.slo.ttft_ms), ("TPOT", workload.slo.tpot_ms))
        share = f" for {workload.slo.percentile:g} % of requests"
        made += [f"{name} ≤ {value:g} ms{share}" for name, value in bounds if value is not None]
    if workload.memory_limit_gib is not None:
        made.append(f"memory limit {workload.memory_limit_gib:g} GiB a GPU")
    return "; ".join(made) or "none"


def ranking(found: DevicePlan, workload: Workload) -> list[Line]:
    return [row(number, one, found, workload) for number, one in enumerate(found.candidates, start=1)]


def row(number: int, one: PlanCandidate, found: DevicePlan, workload: Workload) -> Line:
    status, reason = standing(one, found, workload)
    cost = units.ABSENT if one.cost_per_million_tokens is None else money(one.cost_per_million_tokens)
    memory = units.size(one.memory.weights_bytes) if one.memory else units.ABSENT
    return Line(
        number, one, status, reason,
        (*bounded(one.ttft_ms), *tail(one.ttft_tail_ms, workload)), (*bounded(one.tpot_ms), *tail(one.tpot_tail_ms, workload)),
        f"{one.users_within_slo:,}",
        units.digits(one.tokens_per_s_per_gpu), cost, memory, one.kernels,
    )  # fmt: skip


def standing(one: PlanCandidate, found: DevicePlan, workload: Workload) -> tuple[str, str]:
    """(status, the reason against it)."""
    if one.refused or one.excluded:
        return "refused" if one.refused else "excluded", one.refused or one.excluded or ""
    if one.name == found.choice:
        return "advised", "Advised"
    if one.name in found.tied_with:
        return "tied", "Tied: no difference that counts; the advice keeps more quality, takes fewer GPUs or is the faster"
    ratio = facts.over(one.objective, found.candidates[0].objective)
    return "feasible", f"{units.times(ratio)} the advice's {facts.OBJECTIVES[workload.objective]}"


def refused(lines: Sequence[Line]) -> list[tuple[str, list[str]]]:
    """Reason, and the candidates that it is against."""
    out = sorted((one for one in lines if one.status == "refused"), key=lambda one: one.reason)
    return [(reason, [one.item.name for one in members]) for reason, members in groupby(out, key=lambda one: one.reason)]


def bounded(value: Bounds | None) -> tuple[str, str]:
    """(value, interval), in human units; milliseconds in."""
    if value is None:
        return units.ABSENT, ""
    return units.duration(value.value / 1e3), units.bounds(value.low / 1e3, value.high / 1e3, units.duration)


def tail(milliseconds: float | None, workload: Workload) -> tuple[str, ...]:
    """What the SLO is held against, where there is one."""
    if milliseconds is None or workload.slo is None:
        return ()
    return (f"p{workload.slo.percentile:g} {units.duration(milliseconds / 1e3)}",)


def money(value: float) -> str:
    return f"{value:,.2f}"


SIDE = ("Device", "Advised", "TTFT", "TPOT", "Users", "Tokens per s and GPU", "Cost per million tokens", "Speed", "Capacity")


def side(plan: CapacityPlan) -> list[tuple[str, ...]]:
    """Rows of the table of devices, under SIDE."""
    rows = []
    for one in plan.devices:
        if one.choice is None:
            rows.append((one.device, one.reason, *[units.ABSENT] * (len(SIDE) - 2)))
            continue
        first = row(1, one.candidates[0], one, plan.workload)
        ttft, tpot = (" ".join(part.replace(" ", "\u00a0") for part in pair) for pair in (first.ttft, first.tpot))
        gains = (units.times(one.speed_effect), units.times(one.capacity_effect))
        rows.append((one.device, one.choice, ttft, tpot, first.users, first.rate, first.cost, *gains))
    return rows


FAMILY = ("Rank", "Model", "Scheme", "Bits", "Weights", "Fits")


def pictures(found: DevicePlan, workload: Workload) -> list[Picture]:
    drawn = found.decision_map
    if drawn is None or found.choice is None:
        return []
    timed = [one for one in found.candidates if one.refused is None]
    made = [tokens(found, timed), users(found, timed, workload)]
    compared = f"{len(timed)} candidates that run on {found.device} take part."
    made.append(map_of(drawn, found.choice, workload, wording.reaches(drawn, workload.traffic), compared))
    named: dict[str, MapCandidate] = {one.name: one for one in drawn.candidates}
    made.append(memory_of(drawn, named[found.choice], workload, "memory-grid", "the advice on one GPU"))
    if found.unquantized is not None and found.unquantized != found.choice:
        made.append(memory_of(drawn, named[found.unquantized], workload, "memory-grid-before", "unquantized on one GPU"))
    return made


def best_of_schemes(timed: Sequence[PlanCandidate]) -> list[PlanCandidate]:
    """The first of each scheme in the ranking: runtimes and numbers of GPUs would fill the picture."""
    first: dict[str, PlanCandidate] = {}
    for one in timed:
        first.setdefault(one.scheme, one)
    return list(first.values())[:DRAWN]


def tokens(found: DevicePlan, timed: Sequence[PlanCandidate]) -> Picture:
    """TPOT with its interval, the best candidate of each scheme."""
    rows = best_of_schemes(timed)
    title = "Time per output token, the best of each scheme"
    fastest = min(rows, key=lambda one: one.tpot_ms.value if one.tpot_ms else float("inf"))
    summary = f"The shortest is {fastest.name}'s, {bounded(fastest.tpot_ms)[0]}; whiskers hold 80 %."
    wide, narrow = (whiskers(width, f"{title}. {summary}", rows, found.choice) for width in (WIDE, NARROW))
    table = tuple((one.name, *bounded(one.tpot_ms), *bounded(one.ttft_ms), one.kernels) for one in rows)
    head = ("Candidate", "TPOT", "80 % interval", "TTFT", "80 % interval", "Kernels")
    note = "One latency model predicts all of them: its errors are largely shared, so ratios are surer than the times."
    return Picture("tokens", title, summary, wide, narrow, head, table, note=note)


def whiskers(width: float, label: str, rows: Sequence[PlanCandidate], choice: str | None) -> Any:
    high = max(one.tpot_ms.high for one in rows if one.tpot_ms)
    axis, step = Axis(0, 1.05 * high, 2, width - 4), 40.0
    bottom = 6 + step * len(rows)
    parts = []
    for value in axis.ticks(6 if width > 400 else 4):
        parts += [line(axis.at(value), 4, axis.at(value), bottom, "grid")]
        parts += [text(axis.at(value), bottom + 16, f"{value:g}", "tick", "middle" if value else "start")]
    for place, one in enumerate(rows):
        assert one.tpot_ms
        y, style = 30 + place * step, "p-advised" if one.name == choice else "p-excluded" if one.excluded else "p-feasible"
        parts.append(text(2, y - 12, one.name + (" (advised)" if one.name == choice else ""), "label", room=width - 80))
        parts.append(text(width, y - 12, bounded(one.tpot_ms)[0], "value", "end"))
        parts.append(line(axis.at(one.tpot_ms.low), y, axis.at(one.tpot_ms.high), y, f"{style} whisker"))
        shape = "diamond" if one.name == choice else "cross" if one.excluded else "circle"
        hint = f"{one.name}: {' '.join(bounded(one.tpot_ms))}"
        parts.append(mark(axis.at(one.tpot_ms.value), y, shape, f"{style} point", hint))
    return drawing(width, bottom + 38, label, *parts, text(width, bottom + 34, "milliseconds", "axis", "end"))


def users(found: DevicePlan, timed: Sequence[PlanCandidate], workload: Workload) -> Picture:
    """Requests in flight inside memory and SLO: the best of each scheme."""
    rows = sorted(best_of_schemes(timed), key=lambda one: (-one.users_within_slo, one.name))
    title = f"Users {'under the SLO' if workload.slo else 'at once'}, the best of each scheme"
    bound = "inside memory and SLO" if workload.slo else "inside memory (no SLO declared)"
    summary = f"Requests in flight {bound} at {workload.traffic.context_length:,} tokens of context; most on {rows[0].name}: "
    summary += f"{rows[0].users_within_slo:,}."
    made = [
        Bar(
            one.name + (" (advised)" if one.name == found.choice else ""),
            (("t-good" if one.name == found.choice else "t-none", float(one.users_within_slo), ""),),
            f"{one.users_within_slo:,}",
        )
        for one in rows
    ]
    wide, narrow = bars_twice(title, summary, made, thick=8)
    table = tuple(
        (one.name, f"{one.users_within_slo:,}", f"{one.memory.max_concurrency:,}" if one.memory else units.ABSENT, "modelled")
        for one in rows
    )
    return Picture("users", title, summary, wide, narrow, ("Candidate", "Users", "Fit into memory", "Class"), table)
