"""Who wins over context x concurrency, and how far the declared point is from where that changes. Pure.

The rivals are the schemes on the chosen runtime and number of GPUs. A scheme wins a point if it fits there, meets the SLO
and has the best objective; within `TIE` of the best the better quality wins, since a ratio of two predictions of one
model on one GPU is that much in doubt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quantadvisor.documents import MapPoint, PlanBoundary, Workload
from quantadvisor.profiling.gpu_memory import sequence_bytes

from .plan_candidates import SCHEMES, Option
from .serving_fit import Parameters
from .serving_model import Prediction, predict_cases
from .serving_work import Case

TIE = 0.05
CONTEXTS = tuple(2**i for i in range(9, 18))
CONCURRENCIES = tuple(2**i for i in range(0, 11))
STEP, FARTHEST = 1.05, 64.0
"""Of the search for a boundary: factors on the declared context or concurrency."""

Point = tuple[int, int]
"""Context in tokens, requests in flight."""


def decision_map(rivals: Sequence[Option], workload: Workload, parameters: Parameters) -> tuple[MapPoint, ...]:
    """Winner at every power of two, contexts up to the model's own."""
    longest = rivals[0].placement.shard.inventory.max_context_tokens or CONTEXTS[-1]
    contexts = [one for one in CONTEXTS if workload.traffic.output_length < one <= longest]
    points = [(context, users) for context in contexts for users in CONCURRENCIES]
    return tuple(
        MapPoint(context_tokens=context, concurrency=users, winner=name, over_unquantized=gain)
        for (context, users), (name, gain) in zip(points, winners(points, rivals, workload, parameters), strict=True)
    )


def boundaries(option: Option, rivals: Sequence[Option], workload: Workload, parameters: Parameters) -> tuple[PlanBoundary, ...]:
    """The nearest change of the winner above and below the declared point on each axis."""
    traffic = workload.traffic
    context, users = traffic.prompt_length + traffic.output_length, traffic.concurrency
    longest = option.placement.shard.inventory.max_context_tokens or CONTEXTS[-1]
    factors = STEP ** np.arange(1, np.log(FARTHEST) / np.log(STEP))
    found = []
    for up in (True, False):
        scales = factors if up else 1 / factors
        along = [("concurrency", round(users * f), (context, round(users * f))) for f in scales if round(users * f) >= 1]
        contexts = [round(context * f) for f in scales]
        fine = [one for one in contexts if traffic.output_length < one <= longest]
        along += [("context", one, (one, users)) for one in fine]
        for axis in ("concurrency", "context"):
            steps = [(at, point) for name, at, point in along if name == axis]
            found += change(axis, context if axis == "context" else users, steps, option, rivals, workload, parameters)
    return tuple(found)


def change(
    axis: str,
    declared: int,
    steps: Sequence[tuple[int, Point]],
    option: Option,
    rivals: Sequence[Option],
    workload: Workload,
    parameters: Parameters,
) -> list[PlanBoundary]:
    """The first step where another one wins, or none fits."""
    names = [name for name, _ in winners([point for _, point in steps], rivals, workload, parameters)]
    for (at, _), name in zip(steps, names, strict=True):
        if name != option.candidate.scheme and at != declared:
            return [PlanBoundary.model_validate({"axis": axis, "at": at, "factor": at / declared, "winner": name or "nothing"})]
    return []


def winners(
    points: Sequence[Point], rivals: Sequence[Option], workload: Workload, parameters: Parameters
) -> list[tuple[str | None, float | None]]:
    """(scheme that wins, its objective over unquantized's as a speed-up) at each point."""
    if not points:
        return []
    cases = [case(one, users, workload, context) for context, users in points for one in rivals]
    found = predict_cases(parameters, cases)
    size, made = len(rivals), []
    for i, point in enumerate(points):
        made.append(winner(point, rivals, found[i * size : (i + 1) * size], workload))
    return made


def winner(
    point: Point, rivals: Sequence[Option], found: Sequence[Prediction], workload: Workload
) -> tuple[str | None, float | None]:
    context, users = point
    costs: dict[str, float] = {}
    for one, predicted in zip(rivals, found, strict=True):
        room = one.memory.cache_bytes / sequence_bytes(one.placement.shard, one.placement.scheme, context)
        if room >= users and within(predicted, workload):
            costs[one.candidate.scheme] = cost(predicted, room, workload)
    if not costs:
        return None, None
    best = min(costs.values())
    name = min((one for one, value in costs.items() if value <= best * (1 + TIE)), key=SCHEMES.index)
    return name, costs["bf16"] / costs[name] if "bf16" in costs else None


def cost(found: Prediction, room: float, workload: Workload) -> float:
    """What the objective makes small, at a fixed concurrency: a request's milliseconds, or the inverse of what fits."""
    if workload.objective == "concurrency":
        return 1 / room
    return found.ttft_ms + (workload.traffic.output_length - 1) * found.tpot_ms


def case(option: Option, concurrency: float, workload: Workload, context: int | None = None) -> Case:
    """The declared traffic at another concurrency, or with prompts that make another context."""
    traffic = workload.traffic
    prompt = traffic.prompt_length if context is None else max(1, context - traffic.output_length)
    prefix = min(traffic.shared_prefix_tokens, prompt - 1)
    return Case(option.placement, concurrency, prompt - prefix, traffic.output_length, prefix)


def within(found: Prediction, workload: Workload) -> bool:
    """Inside the SLO, by the means: percentiles are not modelled."""
    slo = workload.slo
    return slo is None or all(
        wanted is None or value <= wanted for value, wanted in ((found.ttft_ms, slo.ttft_ms), (found.tpot_ms, slo.tpot_ms))
    )
