"""GPTQ (arXiv:2210.17323): one column after the other is rounded, and the columns still to come make up for its error.

With H the Hessian of a linear's output error and V the upper Cholesky factor of H^-1 (H^-1 = V^T V), rounding column i
of w by e = (w_i - q_i) / V_ii  takes  e V_ij  off every later column j (Algorithm 1). Here without an inverse, in the form
which QuIP proves to give the same integers (arXiv:2307.13304, theorem 6): with  H = U D U^T,  U unit upper triangular, column
j is rounded as  w_j + sum_{i<j} (w_i - q_i) U_ij,  w being what it was before any correction. Columns come by falling H_ii
("act-order"), so that those that count most are rounded while many others can still make up for them.

Groups keep their places: their grids are fixed before the first column is rounded ("static groups"), so that runtimes
whose groups are neighbours hold the result of any order. Each grid is the range shrunk by the factor that costs least
under the diagonal of H ("MSE grid"). H is damped by 1 % of its mean diagonal.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from . import layerwise
from .affine import Codes, Floats, Grouped, group_grid, in_groups, rounded_groups
from .layerwise import Square, damped
from .linear_format import LinearFormat
from .schemes import EVEN, named
from .training import Say, silent

NAME = "gptq"
TARGET: Target = "weights"
COST = "one pass of 64 calibration samples or the spec's number, layer by layer, and K^3 + N K^2 operations a linear"
DAMPING = 0.01
BLOCK = 16
"""Columns that correct each other one by one; corrections between more of them are matrix products (section 3.3, step 2)."""
ALONE = 512
"""Products with fewer columns run on one thread: a few hundred a linear, each over before a second thread has come."""
SHRINK = tuple(1 - 0.03 * step for step in range(14))
SETTINGS = "GPTQ: act-order, static groups, MSE grid, damping 0.01"


def schemes() -> tuple[Scheme, ...]:
    half = (f"{name}-bf16" for name in ("w4-g32", "w4-g64", *EVEN))
    return named("w4-g32", "w4-g64", "w4-g128", *EVEN, "w3-g64", "w8-g64", *half)


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    return layerwise.refuse(NAME, schemes(), model_folder, scheme, runtime)


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None, say: Say = silent, samples: int | None = None) -> tuple[str, ...]:  # fmt: skip
    return layerwise.apply(model_folder, scheme, runtime, calibration, out, base, solve, SETTINGS, say, samples)


def rounded(model_folder: Path, scheme: Scheme, calibration: NDArray[int64]) -> dict[str, Floats]:
    """{linear: the weights [N, K] that its integers stand for}."""
    return layerwise.rounded(model_folder, scheme, calibration, solve)


def solve(w: Floats, h: Square, grid: LinearFormat, shrink: tuple[float, ...] = SHRINK) -> Grouped:
    """w: [N, K], h: [K, K] -> integers, with every choice of this module's docstring. shrink = (1,): min-max grids."""
    h = damped(h, DAMPING)
    importance = np.diagonal(h)
    order = np.argsort(-importance, kind="stable")
    scales, zeros = mse_grid(w, grid, importance, shrink)
    return sweep(w, feedback(h, order), order, scales, zeros, grid)


def feedback(h: Square, order: NDArray[np.intp]) -> Floats:
    """U unit upper triangular with h = U D U^T, D diagonal, rows and columns of h in `order`: the Cholesky factor from the last
    on, its columns scaled."""
    import torch

    last_first = torch.from_numpy(order[::-1].copy())
    lower, failed = torch.linalg.cholesky_ex(torch.from_numpy(h).index_select(0, last_first).index_select(1, last_first))
    if failed:
        raise np.linalg.LinAlgError(f"the leading block of {int(failed)} is not positive definite")
    factor: Floats = (lower / lower.diagonal()).float().flip(0, 1).numpy()
    return factor


def mse_grid(w: Floats, grid: LinearFormat, importance: NDArray[np.float64],
             shrink: tuple[float, ...] = SHRINK) -> tuple[Floats, Codes]:  # fmt: skip
    """Scales and zeros [N, G]: of every group the shrunk range with the least  sum_k importance_k (w_k - q_k)^2."""
    grouped = in_groups(w, grid.group)
    weights = in_groups(importance[None].astype(np.float32), grid.group)
    low, high = grouped.min(axis=-1), grouped.max(axis=-1)
    best_scales, best_zeros = group_grid(low, high, grid.bits, grid.symmetric)
    least = np.full(low.shape, np.inf, np.float32)
    for factor in shrink:
        scales, zeros = group_grid(low * np.float32(factor), high * np.float32(factor), grid.bits, grid.symmetric)
        error = rounded_groups(grouped, scales, zeros, grid.bits)
        error -= grouped
        cost = np.einsum("ngk,gk->ng", np.square(error, out=error), weights[0])
        better = cost < least
        best_scales[better], best_zeros[better] = scales[better], zeros[better]
        least = np.minimum(least, cost)
    return best_scales, best_zeros


def sweep(w: Floats, factor: Floats, order: NDArray[np.intp], scales: Floats, zeros: Codes, grid: LinearFormat) -> Grouped:
    """w: [N, K], factor: [K, K] of the ordered Hessian, scales and zeros: [N, G] -> integers, columns taken in `order`.

    The first half is rounded, its errors correct the second half in one matrix product, then that is rounded; each half
    likewise, down to blocks in which every column is corrected by the block's own errors when its turn comes.
    """
    import torch

    columns = np.ascontiguousarray(w.T[order])
    moved, errors, rounded = columns.copy(), np.empty_like(columns), np.empty_like(columns)
    at = order // grid.group
    step, zero = np.ascontiguousarray(scales.T), np.ascontiguousarray(zeros.T).astype(np.float32)
    low, high = -zero, np.float32((1 << grid.bits) - 1) - zero
    left, made, factors = (torch.from_numpy(array) for array in (moved, errors, factor))

    for start, middle, end in halves(0, len(columns)):
        if middle < end:
            with nullcontext() if middle - start >= ALONE else one_thread():
                left[middle:end].addmm_(factors[start:middle, middle:end].T, made[start:middle])
            continue
        for i, g in enumerate(at[start:end].tolist(), start):
            code = np.rint(moved[i] / step[g], out=rounded[i])
            np.minimum(np.maximum(code, low[g], out=code), high[g], out=code)
            np.subtract(columns[i], code * step[g], out=errors[i])
            moved[i + 1 : end] += factor[i, i + 1 : end, None] * errors[i]
    codes = np.empty(w.shape, np.uint8)
    codes[:, order] = (rounded + zero[at]).T
    return Grouped(codes, scales, zeros)


def halves(start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(start, middle, end) in turn: where middle < end, what is rounded before the middle corrects what comes after it; else the
    columns from start to end are a block, to be rounded one by one."""
    if end - start <= BLOCK:
        yield start, end, end
        return
    half = (start + end) // 2
    yield from halves(start, half)
    yield start, half, end
    yield from halves(half, end)


@contextmanager
def one_thread() -> Iterator[None]:
    """torch's products on the calling thread alone."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
