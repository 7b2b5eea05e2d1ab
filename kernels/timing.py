"""How a callable is timed: rounds, medians and their bootstrap intervals, and weights that are cold as in real use.

A decode step reads every weight of the model once, so a weight is in the caches only if the whole model is. A loop over
one small weight would time the caches instead: `rotation` says over how many copies the loop must go round.
"""

from __future__ import annotations

import itertools
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


def rotation(weight_bytes: int, cache_bytes: int, most: int = 64) -> int:
    """Copies of a weight of `weight_bytes` that together exceed twice a last-level cache of `cache_bytes`."""
    if weight_bytes <= 0:
        return 1
    return max(1, min(most, -(-2 * cache_bytes // weight_bytes)))


def rotate(callables: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """One callable that runs the next of `callables` at each call."""
    if len(callables) == 1:
        return callables[0]
    turn = itertools.cycle(callables)
    return lambda: next(turn)()


def time_callable(
    fn: Callable[[], object],
    *,
    min_time_s: float = 0.002,
    rounds: int = 9,
    warmup: int = 1,
    limit_s: float = float("inf"),
    tight: float = 0.0,
    before_each: Callable[[], object] | None = None,
) -> list[float]:
    """Seconds per call of `fn`, one sample a round; a round repeats `fn` until it has lasted `min_time_s`.

    `before_each` runs, untimed, before each round, which then is one call (it empties the caches, for instance).

    Stops after `rounds`, when `limit_s` has passed since the warm-up (three samples are taken as long as that costs no
    more than four limits), or, from five samples on, when the quartiles lie within `tight` of the median.
    """
    once = 0.0
    for _ in range(max(1, warmup)):
        before = time.perf_counter()
        fn()
        once = time.perf_counter() - before
    repeats = 1 if before_each else max(1, round(min_time_s / max(once, 1e-7)))
    samples: list[float] = []
    started = time.perf_counter()
    while len(samples) < rounds:
        if before_each:
            before_each()
        before = time.perf_counter()
        for _ in range(repeats):
            fn()
        after = time.perf_counter()
        samples.append((after - before) / repeats)
        allowed = limit_s if len(samples) >= 3 else 4 * limit_s
        if after - started >= allowed or (tight and _is_tight(samples, tight)):
            break
    return samples


def _is_tight(samples: Sequence[float], tight: float) -> bool:
    ordered = sorted(samples)
    count = len(ordered)
    return count >= 5 and ordered[(3 * count) // 4] - ordered[count // 4] <= tight * ordered[count // 2]


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
