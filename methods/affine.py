"""Affine rounding to nearest (RTN): the arithmetic that every integer method here shares. Pure numpy.

A range [a, b] and codes qmin..qmax give S = (b - a) / (qmax - qmin), Z = R(qmin - a / S); then q = clip(R(x / S) + Z)
and x~ = S (q - Z). R rounds half to even. The range always contains 0, so 0 is exact. Symmetric: S = max|x| / qmax with
qmax = 2**(bits - 1) - 1. Codes are stored unsigned, as MatMulNBits stores them: symmetric means Z = 2**(bits - 1).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]


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


def quantize_groups(w: Floats, bits: int, group_size: int, symmetric: bool) -> tuple[Codes, Floats, Codes]:
    """w: [N, K] -> codes [N, K] (unsigned), scales [N, G], zeros [N, G], with G = ceil(K / group_size).

    A group is `group_size` neighbours of one row, which share S and Z; the last group of a row may be shorter.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"{bits} bits; 2 to 8 are supported")
    rows, width = w.shape
    grouped = np.zeros((rows, -(-width // group_size), group_size), np.float32)
    grouped.reshape(rows, -1)[:, :width] = w
    top = (1 << bits) - 1
    if symmetric:
        bound = np.abs(grouped).max(axis=-1)
        half = 1 << (bits - 1)
        scale = np.where(bound > 0, bound / np.float32(half - 1), np.float32(1)).astype(np.float32)
        zero = np.full(scale.shape, half, np.int32)
    else:
        scale, zero = affine_grid(grouped.min(axis=-1), grouped.max(axis=-1), 0, top)
    grouped /= scale[..., None]
    np.rint(grouped, out=grouped)
    grouped += zero[..., None].astype(np.float32)
    np.clip(grouped, 0, top, out=grouped)
    codes = grouped.reshape(rows, -1)[:, :width].astype(np.uint8)
    return codes, scale, zero.astype(np.uint8)


def dequantize_groups(codes: Codes, scales: Floats, zeros: Codes, group_size: int) -> Floats:
    """The inverse up to rounding: codes [N, K], scales and zeros [N, G] -> float32 [N, K]."""
    width = codes.shape[1]
    scale = np.repeat(scales, group_size, axis=1)[:, :width]
    zero = np.repeat(zeros, group_size, axis=1)[:, :width].astype(np.float32)
    value: Floats = (codes.astype(np.float32) - zero) * scale
    return value


def quantize_channels(w: Floats) -> tuple[NDArray[np.int8], Floats]:
    """w: [N, K] -> int8 codes in -127..127 and scales [N] = max|row| / 127: symmetric, one scale per output channel."""
    bound = np.abs(w).max(axis=1)
    scale = np.where(bound > 0, bound / np.float32(127), np.float32(1)).astype(np.float32)
    return np.rint(w / scale[:, None]).astype(np.int8), scale


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
