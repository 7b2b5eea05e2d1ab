"""The ranking: every candidate, what was predicted and measured for it, and the reason against it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from quantadvisor.documents import Candidate, NumberClass, Results

from . import facts, units

Status = Literal["advised", "tied", "slower", "unmeasured", "excluded", "refused"]
ORDER: tuple[Status, ...] = ("advised", "tied", "slower", "unmeasured", "excluded", "refused")
GROUPS: dict[str, str] = {
    "advised": "Feasible",
    "tied": "Feasible",
    "slower": "Feasible",
    "unmeasured": "Predicted only",
    "excluded": "Outside the constraints",
    "refused": "Refused: cannot run here",
}


@dataclass(frozen=True)
class Cell:
    """What was predicted and what was measured, in human units; `samples` is the measured evidence."""

    predicted: str
    measured: str
    interval: str = ""
    kind: str = "measured"


@dataclass(frozen=True)
class Row:
    """One candidate. `number` is its place; `sort` holds plain values (seconds, bytes) for the page's sorting."""

    number: int
    name: str
    what: str
    status: Status
    is_baseline: bool
    reason: str
    objective: Cell
    ttft: Cell
    tpot: Cell
    peak: Cell
    users: Cell
    kl: str
    kl_interval: str
    top1: str
    speed: str
    speed_kind: NumberClass
    capacity: str
    sort: dict[str, float | None]
    item: Candidate


def status(results: Results, item: Candidate) -> Status:
    """Where the candidate stands; a refusal speaks before everything else."""
    verdict = results.verdict
    if item.name == verdict.choice:
        return "advised"
    if item.refused:
        return "refused"
    if item.name in verdict.tied_with and not item.excluded:
        return "tied"
    if item.excluded:
        return "excluded"
    return "slower" if facts.measured(item, "objective") is not None else "unmeasured"


def reason(results: Results, item: Candidate) -> str:
    """Why it is not the advice (or that it is), in a clause."""
    verdict, place = results.verdict, status(results, item)
    if place == "advised":
        return "Advised" if verdict.change else "Advised: change nothing"
    if place in ("refused", "excluded"):
        return ((item.refused if place == "refused" else item.excluded) or "").rstrip(".")
    if verdict.runner_up is not None and verdict.runner_up.name == item.name:
        return f"Runner-up: {verdict.runner_up.why_not.rstrip('.')}"
    if place == "tied":
        return "Tied with the advice: their intervals overlap"
    against = _against(results, facts.shortfall(results, item))
    if place == "unmeasured":
        predicted = f"; predicted {against}{_by(item)}" if against else ""
        return "; ".join((f"Not measured{predicted}", *item.notes))
    today = "Change nothing: " if item.name == results.profile.baseline else ""
    return today + against if against else "Measured; no objective to compare"


def _by(item: Candidate) -> str:
    """What the prediction rests on, where it is not on kernels that were timed here."""
    source = item.predicted.kernels if item.predicted else None
    return {"interpolated": ", by published kernel tables", "roofline": ", by the roofline"}.get(source or "", "")


def _against(results: Results, shortfall: float | None) -> str:
    """`1.20× slower than the advice`; empty where there is nothing to compare."""
    if shortfall is None:
        return ""
    if 0.995 <= shortfall < 1.005:
        return "equal to the advice"
    worse, better = {
        "latency": ("slower than the advice", "faster than the advice"),
        "throughput": ("less output than the advice", "more output than the advice"),
        "concurrency": ("fewer users than the advice", "more users than the advice"),
    }[results.workload.objective]
    if shortfall > 1:
        return f"{units.times(shortfall)} {worse}"
    frozen = ", seen after the choice was frozen" if results.regret is not None else ""
    return f"{units.times(1 / shortfall)} {better}{frozen}"


def rank(results: Results) -> list[Row]:
    """All candidates: the advice, ties, then by objective; excluded and refused ones last."""

    def key(item: Candidate) -> tuple[int, float, str]:
        value = facts.measured(item, "objective")
        if value is None:
            value = facts.predicted(item, "objective")
        sign = 1.0 if results.workload.objective == "latency" else -1.0
        return ORDER.index(status(results, item)), float("inf") if value is None else sign * value, item.name

    return [_row(results, item, place) for place, item in enumerate(sorted(results.candidates, key=key), start=1)]


def grouped(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    """Rows under their headings, in order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(GROUPS[row.status], []).append(row)
    return list(found.items())


def objective_unit(results: Results) -> Callable[[float | None], str]:
    """How the objective is written: seconds, tokens per second or requests."""
    table = {"latency": units.duration, "throughput": units.tokens_rate, "concurrency": units.whole}
    return table[results.workload.objective]


def _cell(item: Candidate, field: str, unit: Callable[[float | None], str]) -> Cell:
    found, guess = facts.figure(item, field), units.ABSENT
    if facts.predicted(item, field) is not None:
        guess = unit(facts.predicted(item, field))
    if found is None:
        return Cell(guess, units.ABSENT)
    return Cell(guess, unit(found.median), units.bounds(found.low, found.high, unit), found.kind)


def _users(results: Results, item: Candidate) -> Cell:
    """As the map has it where nobody looked for it."""
    known = facts.on_map(results, item.name)
    if facts.figure(item, "max_concurrency") is None and known is not None:
        return Cell(units.ABSENT, units.whole(known.users), kind=known.users_kind)
    return _cell(item, "max_concurrency", units.whole)


def _row(results: Results, item: Candidate, place: int) -> Row:
    speed, capacity = facts.speed_effect(results, item), facts.capacity_effect(results, item)
    quality = item.quality
    return Row(
        number=place,
        name=item.name,
        what=f"{facts.scheme_words(item.scheme)} · {facts.method_words(item.method)}",
        status=status(results, item),
        is_baseline=item.name == results.profile.baseline,
        reason=reason(results, item),
        objective=_cell(item, "objective", objective_unit(results)),
        ttft=_cell(item, "ttft_s", units.duration),
        tpot=_cell(item, "tpot_s", units.duration),
        peak=_cell(item, "peak_bytes", units.size),
        users=_users(results, item),
        kl=units.nats(quality.kl.mean if quality else None),
        kl_interval=units.bounds(quality.kl.low, quality.kl.high, units.nats) if quality else "",
        top1=units.percent(quality.top1.mean if quality else None, 1),
        speed=units.times(speed),
        speed_kind=facts.speed_kind(results, item),
        capacity=units.times(capacity),
        sort={
            "place": place,
            "objective": facts.measured(item, "objective"),
            "ttft": facts.measured(item, "ttft_s"),
            "tpot": facts.measured(item, "tpot_s"),
            "peak": facts.measured(item, "peak_bytes"),
            "kl": quality.kl.mean if quality else None,
            "speed": speed,
            "capacity": capacity,
        },
        item=item,
    )
