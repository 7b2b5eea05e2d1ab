"""The number types of "k-bit inference scaling laws" (arXiv:2212.09720) as codebooks: sorted values in [-1, 1]. Pure.

    int        2^k - 1 equal steps: -1, …, 0, …, 1
    EeMm       sign, e exponent and m mantissa bits, IEEE subnormals, no infinities, no NaN; divided by the largest value
    quantile   every code as likely as any other under N(0, 1): the medians of 2^k bins of equal mass; it has no zero
    nf         NF4 of QLoRA (arXiv:2305.14314) and its likes: 2^(k-1) quantiles above zero, 2^(k-1) - 1 below, and zero
    dynamic    sign, then zeros that count decades down from 1, an indicator bit, and a linear fraction in what is left
               (arXiv:1511.04561): the exponent takes as many bits as the number needs

Three grids go by the name FP4: this one is E2M1 as OCP has it (smallest value 1/12 of the largest); the map of
`bitsandbytes.functional.create_fp8_map` has smaller subnormals (1/48), its `fp4` type smaller ones still (1/192).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .affine import Floats, in_groups, refuse_not_finite

Codebook = NDArray[np.float64]


def integers(bits: int) -> Codebook:
    return np.linspace(-1, 1, 2**bits - 1)


def floats(exponent_bits: int, mantissa_bits: int) -> Codebook:
    """+-(0 or 1 + fraction) 2^max(exponent, 1), over the largest."""
    fraction = np.arange(2**mantissa_bits) / 2**mantissa_bits
    exponent = np.arange(2**exponent_bits)[:, None]
    magnitude = ((exponent > 0) + fraction) * 2.0 ** np.maximum(exponent, 1)
    return mirrored(magnitude.reshape(-1) / magnitude.max())


def quantiles(bits: int) -> Codebook:
    """norm.ppf((i + 1/2) / 2^k), over the largest."""
    from scipy.stats import norm

    return over_largest(norm.ppf((np.arange(2**bits) + 0.5) / 2**bits))


def normal_floats(bits: int) -> Codebook:
    """norm.ppf at equal steps from 1/2 to 1 - (1 / 2^(k+1) + 1 / (2^(k+1) - 2)) / 2, on either side, over the largest."""
    from scipy.stats import norm

    half = 2 ** (bits - 1)
    edge = 1 - (1 / (4 * half) + 1 / (4 * half - 2)) / 2
    above = norm.ppf(np.linspace(edge, 0.5, half + 1)[:-1])
    below = -norm.ppf(np.linspace(edge, 0.5, half)[:-1])
    return over_largest(np.sort(np.concatenate([above, [0.0], below])))


def dynamic(bits: int) -> Codebook:
    """Decade d below 1 keeps bits - 2 - d of fraction: the middles of that many equal parts of [0.1, 1]; and 0 and 1."""
    decades = []
    for decade in range(bits - 1):
        edges = np.linspace(0.1, 1, 2 ** (bits - 2 - decade) + 1)
        decades.append(10.0**-decade * (edges[:-1] + edges[1:]) / 2)
    return np.sort(np.concatenate([mirrored(np.concatenate(decades)), [0.0, 1.0]]))


def over_largest(values: Codebook) -> Codebook:
    scaled: Codebook = values / values.max()
    return scaled


def mirrored(magnitude: Codebook) -> Codebook:
    """Both signs of every value, sorted; 0 once."""
    values: Codebook = np.unique(np.concatenate([magnitude, -magnitude]))
    return values


def nearest(x: Floats, codebook: Codebook) -> NDArray[np.uint8]:
    """x: any shape -> index of the nearest value of the codebook (at most 256 values)."""
    between = ((codebook[1:] + codebook[:-1]) / 2).astype(np.float32)
    return np.searchsorted(between, x).astype(np.uint8)


class Blocks(NamedTuple):
    """Weights on a codebook, in blocks along K: codes [N, K] and max|w| of every block [N, ceil(K / block)]."""

    codes: NDArray[np.uint8]
    bounds: Floats


def to_blocks(w: Floats, codebook: Codebook, block: int) -> Blocks:
    """w: [N, K] -> the nearest value of the codebook times max|w| of its block."""
    groups = in_groups(w, block)
    bounds = np.abs(groups).max(axis=-1)
    refuse_not_finite(bounds)
    unit: Floats = (groups / np.where(bounds > 0, bounds, 1)[..., None]).astype(np.float32)
    return Blocks(nearest(unit, codebook).reshape(len(w), -1)[:, : w.shape[1]], bounds)


def from_blocks(blocks: Blocks, codebook: Codebook, block: int) -> Floats:
    """float32 [N, K]"""
    wide = np.repeat(blocks.bounds, block, axis=1)[:, : blocks.codes.shape[1]]
    value: Floats = codebook.astype(np.float32)[blocks.codes] * wide
    return value


def quantize_blocks(w: Floats, codebook: Codebook, block: int, centred: bool = False) -> Floats:
    """w: [N, K] -> float32 [N, K] on the codebook, times max|w| of every block of `block` neighbours of one row.

    `centred`: a block's mean is taken off first and put back after, at the cost of 16 more bits a block.
    """
    values = codebook.astype(np.float32)
    result = np.empty_like(w)
    for start in range(0, w.shape[1], block):
        part = w[:, start : start + block]
        middle: Floats = part.mean(axis=1, keepdims=True) if centred else np.zeros((len(w), 1), np.float32)
        bound = np.abs(part - middle).max(axis=1, keepdims=True)
        refuse_not_finite(bound)
        unit = ((part - middle) / np.where(bound > 0, bound, 1)).astype(np.float32)
        result[:, start : start + block] = values[nearest(unit, codebook)] * bound + middle
    return result
