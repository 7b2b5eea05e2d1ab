"""LLM.int8(): y[M, N] = x[M, K] @ w[N, K].T, outlier columns of x in 16 bits, the rest in INT8, one pass. Never run on a GPU.

x: float16 or bfloat16 [M, K]; w: int8 [N, K] with scales float32 [N], max|w| / 127 of each row. A column of x is an
outlier where any of its M values is not below the threshold (6.0; NaN and infinities are not). The token's scale is the
largest of its values below the threshold / 127, and codes of outlier columns are zero:

    y = (codes @ w.T * x_scales + x[:, outliers] @ w[:, outliers].T) * w_scales

Sums of codes are exact in int32 (K up to 131,071); outlier products are exact, their sums float32. Weights are kept as INT8
only, and those of outlier columns read back from it.

Regime: prefill and large batches of models whose activations have few loud channels. Where bitsandbytes gathers the
outlier columns into a second product, which needs their number on the host, a step over K here that meets one multiplies
its tile a second time in 16 bits: no list, no wait, a CUDA graph can hold it; the weights are read once. Its cost is a
branch a step, and twice the arithmetic of steps with an outlier: with outliers in all of them it is slower than W8A16.
Source: arXiv:2208.07339.
"""

from dataclasses import dataclass

import triton
import triton.language as tl

from .triton_launch import (
    LAUNCH,
    Case,
    Tensor,
    Tile,
    check,
    finished,
    output,
    planned,
    signed_float,
    sixteen_bit,
    target,
)

THRESHOLD = 6.0
MOST_K = (1 << 17) - 1


@triton.jit(do_not_specialize=["M"])
def outliers_kernel(x, outliers, M, K, THRESHOLD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """One tile of columns a program: 1 where any row's value is not below the threshold."""
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    m = tl.arange(0, BLOCK_M)
    found = tl.zeros((BLOCK_K,), tl.int32)
    for start in range(0, M, BLOCK_M):
        inside = (start + m < M)[:, None] & (k < K)[None, :]
        size = tl.abs(tl.load(x + (start + m)[:, None] * K + k[None, :], mask=inside, other=0.0).to(tl.float32))
        found = tl.maximum(found, tl.max(tl.where(size < THRESHOLD, 0, 1), 0))
    tl.store(outliers + k, found.to(tl.int8), mask=k < K)


@triton.jit(do_not_specialize=["M"])
def quantize_rest_kernel(x, outliers, q, scales, M, K, THRESHOLD: tl.constexpr, BLOCK: tl.constexpr):
    """One row a program: codes of what is in no outlier column, half to even."""
    row = tl.program_id(0)
    largest = 0.0
    for start in range(0, K, BLOCK):
        at = start + tl.arange(0, BLOCK)
        size = tl.abs(tl.load(x + row * K + at, mask=at < K, other=0.0).to(tl.float32))
        largest = tl.maximum(largest, tl.max(tl.where(size < THRESHOLD, size, 0.0), 0))
    factor = tl.div_rn(127.0, tl.where(largest > 0, largest, 1.0))
    factor = tl.where(factor < float("inf"), factor, 0.0)
    for start in range(0, K, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * K + at, mask=at < K, other=0.0).to(tl.float32)
        kept = tl.load(outliers + at, mask=at < K, other=0) == 0
        ratio = tl.minimum(tl.maximum(tl.where(kept, value, 0.0) * factor, -127.0), 127.0)
        rounded = (ratio + 12582912.0) - 12582912.0  # 1.5 * 2^23: the sum has no bits left for a fraction
        tl.store(q + row * K + at, rounded.to(tl.int8), mask=at < K)
    tl.store(scales + row, tl.div_rn(largest, 127.0))


@triton.jit(do_not_specialize=["M"])
def llm_int8_kernel(
    x,
    q,
    outliers,
    w,
    x_scales,
    w_scales,
    y,
    M,
    N,
    K,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of one part of K: program (tile of N, tile of M, part)."""
    split = tl.program_id(2)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    j = tl.arange(0, BLOCK_K)
    row, column = m < M, n < N
    at = m[:, None] * K + j[None, :]
    w_at = w + n[None, :] * K + j[:, None]
    codes = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    loud = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(split * BLOCK_K, K, SPLITS * BLOCK_K):
        inside = k + j < K
        q_tile = tl.load(q + at + k, mask=row[:, None] & inside[None, :], other=0)
        w_tile = tl.load(w_at + k, mask=column[None, :] & inside[:, None], other=0)
        codes = tl.dot(q_tile, w_tile, codes)
        outlier = tl.load(outliers + k + j, mask=inside, other=0).to(tl.int32) != 0
        if tl.max(outlier.to(tl.int32), 0) != 0:
            x_tile = tl.load(x + at + k, mask=row[:, None] & outlier[None, :], other=0.0)
            loud = tl.dot(x_tile, signed_float(w_tile, x.dtype.element_ty), loud)
    x_scale = tl.load(x_scales + m, mask=row, other=0.0)
    w_scale = tl.load(w_scales + n, mask=column, other=0.0)
    total = (codes.to(tl.float32) * x_scale[:, None] + loud) * w_scale[None, :]
    y_at = y + split * M * N + m[:, None] * N + n[None, :]
    tl.store(y_at, total.to(y.dtype.element_ty), mask=row[:, None] & column[None, :])


@dataclass(frozen=True)
class Decomposed:
    """x: [M, K] as it came; codes: int8 [M, K], scales: float32 [M], outliers: int8 [K], 1 where the column is one."""

    x: Tensor
    codes: Tensor
    scales: Tensor
    outliers: Tensor


def decompose(x: Tensor) -> Decomposed:
    import torch

    sixteen_bit(x)
    check(x)
    m, k = x.shape
    outliers = torch.empty(k, dtype=torch.int8, device=x.device)
    codes = torch.empty((m, k), dtype=torch.int8, device=x.device)
    scales = torch.empty(m, dtype=torch.float32, device=x.device)
    if m and k:
        tile = {"THRESHOLD": THRESHOLD, "BLOCK_M": 32, "BLOCK_K": 64}
        outliers_kernel[(triton.cdiv(k, 64),)](x, outliers, m, k, **tile, num_warps=4, **LAUNCH)
        quantize_rest_kernel[(m,)](x, outliers, codes, scales, m, k, THRESHOLD=THRESHOLD, BLOCK=1024, num_warps=4, **LAUNCH)
    return Decomposed(x, codes, scales, outliers)


EXCEPTIONS: dict[tuple[int, int, int], Tile] = {}
"""(rows, 0, sm) whose usual tile spills or asks for too much: what compiles there without."""


def tile_for(m: int, sm: int) -> Tile:
    """Static choice by registers and shared memory, not by time: nothing was timed."""
    rows = 16 if m <= 16 else 64
    usual = {16: Tile(16, 64, 128, warps=4, stages=3), 64: Tile(64, 64, 64, warps=4, stages=3)}
    return EXCEPTIONS.get((rows, 0, sm), usual[rows])


def llm_int8(a: Decomposed, w: Tensor, w_scales: Tensor, *, tile: Tile | None = None, splits: int | None = None) -> Tensor:
    """y: [M, N] in x's type."""
    check(a.x, a.codes, w, w_scales)
    (m, k), n = a.x.shape, w.shape[0]
    if w.shape[1] != k or w_scales.shape != (n,):
        raise ValueError(f"x {tuple(a.x.shape)}, w {tuple(w.shape)} and {len(w_scales)} scales do not fit")
    if k > MOST_K:
        raise ValueError(f"K = {k} may overflow int32 sums; at most {MOST_K}")
    tile, grid = planned("llm-int8", a.x, (m, n, k), tile or tile_for(m, target(a.x)), tile, splits)
    y, written = output(a.x, m, n, grid[2], a.x.dtype)
    if m and n:
        llm_int8_kernel[grid](
            a.x, a.codes, a.outliers, w, a.scales, w_scales, written, m, n, k,
            SPLITS=grid[2], BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k, **tile.launch,
        )  # fmt: skip
    return finished(y, written, grid[2])


def cases(sm: int) -> list[Case]:
    columns = {"x": "*bf16", "outliers": "*i8", "M": "i32", "K": "i32"}
    tile = {"THRESHOLD": THRESHOLD, "BLOCK_M": 32, "BLOCK_K": 64}
    rows = {**columns, "q": "*i8", "scales": "*fp32"}
    made = [
        Case("llm-int8/outliers", outliers_kernel, columns, tile, 4, 3, None, ("M",)),
        Case("llm-int8/quantize", quantize_rest_kernel, rows, {"THRESHOLD": THRESHOLD, "BLOCK": 1024}, 4, 3, None, ("M",)),
    ]
    for m in (1, 512):
        shape, splits = tile_for(m, sm), 8 if m == 1 else 1
        signature = {"x": "*bf16", "q": "*i8", "outliers": "*i8", "w": "*i8", "x_scales": "*fp32", "w_scales": "*fp32",
                     "y": "*fp32" if splits > 1 else "*bf16", "M": "i32", "N": "i32", "K": "i32"}  # fmt: skip
        constants = {"SPLITS": splits, "BLOCK_M": shape.m, "BLOCK_N": shape.n, "BLOCK_K": shape.k}
        name = f"llm-int8/m{m}"
        made.append(Case(name, llm_int8_kernel, signature, constants, shape.warps, shape.stages, "int8+bf16", ("M",)))
    return made
