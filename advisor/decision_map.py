"""The decision map: who would be advised at other contexts and concurrencies, and until when the advice holds.

Pure arithmetic on a run's measured candidates: memory as a line in cached tokens, through the measured peak and, where it
was searched for, through the users at the limit; time by `scaling`. The output length stays as declared, the prompt takes
the rest of the context. Points and edges are map_edges'. All *modelled*.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from quantadvisor.documents import (
    Candidate,
    DecisionMap,
    Figure,
    Inventory,
    MapCandidate,
    Measured,
    Results,
    Workload,
)
from quantadvisor.profiling.ledger import bytes_of_weights
from quantadvisor.profiling.quality import budget_breach

from .decide import breach_of_measurement, breach_of_prediction, limit_bytes, preference
from .map_edges import Limit, Look, Terrain, advised, basis_of, cells, edges, lines
from .predict import EIGHT_BIT_SHARE, Probes, cache_row_bytes
from .scaling import TimeModel, time_model

APART = 0.25
"""Users at the limit give a second point of the memory line where they differ by this from the declared concurrency."""


@dataclass(frozen=True)
class Contender:
    """One candidate of the map: its memory line, its time model (or why there is none), its measured percentile factors."""

    candidate: Candidate
    known: MapCandidate
    times: TimeModel | str
    stretch: tuple[float, float]
    """TTFT and TPOT at the SLO's percentile over their medians."""


@dataclass(frozen=True)
class Field:
    """Everything that a look at one point needs."""

    workload: Workload
    limit_bytes: int
    baseline: str
    choice: str
    contenders: tuple[Contender, ...]

    @property
    def able(self) -> list[Contender]:
        return [c for c in self.contenders if c.known.outside is None]


def decision_map(results: Results) -> DecisionMap | None:
    """None where nothing was chosen or measured."""
    field = field_of(results)
    if field is None:
        return None
    traffic, inventory = results.workload.traffic, results.profile.inventory
    contexts = lines(traffic.context_length, traffic.output_length + 1, inventory.max_context_tokens)
    flights = lines(traffic.concurrency, 1, None)
    terrain = terrain_of(field)
    return DecisionMap(
        limit_bytes=field.limit_bytes,
        contexts=contexts,
        concurrencies=flights,
        candidates=tuple(c.known for c in field.contenders),
        cells=cells(terrain, contexts, flights),
        edges=edges(terrain, contexts, flights),
        basis=basis_of(results.workload),
    )


def terrain_of(field: Field) -> Terrain:
    traffic = field.workload.traffic
    mine = next(c for c in field.contenders if c.candidate.name == field.choice)
    return Terrain(
        choice=field.choice,
        declared=(traffic.context_length, traffic.concurrency),
        look=lambda points: [look(field, *one) for one in points],
        breach=lambda place: breach(mine, field.workload, field.limit_bytes, *place),
    )


def field_of(results: Results) -> Field | None:
    """The candidates that were measured, as contenders; None where there is no choice among them."""
    workload, inventory, choice = results.workload, results.profile.inventory, results.verdict.choice
    probes = Probes(results.profile.kernels, inventory, EIGHT_BIT_SHARE)
    limit = limit_bytes(workload, results.device)
    made = [
        contender(c, workload, inventory, probes, limit)
        for c in results.candidates
        if c.refused is None and c.measured is not None and c.measured.peak_bytes is not None
    ]
    if choice is None or choice not in {c.candidate.name for c in made if c.known.outside is None}:
        return None
    return Field(workload, limit, results.profile.baseline, choice, tuple(made))


def contender(candidate: Candidate, workload: Workload, inventory: Inventory, probes: Probes, limit: int) -> Contender:
    times = time_model(candidate, workload.traffic, probes)
    measured = candidate.measured
    assert measured
    stretch = at_percentile(measured.ttft_s, workload), at_percentile(measured.tpot_s, workload)
    line = memory_line(candidate, inventory, workload, limit)
    bare = Contender(candidate, line.model_copy(update={"outside": outside(candidate, workload, times)}), times, stretch)
    return replace(bare, known=with_users(bare, workload, limit))


def at_percentile(figure: Figure | None, workload: Workload) -> float:
    """The SLO's percentile of the samples over their median; 1.0 without either."""
    if figure is None or workload.slo is None or not figure.samples or figure.median <= 0:
        return 1.0
    return float(np.percentile(figure.samples, workload.slo.percentile)) / figure.median


def outside(candidate: Candidate, workload: Workload, times: TimeModel | str) -> str | None:
    """Why it is nowhere advised. What it breaks only at the declared point (memory, SLO) is looked at again elsewhere."""
    if candidate.quality is not None and (reason := budget_breach(candidate.quality, workload)):
        return reason
    local = {breach_of_measurement(candidate, workload)}
    local |= {breach_of_prediction(candidate.predicted, workload)} if candidate.predicted else set()
    if candidate.excluded and candidate.excluded not in local:
        return candidate.excluded
    if isinstance(times, str) and (workload.objective != "concurrency" or workload.slo is not None):
        return f"not on the map: {times}"
    return None


def memory_line(candidate: Candidate, inventory: Inventory, workload: Workload, limit: int) -> MapCandidate:
    """Bytes = weights + rest + tokens cached * bytes per token, through the measured peak at the declared point."""
    traffic, measured = workload.traffic, candidate.measured
    assert measured and measured.peak_bytes
    peak, basis = measured.peak_bytes.median, "line through the measured peak and the users found at the limit"
    slope = slope_to_limit(measured, workload, limit)
    if slope is None:
        slope = cache_row_bytes(inventory, candidate.scheme, candidate.runtime, workload) / traffic.context_length
        basis = "measured peak, cache bytes of the format"
    once = not (candidate.runtime.startswith("onnxruntime") and candidate.scheme.lm_head is None)
    held = max(0.0, peak - slope * traffic.context_length * traffic.concurrency)
    weights = min(held, bytes_of_weights(inventory, candidate.scheme, tied_once=once))
    return MapCandidate(
        name=candidate.name,
        weights_bytes=round(weights),
        rest_bytes=round(held - weights),
        cache_bytes_per_token=slope,
        users=0,
        basis=basis,
    )


def slope_to_limit(measured: Measured, workload: Workload, limit: int) -> float | None:
    """Bytes per cached token from the declared point to the users that were found at the limit (that many ran, one more did
    not); None where they were not searched for, are too near for a slope, or may have been ended by the TPOT."""
    traffic, found = workload.traffic, measured.max_concurrency
    if workload.objective != "concurrency" or found is None or found.median < 1 or measured.peak_bytes is None:
        return None
    if (workload.slo and workload.slo.tpot_ms) or abs(found.median / traffic.concurrency - 1) < APART:
        return None
    tokens = (found.median + 0.5 - traffic.concurrency) * traffic.context_length
    slope = (limit - measured.peak_bytes.median) / tokens if tokens else 0.0
    return slope if slope > 0 else None


def with_users(one: Contender, workload: Workload, limit: int) -> MapCandidate:
    """With the requests that it holds at the declared context inside limit and SLO, and the times they would see."""
    count, why = users_at(one, workload, limit, workload.traffic.context_length)
    kind, found = "modelled", one.candidate.measured.max_concurrency if one.candidate.measured else None
    if found is not None and workload.objective == "concurrency":
        count, kind = round(found.median), "measured" if found.kind == "measured" else "modelled"
    update: dict[str, object] = {"users": count, "users_kind": kind, "limited_by": why}
    if isinstance(one.times, TimeModel):
        place = workload.traffic.prompt_length, max(1, count)
        update |= {"ttft_s": one.times.ttft(*place), "tpot_s": one.times.tpot(*place)}
        update["basis"] = f"{one.known.basis}; {one.times.basis}"
    return one.known.model_copy(update=update)


def users_at(one: Contender, workload: Workload, limit: int, context: int) -> tuple[int, Limit]:
    """The most requests of `context` tokens inside limit and SLO, and what one more would break."""
    each = one.known.cache_bytes_per_token * context
    most = int(max(0.0, limit - one.known.weights_bytes - one.known.rest_bytes) / each) if each > 0 else 0
    if workload.slo is None or isinstance(one.times, str):
        return most, "memory"
    if most < 1 or breach(one, workload, limit, context, most) is None:
        return most, "memory"
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if breach(one, workload, limit, context, middle) else (middle, high)
    return low, breach(one, workload, limit, context, high) or "memory"


def breach(one: Contender, workload: Workload, limit: int, context: int, flight: int) -> Limit | None:
    """What this point breaks: memory, TTFT or TPOT at the SLO's percentile; None where it fits."""
    if one.known.held_bytes(context, flight) > limit:
        return "memory"
    slo = workload.slo
    if slo is None or isinstance(one.times, str):
        return None
    prompt = max(1, context - workload.traffic.output_length)
    if slo.ttft_ms is not None and one.times.ttft(prompt, flight) * one.stretch[0] * 1e3 > slo.ttft_ms:
        return "ttft"
    if slo.tpot_ms is not None and one.times.tpot(prompt, flight) * one.stretch[1] * 1e3 > slo.tpot_ms:
        return "tpot"
    return None


def value(one: Contender, workload: Workload, limit: int, context: int, flight: int) -> float:
    """The objective at this point: seconds, output tokens per second, or the requests that it holds at this context."""
    traffic = workload.traffic
    if workload.objective == "concurrency":
        return float(users_at(one, workload, limit, context)[0])
    assert isinstance(one.times, TimeModel)
    prompt = max(1, context - traffic.output_length)
    seconds = one.times.ttft(prompt, flight) + (traffic.output_length - 1) * one.times.tpot(prompt, flight)
    return seconds if workload.objective == "latency" else flight * traffic.output_length / seconds


def look(field: Field, context: int, flight: int) -> Look:
    """Who is advised at this point: the choice as long as it fits and is not beaten by more than a tie."""
    workload, limit = field.workload, field.limit_bytes
    fitting = [c for c in field.able if breach(c, workload, limit, context, flight) is None]
    if not fitting:
        return Look(None, None, 0)
    values = {c.candidate.name: value(c, workload, limit, context, flight) for c in fitting}
    own = {c.candidate.name: c.candidate for c in fitting}
    winner = advised(values, field.choice, workload, lambda name: preference(own[name], field.baseline))
    return Look(winner, values[winner], len(fitting))
