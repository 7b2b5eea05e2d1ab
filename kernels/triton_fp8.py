"""y[M, N] = x[M, K] @ w[N, K].T in FP8 E4M3: activations scaled per token, weights per output channel. Never run on a GPU.

x: float8_e4m3fn [M, K] with scales float32 [M] from `quantize`; w: float8_e4m3fn [N, K] with scales float32 [N]. Products
are summed in float32; on sm_90, whose instruction adds in fewer bits, every 128 products go through a float32 add
(`max_num_imprecise_acc`). Needs sm_89 or newer.

Regime: as W8A8, with a format that keeps outliers better (3 mantissa bits, largest 448). Tiles of 16 rows become fp16
products on sm_90 and sm_100 (compiling shows HMMA): decode saves bytes there, not arithmetic; from 64 rows the FP8
instruction is used. Source: E4M3 as in arXiv:2209.05433; scales per token and channel as in vLLM's and torchao's dynamic FP8.

A row that holds NaN or an infinity has the scale NaN, so that its outputs are NaN and not plausible numbers.
"""

from typing import Any

import triton
import triton.language as tl

from .triton_launch import LAUNCH, Case, Tensor, Tile, capability, check, finished, output, splits_for, target

LARGEST = 448.0


@triton.jit(do_not_specialize=["M"])
def quantize_fp8_kernel(x, q, scales, M, K, BLOCK: tl.constexpr):
    """One row a program: scale = largest / 448, codes rounded half to even by the conversion itself."""
    row = tl.program_id(0)
    largest = 0.0
    broken = 0
    for start in range(0, K, BLOCK):
        at = start + tl.arange(0, BLOCK)
        size = tl.abs(tl.load(x + row * K + at, mask=at < K, other=0.0).to(tl.float32))
        largest = tl.maximum(largest, tl.max(size, 0))
        broken = tl.maximum(broken, tl.max(tl.where(size < float("inf"), 0, 1), 0))
    scale = tl.div_rn(largest, 448.0)
    usable = (broken == 0) & (scale > 0)
    divisor = tl.where(usable, scale, 1.0)
    for start in range(0, K, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * K + at, mask=at < K, other=0.0).to(tl.float32)
        ratio = tl.div_rn(tl.where(usable, value, 0.0), divisor)
        ratio = tl.minimum(tl.maximum(ratio, -448.0), 448.0)
        tl.store(q + row * K + at, ratio.to(tl.float8e4nv), mask=at < K)
    tl.store(scales + row, tl.where(broken == 0, scale, float("nan")))


@triton.jit(do_not_specialize=["M"])
def fp8_kernel(
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
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(split * BLOCK_K, K, SPLITS * BLOCK_K):
        inside = k + j < K
        x_tile = tl.load(x_at + k, mask=row[:, None] & inside[None, :], other=0.0)
        w_tile = tl.load(w_at + k, mask=column[None, :] & inside[:, None], other=0.0)
        total = tl.dot(x_tile, w_tile, total, max_num_imprecise_acc=128)
    x_scale = tl.load(x_scales + m, mask=row, other=0.0)
    w_scale = tl.load(w_scales + n, mask=column, other=0.0)
    scaled = total * x_scale[:, None] * w_scale[None, :]
    y_at = y + split * M * N + m[:, None] * N + n[None, :]
    tl.store(y_at, scaled.to(y.dtype.element_ty), mask=row[:, None] & column[None, :])


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x: [M, K] -> float8_e4m3fn [M, K], scales float32 [M]. A row of zeros has the scale 0."""
    import torch

    check(x)
    m, k = x.shape
    q = torch.empty((m, k), dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(m, dtype=torch.float32, device=x.device)
    if m:
        quantize_fp8_kernel[(m,)](x, q, scales, m, k, BLOCK=1024, num_warps=4, **LAUNCH)
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


def fp8(
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
    if x.is_cuda and capability(x) < 89:
        raise ValueError(f"sm_{capability(x)} has no FP8 E4M3 instruction; sm_89 or newer is needed")
    tile = tile or tile_for(m, target(x))
    grid = (triton.cdiv(n, tile.n), triton.cdiv(m, tile.m))
    splits = splits or splits_for(x, grid[0] * grid[1], triton.cdiv(k, tile.k))
    y, written = output(x, m, n, splits, dtype)
    if m and n:
        fp8_kernel[(*grid, splits)](
            x, w, x_scales, w_scales, written, m, n, k,
            SPLITS=splits, BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k, **tile.launch,
        )  # fmt: skip
    return finished(y, written, splits)


def cases(sm: int) -> list[Case]:
    if sm < 89:
        return []
    row = {"x": "*bf16", "q": "*fp8e4nv", "scales": "*fp32", "M": "i32", "K": "i32"}
    made = [Case("fp8/quantize", quantize_fp8_kernel, row, {"BLOCK": 1024}, 4, 3, None, ("M",))]
    for m in (1, 64, 512):
        tile, splits = tile_for(m, sm), 8 if m == 1 else 1
        signature = {"x": "*fp8e4nv", "w": "*fp8e4nv", "x_scales": "*fp32", "w_scales": "*fp32",
                     "y": "*fp32" if splits > 1 else "*bf16", "M": "i32", "N": "i32", "K": "i32"}  # fmt: skip
        constants = {"SPLITS": splits, "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k}
        matrix = "fp16" if m == 1 and sm in (90, 100) else "fp8"
        made.append(Case(f"fp8/m{m}", fp8_kernel, signature, constants, tile.warps, tile.stages, matrix, ("M",)))
    return made
