"""Where to clip a tensor of which only a histogram is known: percentile, and entropy (KL) as TensorRT does it.

Histograms are even around zero: `counts` of equal bins from -edge to edge. Clipping gives the many values between the
bounds a finer step, and makes the few beyond wrong. Which is better depends on what the few do: in language models they
often steer attention, so extremes are kept unless one of these is asked for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
BINS = 2048
LEVELS = 128
"""Levels that the entropy method rounds to while it compares: TensorRT's figure for 8 bits."""
PERCENTILE = 99.99
LEAST = 1e-4
"""Probability mass given to an empty bin, taken from the others: KL is infinite where q is zero and p is not."""


def percentile_range(counts: Counts, edge: float, percentile: float = PERCENTILE) -> tuple[float, float]:
    """Bounds that leave (100 - percentile) / 2 % out on each side, to a bin."""
    share = np.cumsum(counts / counts.sum())
    cut = (100 - percentile) / 200
    left, right = np.searchsorted(share, [cut, 1 - cut])
    edges = np.linspace(-edge, edge, len(counts) + 1)
    return float(edges[left]), float(edges[right])


def entropy_range(counts: Counts, edge: float, levels: int = LEVELS) -> tuple[float, float]:
    """The bounds -t, t of least KL between the clipped histogram and the same at `levels` levels (Migacz, GTC 2017)."""
    middle = len(counts) // 2
    edges = np.linspace(-edge, edge, len(counts) + 1)
    best, at = np.inf, middle
    for half in range(levels // 2, middle + 1):
        first, last = middle - half, min(middle + half + 1, len(counts))
        found = clipped_kl(counts, first, last, levels)
        if found < best:
            best, at = found, half
    return float(edges[middle - at]), float(edges[min(middle + at + 1, len(counts))])


def clipped_kl(counts: Counts, first: int, last: int, levels: int) -> float:
    """KL(p || q) in nats: p is counts[first:last] with what lies beyond put into its end bins, q the same part in `levels`
    levels, each spread evenly over its bins that p fills."""
    inside = counts[first:last]
    p = inside.copy()
    p[0] += counts[:first].sum()
    p[-1] += counts[last:].sum()
    wide = len(inside) // levels
    level = np.minimum(np.arange(len(inside)) // wide, levels - 1)
    total = np.bincount(level, inside, levels)
    regular = np.arange(len(inside)) < levels * wide
    filled = np.bincount(level, (p != 0) & regular, levels)
    spread = np.floor(np.divide(total, filled, out=np.zeros(levels), where=filled > 0))
    q = np.where(regular, spread[level], 0.0)
    smooth_p, smooth_q = smoothed(p.astype(float)), smoothed(q)
    if smooth_p is None or smooth_q is None:
        return float(np.inf)
    smooth_p, smooth_q = smooth_p / smooth_p.sum(), smooth_q / smooth_q.sum()
    return float((smooth_p * np.log(smooth_p / smooth_q)).sum())


def smoothed(counts: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The distribution with LEAST in every empty bin, taken evenly from the others; None where they have too little."""
    empty = counts == 0
    filled = len(counts) - int(empty.sum())
    if filled == 0:
        return None
    taken = LEAST * empty.sum() / filled
    if taken >= 1:
        return None
    moved: NDArray[np.float64] = np.where(empty, LEAST, counts - taken)
    return moved if (moved > 0).all() else None
