"""How callables are timed: in turns, round by round; medians and their bootstrap intervals.

A decode step reads every weight of the model once, so a weight is in the caches only if the whole model is. A loop over
one small weight would time the caches instead: products of different weights take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from quantadvisor.documents import Figure, KernelTiming
from quantadvisor.documents.base import NumberClass

RESAMPLES = 1000
SEED = 0


def figure(samples: Sequence[float], kind: NumberClass = "measured", source: str = "") -> Figure:
    """Median of `samples` and its 95 % percentile-bootstrap interval; fixed seed: same samples, same figure."""
    import numpy as np

    if len(samples) == 0:
        raise ValueError("a figure needs at least one sample")
    values = np.asarray(samples, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"samples must be finite, found {list(values[~np.isfinite(values)])[:3]}")
    chosen = np.random.default_rng(SEED).integers(0, len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(np.median(values[chosen], axis=1), [2.5, 97.5])
    median = float(np.median(values))
    return Figure(
        median=median,
        low=min(float(low), median),
        high=max(float(high), median),
        samples=tuple(float(value) for value in values),
        kind=kind,
        source=source,
    )


def time_in_turns(
    calls: Sequence[Callable[[], object]],
    *,
    rounds: int = 9,
    limit_s: float = float("inf"),
    tight: float = 0.0,
    once: bool = False,
    min_time_s: float = 0.002,
    before_round: Callable[[], object] | None = None,
) -> list[list[float]]:
    """Seconds per call of each of `calls`, one sample a round: they take turns, each repeated until it lasted `min_time_s`.

    With `once` each is called once a round, so that it finds in the caches what the others left there; `before_round` runs
    untimed before each round (it empties the caches, for instance). Ends after `rounds`, when `limit_s` has passed since the
    warm-up (three rounds are taken as long as they cost no more than four limits), or, from three rounds on, when the
    quartiles of all lie within `tight` of their medians. A warm-up that takes half the limit is a round too.
    """
    warm = [_last_of_two(call) for call in calls]
    repeats = [1 if once else max(1, round(min_time_s / max(seconds, 1e-7))) for seconds in warm]
    samples: list[list[float]] = [[seconds] if 2 * sum(warm) > limit_s else [] for seconds in warm]
    started = time.perf_counter()
    while len(samples[0]) < rounds:
        if before_round:
            before_round()
        for call, times, found in zip(calls, repeats, samples, strict=True):
            before = time.perf_counter()
            for _ in range(times):
                call()
            found.append((time.perf_counter() - before) / times)
        spent = time.perf_counter() - started
        if spent >= (limit_s if len(samples[0]) >= 3 else 4 * limit_s) or (
            tight and all(_is_tight(one, tight) for one in samples)
        ):
            break
    return samples


LONG_S = 0.01
"""A first call that took longer need not be repeated to warm up: what it set up is small beside its work."""


def _last_of_two(call: Callable[[], object]) -> float:
    """Seconds of a call that warms up, or of the one after it where that is cheap."""
    for _ in range(2):
        before = time.perf_counter()
        call()
        took = time.perf_counter() - before
        if took > LONG_S:
            break
    return took


def _is_tight(samples: Sequence[float], tight: float) -> bool:
    ordered = sorted(samples)
    count = len(ordered)
    return count >= 3 and ordered[(3 * count) // 4] - ordered[count // 4] <= tight * ordered[count // 2]


def elasticity(timings: Sequence[KernelTiming], m: int | None = None) -> float:
    """d log t / d log M of one kernel at one (N, K), around `m` (None: over all its M).

    0: flat, bound by reading the weights; 1: proportional, bound by arithmetic. Needs timings at two M at least; around
    `m`, the nearest M below and the nearest above it are used, or the two nearest on one side where it is an end.
    """
    import math

    points = sorted({(t.m, t.time_s.median) for t in timings if t.time_s is not None})
    if len({m_ for m_, _ in points}) < 2:
        raise ValueError(f"elasticity needs timings at two M, found {[m_ for m_, _ in points]}")
    if m is not None:
        above = [p for p in points if p[0] > m]
        below = [p for p in points if p[0] < m]
        here = [p for p in points if p[0] == m]
        points = (below or here)[-1:] + (above or here)[:1]
        if len(points) < 2 or points[0][0] == points[1][0]:
            raise ValueError(f"elasticity around M = {m} needs timings on both sides of it or at it")
    xs = [math.log(p[0]) for p in points]
    ys = [math.log(p[1]) for p in points]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / sum((x - mean_x) ** 2 for x in xs)
