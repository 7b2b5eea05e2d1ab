"""TurboQuant's two tables (arXiv:2504.19874), which its method and its kernel share: the codebook and the rotation."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


@functools.cache
def codebook(bits: int) -> NDArray[np.float64]:
    """The 2**bits values, ascending, of least mean squared error for N(0, 1): each is the mean of its cell (Max 1960).

    Cells are bounded half way between values; the fixed point is found by iteration, 1 to 4 bits.
    """
    if not 1 <= bits <= 4:
        raise ValueError(f"{bits} bits; a codebook has 1 to 4")
    half = np.linspace(0.5, 2.5, 2 ** (bits - 1))
    for _ in range(20_000):
        edges = [0.0, *(half[1:] + half[:-1]) / 2, math.inf]
        density = [math.exp(-e * e / 2) / math.sqrt(2 * math.pi) for e in edges]
        below = [math.erf(e / math.sqrt(2)) / 2 for e in edges]
        moved = -np.diff(density) / np.diff(below)
        if np.abs(moved - half).max() < 1e-13:
            break
        half = moved
    return np.concatenate([-half[::-1], half])


@functools.cache
def rotation(width: int, seed: int = 0) -> Any:
    """A Haar-distributed rotation, float32 torch [width, width]: QR of a normal matrix, signs made unique (Mezzadri 2006)."""
    import torch

    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))
    return torch.from_numpy((q * np.sign(np.diag(r))).astype(np.float32))
