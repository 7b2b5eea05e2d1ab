"""Affine rounding to nearest (RTN): the arithmetic that every integer method here shares. Pure numpy.

A range [a, b] and codes qmin..qmax give S = (b - a) / (qmax - qmin), Z = R(qmin - a / S); then q = clip(R(x / S) + Z)
and x~ = S (q - Z). R rounds half to even. The range always contains 0, so 0 is exact. Symmetric: S = max|x| / qmax with
qmax = 2**(bits - 1) - 1. Codes are stored unsigned, as MatMulNBits stores them: symmetric means Z = 2**(bits - 1).

For x in [-1.5, 2.5] to int8, S = 4 / 255 and Z = -32, so that 0 becomes -32, 1.0 becomes 32 and 2.5 becomes 127. A worked
example that circulates takes q = R(x / S) - Z with this Z, and gets 96 for 1.0: a sign error (with the minus, Z is +32).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantadvisor.documents.errors import CandidateFailed

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]
LARGEST_HALF = float(np.finfo(np.float16).max)


class Grouped(NamedTuple):
    """Integer weights in groups along K: codes [N, K], scales [N, G] and zeros [N, G], with G = ceil(K / group_size)."""

    codes: Codes
    scales: Floats
    zeros: Codes


def affine_grid(low: Floats, high: Floats, qmin: int, qmax: int) -> tuple[Floats, NDArray[np.int32]]:
    """Ranges -> (S float32, Z int32) of the same shape. An empty range gets S = 1."""
    low, high = np.minimum(low, 0).astype(np.float32), np.maximum(high, 0).astype(np.float32)
    scale = (high - low) / np.float32(qmax - qmin)
    scale = np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
    return scale, np.rint(qmin - low / scale).astype(np.int32)


def quantize(x: Floats, scale: Floats, zero: NDArray[np.int32], qmin: int, qmax: int) -> NDArray[np.int32]:
    """q = clip(R(x / S) + Z, qmin, qmax); scale and zero broadcast against x."""
    codes: NDArray[np.int32] = np.clip(np.rint(x / scale).astype(np.int32) + zero, qmin, qmax)
    return codes


def quantize_groups(w: Floats, bits: int, group_size: int, symmetric: bool) -> Grouped:
    """w: [N, K] -> codes [N, K] (unsigned), scales [N, G], zeros [N, G], with G = ceil(K / group_size).

    A group is `group_size` neighbours of one row, which share S and Z; the last group of a row may be shorter.
    """
    grouped = in_groups(w, group_size)
    scales, zeros = group_grid(grouped.min(axis=-1), grouped.max(axis=-1), bits, symmetric)
    return Grouped(round_groups(w, scales, zeros, bits, group_size), scales, zeros)


def in_groups(w: Floats, group_size: int) -> Floats:
    """w: [N, K] -> a copy [N, G, group_size], the last group of a row filled up with zeros."""
    rows, width = w.shape
    grouped = np.zeros((rows, -(-width // group_size), group_size), np.float32)
    grouped.reshape(rows, -1)[:, :width] = w
    return grouped


def group_grid(low: Floats, high: Floats, bits: int, symmetric: bool) -> tuple[Floats, Codes]:
    """Ranges [N, G] -> scales and zeros [N, G] of unsigned codes; symmetric: the larger of |low| and |high| counts."""
    if not 2 <= bits <= 8:
        raise ValueError(f"{bits} bits; 2 to 8 are supported")
    refuse_not_finite(low, high)
    if not symmetric:
        scale, zero = affine_grid(low, high, 0, (1 << bits) - 1)
        return scale, zero.astype(np.uint8)
    half = 1 << (bits - 1)
    bound = np.maximum(np.abs(low), np.abs(high))
    scale = np.where(bound > 0, bound / np.float32(half - 1), np.float32(1)).astype(np.float32)
    return scale, np.full(scale.shape, half, np.uint8)


def nearest(w: Floats, bits: int, group_size: int, symmetric: bool) -> Floats:
    """w: [N, K] -> what the integers of `quantize_groups` stand for, float32 [N, K], to the bit, without making them."""
    value: Floats = nearest_groups(in_groups(w, group_size), bits, symmetric).reshape(len(w), -1)[:, : w.shape[1]]
    return value


def nearest_groups(groups: Floats, bits: int, symmetric: bool) -> Floats:
    """groups: [N, G, g] -> the same, each on the grid of its own range."""
    scales, zeros = group_grid(groups.min(axis=-1), groups.max(axis=-1), bits, symmetric)
    return rounded_groups(groups, scales, zeros, bits)


def round_groups(w: Floats, scales: Floats, zeros: Codes, bits: int, group_size: int) -> Codes:
    """w: [N, K] -> codes [N, K] on given grids [N, G]."""
    grouped = in_groups(w, group_size)
    grouped /= scales[..., None]
    np.rint(grouped, out=grouped)
    grouped += zeros[..., None].astype(np.float32)
    np.clip(grouped, 0, (1 << bits) - 1, out=grouped)
    codes: Codes = grouped.reshape(len(w), -1)[:, : w.shape[1]].astype(np.uint8)
    return codes


def rounded_groups(groups: Floats, scales: Floats, zeros: Codes, bits: int) -> Floats:
    """groups: [N, G, g] on given grids [N, G] -> what their codes stand for, without making the codes."""
    middle = zeros[..., None].astype(np.float32)
    value: Floats = groups / scales[..., None]
    np.rint(value, out=value)
    np.maximum(value, -middle, out=value)
    np.minimum(value, np.float32((1 << bits) - 1) - middle, out=value)
    value *= scales[..., None]
    return value


def dequantize_groups(codes: Codes, scales: Floats, zeros: Codes, group_size: int) -> Floats:
    """The inverse up to rounding: codes [N, K], scales and zeros [N, G] -> float32 [N, K]."""
    width = codes.shape[1]
    scale = np.repeat(scales, group_size, axis=1)[:, :width]
    zero = np.repeat(zeros, group_size, axis=1)[:, :width].astype(np.float32)
    value: Floats = (codes.astype(np.float32) - zero) * scale
    return value


def quantize_channels(w: Floats, most: int = 127) -> tuple[NDArray[np.int8], Floats]:
    """w: [N, K] -> int8 codes in -most..most and scales [N] = max|row| / most: symmetric, one scale per output channel."""
    bound = np.abs(w).max(axis=1)
    refuse_not_finite(bound)
    scale = np.where(bound > 0, bound / np.float32(most), np.float32(1)).astype(np.float32)
    return np.rint(w / scale[:, None]).astype(np.int8), scale


def signed_channels(given: Grouped) -> tuple[NDArray[np.int8], Floats]:
    """Integers of 8 bits about 128, a row one group: int8 codes [N, K] about 0 and scales [N]."""
    return (given.codes ^ np.uint8(128)).view(np.int8), given.scales[:, 0]


def refuse_not_finite(*bounds: Floats | float, name: str = "weights") -> None:
    """A NaN or an infinity among weights is in the extremes of its group, and would be in every logit."""
    if not all(np.isfinite(bound).all() for bound in bounds):
        raise CandidateFailed(f"{name}: values that are not finite (NaN or infinite) are in no artifact; mend the model")


def refuse_beyond_half(name: str, largest: float) -> None:
    """A float16 holds no more than 65504: beyond, it would be an infinity."""
    if largest > LARGEST_HALF:
        raise CandidateFailed(f"{name} holds {largest:.3g}, beyond float16: take bfloat16 or float32, or a runtime that does")


def fake_activations(x: Floats) -> Floats:
    """x: any shape -> x rounded to 8 bits with ONE range for the whole tensor: what DynamicQuantizeLinear does."""
    scale, zero = affine_grid(x.min(), x.max(), 0, 255)
    codes = quantize(x, scale, zero, 0, 255)
    rounded: Floats = (codes - zero).astype(np.float32) * scale
    return rounded


def fake_tokens(x: Floats) -> Floats:
    """x: [T, K] -> x rounded to symmetric 8 bits with one scale per token: max|row| / 127."""
    bound = np.abs(x).max(axis=-1, keepdims=True)
    scale = np.where(bound > 0, bound / np.float32(127), np.float32(1)).astype(np.float32)
    rounded: Floats = np.rint(x / scale) * scale
    return rounded
