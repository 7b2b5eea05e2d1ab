"""The static range [a, b] of a tensor from a sample of its values: how much of the tails a grid is not to cover. Pure.

    minmax      all of it
    percentile  without 0.01 % of the values, half of them on either side (as onnxruntime's percentile 99.99)
    entropy     the symmetric cut of a histogram with the least KL between the values and the values merged into 128 levels
                (S. Migacz, "8-bit inference with TensorRT", GTC 2017), inside the extremes
    mse         the shrunk range whose affine grid has the least mean square error

An affine grid always holds 0 (`affine.py`), so that a range of positive values still starts at 0.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .affine import Floats, affine_grid, quantize

Counts = NDArray[np.int64]
Clip = Literal["minmax", "percentile", "entropy", "mse"]
CLIPS: tuple[Clip, ...] = get_args(Clip)
TAIL = 0.005
"""Per cent of the values cut off on either side."""
BINS, LEVELS = 2048, 128
SHRINK = tuple(1 - step / 100 for step in range(90))
SMALL = 1e-4
"""Count that empty bins get, taken from the others: KL is infinite where q is zero and p is not."""


def limits(x: Floats, clip: Clip, bits: int = 8, counts: Counts | None = None) -> tuple[float, float]:
    """x: any shape -> (a, b). `counts`: how many values each of x stands for, of x's shape; None: itself."""
    low, high = float(x.min()), float(x.max())
    if clip == "minmax" or low == high:
        return low, high
    if clip == "percentile":
        a, b = np.percentile(x, (TAIL, 100 - TAIL)) if counts is None else percentiles(x, counts, (TAIL, 100 - TAIL))
        return float(a), float(b)
    if clip == "entropy":
        cut = entropy_cut(x, counts)
        return max(low, -cut), min(high, cut)
    low, high = min(low, 0.0), max(high, 0.0)
    return min(((low * f, high * f) for f in SHRINK), key=lambda ends: rounding_error(x, ends[0], ends[1], bits, counts))


def percentiles(x: Floats, counts: Counts, shares: tuple[float, ...]) -> Floats:
    """As np.percentile of the values written out, each as often as it counts."""
    order = np.argsort(x, axis=None)
    last = np.cumsum(counts.reshape(-1)[order]) - 1
    first = last - counts.reshape(-1)[order] + 1
    places = np.stack([first, last], 1).reshape(-1)
    found: Floats = np.interp(np.asarray(shares) / 100 * last[-1], places, np.repeat(x.reshape(-1)[order], 2))
    return found


def rounding_error(x: Floats, low: float, high: float, bits: int, counts: Counts | None = None) -> float:
    """Mean square error of x on the affine grid of [low, high]."""
    top = (1 << bits) - 1
    scale, zero = affine_grid(np.asarray(low, np.float32), np.asarray(high, np.float32), 0, top)
    rounded = (quantize(x, scale, zero, 0, top) - zero).astype(np.float32) * scale
    return float(np.average(np.square(rounded - x), weights=counts))


def entropy_cut(x: Floats, counts: Counts | None = None) -> float:
    """t of the range [-t, t] with the least KL, on a histogram over [-max|x|, max|x|]."""
    bound = float(np.abs(x).max())
    filled, edges = np.histogram(x, BINS, (-bound, bound), weights=counts)
    return float(edges[least_divergent(filled.astype(np.int64), LEVELS)])


def least_divergent(counts: NDArray[np.int64], levels: int) -> int:
    """Index of the edge above the middle at which the histogram is best cut on both sides."""
    middle = len(counts) // 2
    cuts = range(levels // 2, middle + 1)
    return min(middle + min(cuts, key=lambda reach: divergence(counts, middle, reach, levels)) + 1, len(counts))


def divergence(counts: NDArray[np.int64], middle: int, reach: int, levels: int) -> float:
    """KL(p || q) in nats of keeping the bins at most `reach` from the middle: p has what lies beyond in its end bins, q is
    the same part in `levels` levels, each spread evenly over its bins that p fills (whole counts, as the source has it)."""
    first, last = middle - reach, min(middle + reach + 1, len(counts))
    inside = counts[first:last]
    p = inside.copy()
    p[0] += counts[:first].sum()
    p[-1] += counts[last:].sum()
    wide = len(inside) // levels
    level = np.minimum(np.arange(len(inside)) // wide, levels - 1)
    regular = np.arange(len(inside)) < levels * wide
    total = np.bincount(level, inside, levels)
    filled = np.bincount(level, (p != 0) & regular, levels)
    spread = np.floor(np.divide(total, filled, out=np.zeros(levels), where=filled > 0))
    smooth_p, smooth_q = smoothed(p.astype(np.float64)), smoothed(np.where(regular, spread[level], 0.0))
    if smooth_p is None or smooth_q is None:
        return float("inf")
    return float((smooth_p * np.log(smooth_p / smooth_q)).sum())


def smoothed(counts: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Counts -> probabilities, with SMALL in every empty bin, taken evenly from the others; None where they have too little."""
    empty = counts == 0
    filled = len(counts) - int(empty.sum())
    if filled == 0:
        return None
    moved = np.where(empty, SMALL, counts - SMALL * empty.sum() / filled)
    probability: NDArray[np.float64] = moved / moved.sum()
    return probability if (moved > 0).all() else None
