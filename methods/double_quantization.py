"""Double quantization of QLoRA (arXiv:2305.14314, section 3): the scales of blocks are rounded to 8 bits themselves.

A block of 64 weights has one float32 max|w|: 32 / 64 = 0.5 bit a parameter. Their mean is taken off, and blocks of 256 of
them take the nearest values of an 8-bit dynamic exponent type times the largest of the block:
8 / 64 + 32 / (64 * 256) = 0.127 bit a parameter. (The paper says an 8-bit float; bitsandbytes, whose numbers these are to the
code, takes the dynamic type.)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .affine import Floats
from .codebooks import dynamic, nearest

BLOCK = 256
VALUES = dynamic(8).astype(np.float32)


class Doubled(NamedTuple):
    """codes: [n] of all scales in a row, bounds: [ceil(n / 256)], offset: their mean."""

    codes: NDArray[np.uint8]
    bounds: Floats
    offset: np.float32


def doubled(scales: Floats) -> Doubled:
    """scales: any shape, read in the order of its memory."""
    flat = np.ascontiguousarray(scales, np.float32).reshape(-1)
    offset = flat.mean(dtype=np.float32)
    centred = np.zeros((-(-len(flat) // BLOCK), BLOCK), np.float32)
    centred.reshape(-1)[: len(flat)] = flat - offset
    bounds = np.abs(centred).max(axis=1)
    unit: Floats = (centred / np.where(bounds > 0, bounds, 1)[:, None]).astype(np.float32)
    return Doubled(nearest(unit, VALUES.astype(np.float64)).reshape(-1)[: len(flat)], bounds, offset)


def restored(found: Doubled) -> Floats:
    """The scales again, float32 [n]."""
    value: Floats = VALUES[found.codes] * np.repeat(found.bounds, BLOCK)[: len(found.codes)] + found.offset
    return value


def rounded(scales: Floats) -> Floats:
    """scales as they are after double quantization, in their shape."""
    return restored(doubled(scales)).reshape(scales.shape)


def bits_a_parameter(block: int) -> float:
    """What scales take after double quantization, for weights in blocks of `block`."""
    return 8 / block + 32 / (block * BLOCK)
