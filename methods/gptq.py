"""GPTQ (arXiv:2210.17323): one column after the other is rounded, and the columns still to come make up for its error.

With H the Hessian of a linear's output error and U the upper Cholesky factor of H^-1 (H^-1 = U^T U), rounding column i
of w by e = (w_i - q_i) / U_ii  takes  e U_ij  off every later column j (Algorithm 1). Columns come by falling H_ii
("act-order"), so that those that count most are rounded while many others can still make up for them.

Groups keep their places: their grids are fixed before the first column is rounded ("static groups"), so that runtimes
whose groups are neighbours hold the result of any order. Each grid is the range shrunk by the factor that costs least
under the diagonal of H ("MSE grid"). H is damped by 1 % of its mean diagonal.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from . import layerwise
from .affine import Codes, Floats, Grouped, group_grid, in_groups
from .layerwise import Grid, Square, damped
from .schemes import scheme as scheme_named

NAME = "gptq"
TARGET: Target = "weights"
COST = "one forward pass of 64 calibration samples, layer by layer, and K^3 + N K^2 operations a linear"
DAMPING = 0.01
BLOCK = 128
"""Columns whose corrections to later blocks are made at once, as one matrix product (section 3.3, step 2)."""
SHRINK = tuple(1 - 0.03 * step for step in range(14))
SETTINGS = "GPTQ: act-order, static groups, MSE grid, damping 0.01"


def schemes() -> tuple[Scheme, ...]:
    return tuple(scheme_named(name) for name in ("w4-g32", "w4-g64", "w4-g128", "w3-g64", "w8-g64", "w4-g32-bf16", "w4-g64-bf16"))


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    return layerwise.refuse(NAME, schemes(), model_folder, scheme, runtime)


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None) -> tuple[str, ...]:  # fmt: skip
    return layerwise.apply(model_folder, scheme, runtime, calibration, out, base, solve, SETTINGS)


def rounded(model_folder: Path, scheme: Scheme, calibration: NDArray[int64]) -> dict[str, Floats]:
    """{linear: the weights [N, K] that its integers stand for}."""
    return layerwise.rounded(model_folder, scheme, calibration, solve)


def solve(w: Floats, h: Square, grid: Grid) -> Grouped:
    """w: [N, K], h: [K, K] -> integers, with every choice of this module's docstring."""
    h = damped(h, DAMPING)
    importance = np.diagonal(h)
    order = np.argsort(-importance, kind="stable")
    scales, zeros = mse_grid(w, grid, importance)
    return sweep(w, inverse_factor(h[np.ix_(order, order)]), order, scales, zeros, grid)


def inverse_factor(h: Square) -> Floats:
    """U upper triangular with h^-1 = U^T U, without inverting h: h = R R^T with R upper triangular, and U = R^-1."""
    from scipy.linalg import solve_triangular

    upper = np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
    factor: Floats = solve_triangular(upper, np.eye(len(h)), check_finite=False).astype(np.float32)
    return factor


def mse_grid(w: Floats, grid: Grid, importance: NDArray[np.float64]) -> tuple[Floats, Codes]:
    """Scales and zeros [N, G]: of every group the shrunk range with the least  sum_k importance_k (w_k - q_k)^2."""
    grouped = in_groups(w, grid.group)
    weights = in_groups(importance[None].astype(np.float32), grid.group)
    low, high = grouped.min(axis=-1), grouped.max(axis=-1)
    top = np.float32((1 << grid.bits) - 1)
    best_scales, best_zeros = group_grid(low, high, grid.bits, grid.symmetric)
    least = np.full(low.shape, np.inf, np.float32)
    for factor in SHRINK:
        scales, zeros = group_grid(low * np.float32(factor), high * np.float32(factor), grid.bits, grid.symmetric)
        middle = zeros[..., None].astype(np.float32)
        error = np.rint(grouped / scales[..., None])
        np.clip(error, -middle, top - middle, out=error)
        error *= scales[..., None]
        error -= grouped
        cost = np.einsum("ngk,gk->ng", np.square(error, out=error), weights[0])
        better = cost < least
        best_scales[better], best_zeros[better] = scales[better], zeros[better]
        least = np.minimum(least, cost)
    return best_scales, best_zeros


def sweep(w: Floats, factor: Floats, order: NDArray[np.intp], scales: Floats, zeros: Codes, grid: Grid) -> Grouped:
    """w: [N, K], factor: [K, K] of the ordered Hessian, scales and zeros: [N, G] -> integers, columns taken in `order`.

    Within a block, column i is corrected just before it is rounded by all errors of the block so far; later blocks are
    corrected at its end.
    """
    columns = np.ascontiguousarray(w.T[order])
    step, middle = np.ascontiguousarray(scales.T), np.ascontiguousarray(zeros.T).astype(np.float32)
    top = np.float32((1 << grid.bits) - 1)
    width = len(columns)
    codes = np.empty(w.shape[::-1], np.uint8)
    for start in range(0, width, BLOCK):
        end = min(start + BLOCK, width)
        errors = np.empty((end - start, len(w)), np.float32)
        for i in range(start, end):
            at = int(order[i]) // grid.group
            column = columns[i] - factor[start:i, i] @ errors[: i - start]
            code = np.clip(np.rint(column / step[at]) + middle[at], 0, top)
            codes[order[i]] = code
            errors[i - start] = (column - (code - middle[at]) * step[at]) / factor[i, i]
        columns[end:] -= factor[start:end, end:].T @ errors
    return Grouped(np.ascontiguousarray(codes.T), scales, zeros)
