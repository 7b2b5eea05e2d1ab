"""Every candidate of a plan at other contexts and concurrencies, all at once: the objective, the users, the map. Pure.

Ties go to better quality (the order of `plan_candidates.SCHEMES`), then to fewer GPUs. An SLO is held by the request at its
percentile (serving_tail); objectives are of means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantadvisor.documents import DecisionMap, MapCandidate, Workload
from quantadvisor.profiling.gpu_memory import sequence_bytes

from .map_edges import Limit, Look, Point, Terrain, advised, basis_of, cells, edges, lines
from .plan_candidates import SCHEMES, Option
from .serving_fit import Parameters
from .serving_model import Prediction, predict_cases
from .serving_work import Case

MOST_USERS = 1 << 14


@dataclass(frozen=True)
class Field:
    """Everything that a look needs: the candidates that run on a device, and the choice among them."""

    options: Sequence[Option]
    choice: str
    workload: Workload
    parameters: Parameters
    limit_bytes: int

    def of(self, name: str) -> Option:
        return next(one for one in self.options if one.candidate.name == name)


def decision_map(field: Field, shown: Sequence[str]) -> DecisionMap:
    """The map on one device; `shown`: candidates whose memory is drawn though they may win nowhere."""
    traffic, longest = field.workload.traffic, field.options[0].placement.shard.inventory.max_context_tokens
    contexts = lines(traffic.context_length, traffic.output_length + 1, longest)
    flights = lines(traffic.concurrency, 1, None)
    mine = field.of(field.choice)
    terrain = Terrain(
        choice=field.choice,
        declared=(traffic.context_length, traffic.concurrency),
        look=lambda points: looks(field, points),
        breach=lambda place: breach(mine, place, field.workload, field.parameters),
    )
    found = cells(terrain, contexts, flights)
    names = dict.fromkeys([*shown, *(one.winner for one in found if one.winner is not None)])
    return DecisionMap(
        limit_bytes=field.limit_bytes,
        contexts=contexts,
        concurrencies=flights,
        candidates=tuple(member(field, field.of(name)) for name in names),
        cells=found,
        edges=edges(terrain, contexts, flights),
        basis=basis_of(field.workload),
    )


def looks(field: Field, points: Sequence[Point]) -> list[Look]:
    """Who is advised at each point, and what that reaches."""
    workload, options = field.workload, field.options
    cases = [case(one, flight, workload, context) for context, flight in points for one in options]
    found = predict_cases(field.parameters, cases, percentile_of(workload))
    contexts = list(dict.fromkeys(context for context, _ in points))
    rooms = {context: room(options, context) for context in contexts}
    held = (
        {context: users_within(options, workload, field.parameters, context) for context in contexts} if counted(workload) else {}
    )
    made = []
    for i, (context, flight) in enumerate(points):
        values = {}
        for j, one in enumerate(options):
            predicted = found[i * len(options) + j]
            if rooms[context][j] >= flight and over_slo(predicted, workload) is None:
                users = held[context][j] if held else 0
                values[one.candidate.name] = value(predicted, one, flight, users, workload)
        made.append(winner(field, values))
    return made


def counted(workload: Workload) -> bool:
    return workload.objective == "concurrency"


def winner(field: Field, values: dict[str, float]) -> Look:
    if not values:
        return Look(None, None, 0)
    name = advised(values, field.choice, field.workload, lambda name: preference(field.of(name), values[name], field.workload))
    return Look(name, values[name], len(values))


def preference(option: Option, objective: float, workload: Workload) -> tuple[int, int, float]:
    """Among ties: better quality, then fewer GPUs, then the objective."""
    one = option.candidate
    return SCHEMES.index(one.scheme), one.tensor, objective if workload.objective == "latency" else -objective


def value(found: Prediction, option: Option, flight: int, users: int, workload: Workload) -> float:
    """The objective: seconds of a request; output tokens per second and GPU; users per GPU."""
    if counted(workload):
        return users / option.candidate.tensor
    request = request_s(found, workload)
    return request if workload.objective == "latency" else rate(request, flight, option, workload)


def request_s(found: Prediction, workload: Workload) -> float:
    return (found.ttft_ms + (workload.traffic.output_length - 1) * found.tpot_ms) / 1e3


def rate(request: float, flight: int, option: Option, workload: Workload) -> float:
    """Output tokens per second and GPU, of `flight` requests that take `request` seconds each."""
    return flight * workload.traffic.output_length / request / option.candidate.tensor


def room(options: Sequence[Option], context: int) -> list[int]:
    """Requests of that context that each one's cache holds."""
    return [int(one.memory.cache_bytes // sequence_bytes(one.placement.shard, one.placement.scheme, context)) for one in options]


def users_within(options: Sequence[Option], workload: Workload, parameters: Parameters, context: int) -> list[int]:
    """The most requests in flight inside memory and SLO, by bisection for all candidates at once."""
    high = np.minimum(MOST_USERS, room(options, context))
    if workload.slo is None:
        return [int(one) for one in high]
    low = np.zeros(len(options), dtype=int)
    while (low < high).any():
        middle = (low + high + 1) // 2
        cases = [case(one, max(1, n), workload, context) for one, n in zip(options, middle, strict=True)]
        found = predict_cases(parameters, cases, percentile_of(workload))
        fine = np.array([over_slo(one, workload) is None for one in found])
        low, high = np.where(fine, middle, low), np.maximum(low, np.where(fine, high, middle - 1))
    return [int(one) for one in low]


def case(option: Option, flight: float, workload: Workload, context: int | None = None) -> Case:
    """The declared traffic at another concurrency, or with prompts that make another context."""
    traffic = workload.traffic
    prompt = traffic.prompt_length if context in (None, traffic.context_length) else max(1, context - traffic.output_length)
    prefix = min(traffic.shared_prefix_tokens, prompt - 1)
    return Case(option.placement, flight, prompt - prefix, traffic.output_length, prefix)


def percentile_of(workload: Workload) -> float | None:
    return None if workload.slo is None else workload.slo.percentile


def over_slo(found: Prediction, workload: Workload) -> Limit | None:
    """`found` with its tails at the SLO's percentile."""
    slo = workload.slo
    if slo is None:
        return None
    if slo.ttft_ms is not None and found.ttft_tail_ms > slo.ttft_ms:
        return "ttft"
    return "tpot" if slo.tpot_ms is not None and found.tpot_tail_ms > slo.tpot_ms else None


def breach(option: Option, place: Point, workload: Workload, parameters: Parameters) -> Limit | None:
    """What a candidate breaks at a point: memory, TTFT or TPOT; None where it fits."""
    context, flight = place
    if room([option], context)[0] < flight:
        return "memory"
    found = predict_cases(parameters, [case(option, flight, workload, context)], percentile_of(workload))
    return over_slo(found[0], workload)


def member(field: Field, option: Option) -> MapCandidate:
    """Its memory over cached tokens on one GPU, and the users that it serves at the declared context."""
    workload, memory, context = field.workload, option.memory, field.workload.traffic.context_length
    users = users_within([option], workload, field.parameters, context)[0]
    found = predict_cases(field.parameters, [case(option, max(1, users), workload)])[0]
    return MapCandidate(
        name=option.candidate.name,
        weights_bytes=memory.weights_bytes,
        rest_bytes=memory.activations_bytes + memory.reserve_bytes,
        cache_bytes_per_token=sequence_bytes(option.placement.shard, option.placement.scheme, context) / context,
        users=users,
        limited_by=breach(option, (context, users + 1), workload, field.parameters) or "memory",
        ttft_s=found.ttft_ms / 1e3,
        tpot_s=found.tpot_ms / 1e3,
        basis="memory ledger of one GPU; latency model",
    )
