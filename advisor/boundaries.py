"""How far the verdict carries: the nearest output length, quality budget and memory limit at which another one wins.

Pure arithmetic on what was measured; prompts and concurrency other than the declared ones were not measured, so nothing
is said about them. TPOT is taken as it was at the declared context.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from quantadvisor.documents import Boundary, Candidate, Workload

from .decide import GIB, maximised, objective_of, ranked


def boundaries(candidates: Sequence[Candidate], choice: str, workload: Workload) -> tuple[Boundary, ...]:
    """At `at`, `winner` takes over: beyond it where `at` is above what was declared, below it where it is under."""
    feasible = ranked(candidates, workload)
    mine = next((c for c in feasible if c.name == choice), None)
    if mine is None:
        return ()
    found = output_lengths(mine, feasible, workload) if workload.objective != "concurrency" else []
    found += tighter_budget(mine, feasible, workload) + looser_budget(mine, candidates, workload)
    if workload.objective != "concurrency":
        found += smaller_memory(mine, feasible)
    return tuple(found)


def output_lengths(mine: Candidate, feasible: Sequence[Candidate], workload: Workload) -> list[Boundary]:
    """Where TTFT + (n - 1) TPOT of two candidates cross, nearest below and nearest above the declared n."""
    declared = workload.traffic.output_length
    crossings = []
    for other in feasible:
        (ttft, tpot), (their_ttft, their_tpot) = times(mine), times(other)
        if other.name != mine.name and tpot != their_tpot:
            at = 1 + (their_ttft - ttft) / (tpot - their_tpot)
            faster_beyond = their_tpot < tpot
            if at > 1 and (at > declared) == faster_beyond:
                crossings.append((at, other.name))
    above = min((c for c in crossings if c[0] > declared), default=None)
    below = max((c for c in crossings if c[0] <= declared), default=None)
    found = [Boundary(axis="output_tokens", at=round(below[0]), winner=below[1])] if below and below[0] >= 2 else []
    return found + ([Boundary(axis="output_tokens", at=round(above[0]), winner=above[1])] if above else [])


def times(candidate: Candidate) -> tuple[float, float]:
    """(TTFT, TPOT), medians, seconds."""
    measured = candidate.measured
    assert measured and measured.ttft_s and measured.tpot_s
    return measured.ttft_s.median, measured.tpot_s.median


def tighter_budget(mine: Candidate, feasible: Sequence[Candidate], workload: Workload) -> list[Boundary]:
    """The KL of the choice: a budget below it falls to the best of those with less."""
    if workload.quality.kl_mean_max is None or mine.quality is None:
        return []
    own = mine.quality.kl.mean
    winner = next((c for c in feasible if c.quality and c.quality.kl.mean < own), None)
    return [Boundary(axis="kl_mean_max", at=own, winner=winner.name)] if winner and own > 0 else []


def looser_budget(mine: Candidate, candidates: Sequence[Candidate], workload: Workload) -> list[Boundary]:
    """The least KL over the budget of a measured candidate that would otherwise beat the choice."""
    limit = workload.quality.kl_mean_max
    if limit is None:
        return []
    free = workload.model_copy(update={"quality": workload.quality.model_copy(update={"kl_mean_max": math.inf})})
    measured = [c.model_copy(update={"excluded": None}) for c in candidates if c.quality and not c.quality.simulated]
    goal = objective_of(mine)
    assert goal
    sign = 1 if maximised(workload) else -1
    over = [
        (c.quality.kl.mean, c.name)
        for c in ranked(measured, free)
        if c.quality
        and c.quality.kl.mean > limit
        and sign * (value.median if (value := objective_of(c)) else 0) > sign * goal.median
    ]
    return [Boundary(axis="kl_mean_max", at=at, winner=name) for at, name in sorted(over)[:1]]


def smaller_memory(mine: Candidate, feasible: Sequence[Candidate]) -> list[Boundary]:
    """The peak of the choice: a memory limit below it falls to the best of those with less."""
    peak = peak_of(mine)
    winner = next((c for c in feasible if peak_of(c) < peak), None)
    return [Boundary(axis="memory_limit_gib", at=peak / GIB, winner=winner.name)] if winner else []


def peak_of(candidate: Candidate) -> float:
    measured = candidate.measured
    return measured.peak_bytes.median if measured and measured.peak_bytes else math.inf
