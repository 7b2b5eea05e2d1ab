"""OBQ (arXiv:2208.11580, section 5): the exact greedy form of what GPTQ does in a fixed order, one row at a time.

Of the weights of a row not yet rounded, the one is taken whose rounding costs least, (w_q - quant(w_q))^2 / [H^-1]_qq,
and all others are moved to where the row's output error is least again: by -(w_q - quant(w_q)) / [H^-1]_qq H^-1[:, q].
Then q leaves the inverse. Outliers, weights that have moved off their grid (rounding them costs more than half a step), are
taken as soon as there are any, before others move them further off (the same section). A row of K weights takes K^3
operations, and every row has an inverse of its own: this is for small models, and for judging GPTQ.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from . import layerwise
from .affine import Floats, Grouped
from .gptq import DAMPING, mse_grid
from .layerwise import Square, damped
from .linear_format import LinearFormat
from .refusals import config
from .schemes import scheme as scheme_named
from .training import Say, silent

NAME = "obq"
TARGET: Target = "weights"
COST = "one pass of 64 calibration samples or the spec's number, layer by layer, and N K^3 operations a linear: small models only"
MOST_OPERATIONS = 1e11
TIMED_WIDTH = 512
"""Width of the rank-one update that is timed here for the estimate of a refusal: an inverse that no near cache holds."""
OFF_GRID = 0.5 + 1e-9
"""Steps from the nearest integer of the grid: half a step is the most within it, but for a float's last digits."""
SETTINGS = "OBQ: greedy order, outliers first, MSE grid, damping 0.01"


def schemes() -> tuple[Scheme, ...]:
    return (scheme_named("w4-g32"), scheme_named("w4-g64"))


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    if refused := layerwise.refuse(NAME, schemes(), model_folder, scheme, runtime):
        return refused
    count = operations(config(model_folder))
    if count > MOST_OPERATIONS:
        hours = count / operations_per_s() / 3600
        return (
            f"K^3 operations for every row of K weights, {count:.0e} here: about {hours:.0f} hours"
            " (modelled from one update timed here); gptq is its fast form"
        )
    return None


@functools.lru_cache
def operations_per_s() -> float:
    """Of the rank-one updates of an inverse, which wait for memory: the fastest of five, timed once a process."""
    inverse = np.eye(TIMED_WIDTH)
    column = inverse[:, 0].copy()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        inverse -= np.outer(column, column)
        seconds.append(time.perf_counter() - start)
    return TIMED_WIDTH**2 / min(seconds)


def operations(found: dict[str, int]) -> float:
    """Sum of N K^3 over the linears of the decoder."""
    hidden, inner = found["hidden_size"], found["intermediate_size"]
    heads = found["num_attention_heads"]
    head = found.get("head_dim") or hidden // heads
    attention = heads * head
    keys = (found.get("num_key_value_heads") or heads) * head
    reads_hidden = attention + 2 * keys + 2 * inner
    layer = reads_hidden * hidden**3 + hidden * attention**3 + hidden * inner**3
    return float(found["num_hidden_layers"] * layer)


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None, say: Say = silent, samples: int | None = None) -> tuple[str, ...]:  # fmt: skip
    return layerwise.apply(model_folder, scheme, runtime, calibration, out, base, solve, SETTINGS, say, samples)


def solve(w: Floats, h: Square, grid: LinearFormat) -> Grouped:
    """w: [N, K], h: [K, K] -> integers; grids as GPTQ's."""
    h = damped(h, DAMPING)
    scales, zeros = mse_grid(w, grid, np.diagonal(h))
    inverse = np.linalg.inv(h).astype(np.float64)
    places = np.arange(w.shape[1]) // grid.group
    rows = [greedy(row, inverse, s[places], z[places], grid.bits)[0] for row, s, z in zip(w, scales, zeros, strict=True)]
    return Grouped(np.stack(rows), scales, zeros)


def greedy(row: Floats, inverse: Square, scales: NDArray[np.floating], zeros: NDArray[np.uint8],
           bits: int) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:  # fmt: skip
    """row, scales, zeros: [K], inverse: H^-1 [K, K] -> (codes [K], the order in which they were taken [K])."""
    w, inverse = row.astype(np.float64), inverse.copy()
    middle, top = zeros.astype(np.float64), (1 << bits) - 1
    left = np.ones(len(w), bool)
    codes, order = np.empty(len(w), np.uint8), np.empty(len(w), np.intp)
    for turn in range(len(w)):
        nearest = np.clip(np.rint(w / scales) + middle, 0, top)
        error = w - (nearest - middle) * scales
        outliers = left & (np.abs(error) > OFF_GRID * scales)
        some = outliers if outliers.any() else left
        cost = np.full(len(w), np.inf)
        cost[some] = error[some] ** 2 / np.diagonal(inverse)[some]
        q = int(cost.argmin())
        codes[q], order[turn], left[q] = nearest[q], q, False
        direction = inverse[:, q] / inverse[q, q]
        w -= error[q] * direction
        inverse -= np.outer(direction, inverse[q])
    return codes, order
