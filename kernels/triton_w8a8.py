"""y[M, N] = x[M, K] @ w[N, K].T in INT8: activations scaled per token, weights per output channel. Never run on a GPU.

x: int8 [M, K] with scales float32 [M] from `quantize`; w: int8 [N, K] with scales float32 [N]. Sums are exact in int32 (K
up to 131,071); the scales multiply them once in float32.

Regime: prefill and large batches, where arithmetic outweighs reading and INT8 has twice the peak of bf16; at small M the
kernel splits K as the weight-only kernels do. Source: per-token x per-channel scales as in SmoothQuant (arXiv:2211.10438)
and ZeroQuant (arXiv:2206.01861).

A row that holds NaN or an infinity has the scale NaN, so that its outputs are NaN and not plausible numbers.
"""

from typing import Any

import triton
import triton.language as tl

from .triton_launch import LAUNCH, Case, Tensor, Tile, check, finished, output, splits_for, target

MOST_K = (1 << 17) - 1


@triton.jit(do_not_specialize=["M"])
def quantize_int8_kernel(x, q, scales, M, K, BLOCK: tl.constexpr):
    """One row a program: scale = largest / 127, codes rounded half to even."""
    row = tl.program_id(0)
    largest = 0.0
    broken = 0
    for start in range(0, K, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * K + at, mask=at < K, other=0.0).to(tl.float32)
        size = tl.abs(value)
        largest = tl.maximum(largest, tl.max(size, 0))
        broken = tl.maximum(broken, tl.max(tl.where(size < float("inf"), 0, 1), 0))
    scale = tl.div_rn(largest, 127.0)
    usable = (broken == 0) & (scale > 0)
    divisor = tl.where(usable, scale, 1.0)
    for start in range(0, K, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * K + at, mask=at < K, other=0.0).to(tl.float32)
        ratio = tl.div_rn(tl.where(usable, value, 0.0), divisor)
        ratio = tl.minimum(tl.maximum(ratio, -127.0), 127.0)
        rounded = (ratio + 12582912.0) - 12582912.0  # 1.5 * 2^23: the sum has no bits left for a fraction
        tl.store(q + row * K + at, rounded.to(tl.int8), mask=at < K)
    tl.store(scales + row, tl.where(broken == 0, scale, float("nan")))


@triton.jit(do_not_specialize=["M"])
def w8a8_kernel(
    x,
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
    x_at = x + m[:, None] * K + j[None, :]
    w_at = w + n[None, :] * K + j[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for k in range(split * BLOCK_K, K, SPLITS * BLOCK_K):
        inside = k + j < K
        x_tile = tl.load(x_at + k, mask=row[:, None] & inside[None, :], other=0)
        w_tile = tl.load(w_at + k, mask=column[None, :] & inside[:, None], other=0)
        total = tl.dot(x_tile, w_tile, total)
    x_scale = tl.load(x_scales + m, mask=row, other=0.0)
    w_scale = tl.load(w_scales + n, mask=column, other=0.0)
    scaled = total.to(tl.float32) * x_scale[:, None] * w_scale[None, :]
    y_at = y + split * M * N + m[:, None] * N + n[None, :]
    tl.store(y_at, scaled.to(y.dtype.element_ty), mask=row[:, None] & column[None, :])


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x: [M, K] -> int8 [M, K], scales float32 [M]. A row of zeros has the scale 0."""
    import torch

    check(x)
    m, k = x.shape
    q = torch.empty((m, k), dtype=torch.int8, device=x.device)
    scales = torch.empty(m, dtype=torch.float32, device=x.device)
    if m:
        quantize_int8_kernel[(m,)](x, q, scales, m, k, BLOCK=1024, num_warps=4, **LAUNCH)
    return q, scales


EXCEPTIONS: dict[tuple[int, int, int], Tile] = {}
"""(rows, 0, sm) whose usual tile spills or asks for too much: what compiles there without."""


def tile_for(m: int, sm: int) -> Tile:
    """Static choice by registers and shared memory, not by time: nothing was timed."""
    rows = 16 if m <= 16 else 64 if m <= 64 else 128
    usual = {
        16: Tile(16, 64, 128, warps=4, stages=4),
        64: Tile(64, 64, 128, warps=4, stages=3),
        128: Tile(128, 128, 128, warps=8, stages=3),
    }
    return EXCEPTIONS.get((rows, 0, sm), usual[rows])


def w8a8(
    x: Tensor,
    x_scales: Tensor,
    w: Tensor,
    w_scales: Tensor,
    dtype: Any,
    *,
    tile: Tile | None = None,
    splits: int | None = None,
) -> Tensor:
    """y: [M, N] as `dtype`."""
    check(x, w, x_scales, w_scales)
    (m, k), n = x.shape, w.shape[0]
    if w.shape[1] != k or x_scales.shape != (m,) or w_scales.shape != (n,):
        raise ValueError(f"x {tuple(x.shape)}, w {tuple(w.shape)}, {len(x_scales)} and {len(w_scales)} scales do not fit")
    if k > MOST_K:
        raise ValueError(f"K = {k} may overflow int32 sums; at most {MOST_K}")
    tile = tile or tile_for(m, target(x))
    grid = (triton.cdiv(n, tile.n), triton.cdiv(m, tile.m))
    splits = splits or splits_for(x, grid[0] * grid[1], triton.cdiv(k, tile.k))
    y, written = output(x, m, n, splits, dtype)
    if m and n:
        w8a8_kernel[(*grid, splits)](
            x, w, x_scales, w_scales, written, m, n, k,
            SPLITS=splits, BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k, **tile.launch,
        )  # fmt: skip
    return finished(y, written, splits)


def cases(sm: int) -> list[Case]:
    row = {"x": "*bf16", "q": "*i8", "scales": "*fp32", "M": "i32", "K": "i32"}
    made = [Case("w8a8/quantize", quantize_int8_kernel, row, {"BLOCK": 1024}, 4, 3, None, ("M",))]
    for m in (1, 64, 512):
        tile, splits = tile_for(m, sm), 8 if m == 1 else 1
        signature = {"x": "*i8", "w": "*i8", "x_scales": "*fp32", "w_scales": "*fp32", "y": "*fp32" if splits > 1 else "*bf16",
                     "M": "i32", "N": "i32", "K": "i32"}  # fmt: skip
        constants = {"SPLITS": splits, "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k}
        made.append(Case(f"w8a8/m{m}", w8a8_kernel, signature, constants, tile.warps, tile.stages, "int8", ("M",)))
    return made
