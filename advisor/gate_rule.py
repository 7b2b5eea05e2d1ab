"""The statistics of `advisor gate`: pure functions of paired log ratios, one per block of interleaved runs.

A block runs A B B A or B A A B, chosen by a fair coin; its log ratio is d = ln(B B / A A) / 2. If B only multiplies A's
times by a factor r, the coin alone makes the sign of d − ln r a fair coin given everything else: whatever drifts, however
heavy the tails, blocks may depend on each other (Fisher's randomisation). So ln r is bounded by signs:

*Anytime-valid interval of the median.* For θ let k of n blocks lie at or under it. Under "the median is at most θ" each
block lies above θ with probability ≤ 1/2, and betting on p > 1/2, p drawn uniformly from (1/2, 1), gives the mixture

    M(n, k) = 2 ∫_{1/2}^{1} (2p)^(n−k) (2 − 2p)^k dp = Σ_{j>k} C(n+1, j) / ((n + 1) C(n, k)),

a non-negative supermartingale with M(0, 0) = 1. By Ville's inequality it ever reaches 1/a with probability ≤ a, so all θ
that it rejected at any n may be left out for good: the interval may be looked at after every block. This is the
beta-binomial confidence sequence for a quantile of Howard and Ramdas, "Sequential estimation of quantiles with
applications to A/B testing and best-arm identification", Bernoulli 28(3), 2022 (arXiv:1906.09712), one-sided on each side
(a = alpha / 2), with Robbins' mixture (1970) truncated at 1/2. It is finite from 12 blocks on at alpha = 0.01 / 3.

*Several metrics.* Holm's step-down on those intervals: alpha / m for all; each metric whose interval excludes "not slower"
leaves its share to the others. Its p-values, 1 / max M, are valid at any stopping time, so Holm is too.

*Fixed samples* (stored results) are never peeked at: Welch's t interval of the difference of mean logs, the block as the
unit. With five blocks a rank test cannot reach alpha / 2 at all; normality of the blocks' logs is what this one assumes.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from quantadvisor.documents import GateState

ALPHA = 0.01
THRESHOLD = 0.025
"""Half of the 5 % that must be caught."""
UNBOUNDED = 50.0
"""A bound of the log ratio beyond this is none: e^50."""
MOST_BLOCKS = 4096
"""A forecast of blocks ends here."""

Logs = np.ndarray[Any, np.dtype[np.float64]]


class Bounds(NamedTuple):
    """ln of the ratio candidate / baseline and of its interval; infinite where there are too few blocks."""

    blocks: int
    middle: float
    low: float
    high: float
    alpha: float

    @property
    def empty(self) -> bool:
        """What was rejected at different times leaves nothing: the ratio did not stay the same during the run."""
        return self.low > self.high

    @property
    def noise_floor(self) -> float | None:
        """Half the width of the interval of the ratio."""
        if self.empty or max(self.high, -self.low) > UNBOUNDED:
            return None
        return (math.exp(self.high) - math.exp(self.low)) / 2


class Limits(NamedTuple):
    """What counts as slower: a share, and a part of the baseline under which nobody would notice."""

    threshold: float = THRESHOLD
    unnoticed: float = 0.0


@functools.lru_cache(maxsize=1 << 16)
def tail(n: int, alpha: float) -> int | None:
    """The most of n blocks that may lie at or under θ while θ is still rejected on one side at `alpha`; None: no θ is."""
    needed = -math.log(alpha)
    last: int | None = None
    below, term_next, term = 1, 1, 1  # Σ_{j≤k} C(n+1, j), C(n+1, k), C(n, k)
    for k in range(n // 2 + 1):
        if math.log(2 ** (n + 1) - below) - math.log((n + 1) * term) < needed:
            break
        last = k
        term_next = term_next * (n + 1 - k) // (k + 1)
        below += term_next
        term = term * (n - k) // (k + 1)
    return last


def fewest_blocks(alpha: float) -> int:
    """Blocks from which on the interval at `alpha` can be finite at all."""
    return next(n for n in itertools.count(1) if tail(n, alpha / 2) is not None)


def sequence(logs: Logs, alpha: float) -> tuple[Logs, Logs]:
    """Lower and upper bounds of the median after each block, float64 [..., n] as `logs`; they only ever tighten."""
    low, high = np.full(logs.shape, -np.inf), np.full(logs.shape, np.inf)
    for n in range(1, logs.shape[-1] + 1):
        k = tail(n, alpha / 2)
        if k is not None:
            ordered = np.partition(logs[..., :n], (k, n - 1 - k), axis=-1)
            low[..., n - 1], high[..., n - 1] = ordered[..., k], ordered[..., n - 1 - k]
    return np.maximum.accumulate(low, axis=-1), np.minimum.accumulate(high, axis=-1)


def paired(logs: Sequence[float], alpha: float = ALPHA) -> Bounds:
    """Median of the paired log ratios and its anytime-valid interval."""
    values = np.asarray(logs, dtype=np.float64)
    low, high = sequence(values, alpha)
    return Bounds(len(values), float(np.median(values)), float(low[-1]), float(high[-1]), alpha)


def welch(baseline: Sequence[float], candidate: Sequence[float], alpha: float = ALPHA) -> Bounds:
    """Difference of mean logs of independent blocks and its t interval; infinite where a side has one block."""
    from scipy.special import stdtrit

    a, b = np.asarray(baseline, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    fewest, middle = min(len(a), len(b)), float(b.mean() - a.mean())
    if fewest < 2:
        return Bounds(fewest, middle, -math.inf, math.inf, alpha)
    parts = [float(side.var(ddof=1)) / len(side) for side in (a, b)]
    error = math.sqrt(sum(parts))
    if error == 0.0:
        return Bounds(fewest, middle, middle, middle, alpha)
    freedom = sum(parts) ** 2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, (a, b), strict=True))
    reach = float(stdtrit(freedom, 1 - alpha / 2)) * error
    return Bounds(fewest, middle, middle - reach, middle + reach, alpha)


def holm(intervals: Mapping[str, Callable[[float], Bounds]], alpha: float = ALPHA) -> dict[str, Bounds]:
    """Intervals at each metric's share of `alpha`: a metric that excludes "not slower" leaves its share to the others."""
    found: dict[str, Bounds] = {}
    while open_ := [name for name in intervals if name not in found]:
        made = {name: intervals[name](alpha / len(open_)) for name in open_}
        rejected = {name: bounds for name, bounds in made.items() if bounds.low > 0}
        found |= rejected or made
    return {name: found[name] for name in intervals}


def slower(middle: Any, low: Any, limits: Limits) -> Any:
    """Regression: surely slower, by the threshold at least, and by more than goes unnoticed. Arrays or numbers of logs."""
    return (low > 0) & (middle >= math.log1p(limits.threshold)) & (middle > math.log1p(limits.unnoticed))


def not_slower(high: Any, limits: Limits) -> Any:
    """Pass: surely under twice the threshold, or surely within what goes unnoticed."""
    return high < math.log1p(max(2 * limits.threshold, limits.unnoticed))


def judge(bounds: Bounds, limits: Limits) -> GateState:
    """The rule for one time metric."""
    if bounds.empty:
        return "inconclusive"
    if slower(bounds.middle, bounds.low, limits):
        return "regression"
    return "pass" if not_slower(bounds.high, limits) else "inconclusive"


def settling_blocks(logs: Sequence[float], alpha: float, limits: Limits) -> int | None:
    """Blocks more that would decide, if those to come are spread like these; None: none up to MOST_BLOCKS would."""
    values = np.sort(np.asarray(logs, dtype=np.float64))
    if len(values) == 0:
        return None
    middle = float(np.median(values))

    def decided(n: int) -> bool:
        k = tail(n, alpha / 2)
        if k is None:
            return False
        low, high = np.quantile(values, [k / (n - 1), 1 - k / (n - 1)])
        return bool(slower(middle, low, limits) or not_slower(high, limits))

    return first_settled(decided, len(values))


def settling_blocks_unpaired(baseline: Sequence[float], candidate: Sequence[float], alpha: float, limits: Limits) -> int | None:
    """The same for stored blocks: more of them on each side."""
    from scipy.special import stdtrit

    a, b = np.asarray(baseline, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    fewest, middle = min(len(a), len(b)), float(b.mean() - a.mean())
    if fewest < 2:
        return None
    spread = math.sqrt(float(a.var(ddof=1)) + float(b.var(ddof=1)))

    def decided(n: int) -> bool:
        reach = float(stdtrit(n - 1, 1 - alpha / 2)) * spread / math.sqrt(n)
        return bool(slower(middle, middle - reach, limits) or not_slower(middle + reach, limits))

    return first_settled(decided, fewest)


def first_settled(decided: Callable[[int], bool], blocks: int) -> int | None:
    """Least n > `blocks` with `decided(n)`, taken as true from there on, less `blocks`; None beyond MOST_BLOCKS."""
    unsettled, settled = blocks, blocks + 1
    while not decided(settled):
        unsettled, settled = settled, blocks + 2 * (settled - blocks)
        if settled > MOST_BLOCKS:
            return None
    while settled - unsettled > 1:
        between = (unsettled + settled) // 2
        unsettled, settled = (unsettled, between) if decided(between) else (between, settled)
    return settled - blocks
