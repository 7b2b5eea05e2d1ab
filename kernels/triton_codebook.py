"""y[M, N] = x[M, K] @ w[N, K].T where a weight is a 4-bit code into 16 values, times a scale per group. Never run on a GPU.

One kernel for NF4 and FP4 (arXiv:2305.14314), quantile and dynamic-exponent codebooks (arXiv:2110.02861), or one that was
fitted: the 16 values are an argument. x: float16 or bfloat16 [M, K]; w: bytes [N, pairs * group] as `pack_pairs` lays them
out; codebook: float32 [16]; scales: [groups, N] (the absolute maximum of a block, for NF4); group 32, 64 or 128.

Regime: decode, 4.25 to 4.5 bits a weight. The codebook is rounded to x's type once (for bfloat16 that moves a value by up
to 2^-9 of itself: a property of 16-bit products, the reference does the same) and sits in shared memory or registers;
scales multiply the float32 sum of a group. Looking up replaces the arithmetic that affine INT4 needs, so it is not slower
by nature, and not claimed to be fast either.
"""

from typing import Any

import triton
import triton.language as tl

from .triton_launch import (
    Case,
    Tensor,
    Tile,
    check,
    finished,
    output,
    pack_groups,
    pack_pairs,
    planned,
    sixteen_bit,
    target,
)

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


@triton.jit
def looked_up(table, codes, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """table: [16], codes: uint8 [ROWS, COLUMNS] -> values of the same shape."""
    flat = tl.reshape(codes.to(tl.int32), (ROWS * COLUMNS,))
    return tl.reshape(tl.gather(table, flat, 0), (ROWS, COLUMNS))


@triton.jit(do_not_specialize=["M", "PAIRS"])
def codebook_kernel(
    x,
    w,
    codebook,
    scales,
    y,
    M,
    N,
    K,
    PAIRS,
    GROUP: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One tile of one part of K: program (tile of N, tile of M, part)."""
    split = tl.program_id(2)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    j = tl.arange(0, GROUP)
    row, column = m[:, None] < M, n < N
    table = tl.load(codebook + tl.arange(0, 16)).to(x.dtype.element_ty)
    x_at = x + m[:, None] * K + j[None, :]
    w_at = w + n[None, :] * (PAIRS * GROUP) + j[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for pair in range(split, PAIRS, SPLITS):
        k = 2 * pair * GROUP
        both = tl.load(w_at + pair * GROUP, mask=column[None, :], other=0)
        x_low = tl.load(x_at + k, mask=row & (k + j < K)[None, :], other=0.0)
        x_high = tl.load(x_at + k + GROUP, mask=row & (k + GROUP + j < K)[None, :], other=0.0)
        s_low = tl.load(scales + 2 * pair * N + n, mask=column, other=0.0).to(tl.float32)
        s_high = tl.load(scales + (2 * pair + 1) * N + n, mask=column, other=0.0).to(tl.float32)
        total += tl.dot(x_low, looked_up(table, both & 15, GROUP, BLOCK_N)) * s_low[None, :]
        total += tl.dot(x_high, looked_up(table, both >> 4, GROUP, BLOCK_N)) * s_high[None, :]
    y_at = y + split * M * N + m[:, None] * N + n[None, :]
    tl.store(y_at, total.to(y.dtype.element_ty), mask=row & column[None, :])


def quantile_codebook(sample: Any) -> tuple[float, ...]:
    """16 values at equally likely quantiles of `sample` (numpy, any shape), scaled to the largest size 1."""
    import numpy as np

    values = np.quantile(np.asarray(sample, np.float64), (np.arange(16) + 0.5) / 16)
    return tuple(float(value) for value in values / np.abs(values).max())


def dynamic_codebook() -> tuple[float, ...]:
    """Dynamic exponent in 4 bits, signed: 1, 2 and 4 midpoints of even parts of [0.1, 1] at 10^-2, 10^-1 and 1; 0 and 1."""
    parts = ((0.01, 1), (0.1, 2), (1.0, 4))
    positive = [power * (0.1 + 0.9 * (i + 0.5) / count) for power, count in parts for i in range(count)]
    return tuple(sorted([*(-one for one in positive), 0.0, *positive, 1.0]))


def pack(codes: Tensor, scales: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """codes: uint8 [N, K] below 16, scales: [N, groups] -> what the kernel reads."""
    w = pack_pairs(codes, group)
    return w, pack_groups(scales, w.shape[1] // group)


EXCEPTIONS: dict[tuple[int, int, int], Tile] = {
    (16, 64, 90): Tile(m=16, n=64, k=64, warps=4, stages=2),
    (64, 128, 89): Tile(m=64, n=64, k=128, warps=8, stages=1),
    (64, 128, 120): Tile(m=64, n=64, k=128, warps=8, stages=1),
}
"""(rows, group, sm) whose usual tile spills or asks for too much: what compiles there without."""


def tile_for(m: int, group: int, sm: int) -> Tile:
    """Static choice by registers and shared memory, not by time: nothing was timed."""
    rows = 16 if m <= 16 else 32 if m <= 32 else 64
    warps = 4 if (rows == 16 and group <= 64) or group == 32 else 8
    return EXCEPTIONS.get((rows, group, sm), Tile(rows, 64, group, warps=warps, stages=3 if group <= 64 else 2))


def codebook_product(
    x: Tensor, w: Tensor, codebook: Tensor, scales: Tensor, group: int, *, tile: Tile | None = None, splits: int | None = None
) -> Tensor:
    """y: [M, N] in x's type."""
    import torch

    sixteen_bit(x)
    check(x, w, codebook, scales)
    (m, k), n, pairs = x.shape, w.shape[0], w.shape[1] // group
    if pairs != -(-k // (2 * group)) or scales.shape != (2 * pairs, n):
        raise ValueError(f"x {tuple(x.shape)}, w {tuple(w.shape)}, scales {tuple(scales.shape)} do not fit group {group}")
    if codebook.shape != (16,) or codebook.dtype != torch.float32:
        raise ValueError(f"codebook is {codebook.dtype} {tuple(codebook.shape)}; 16 float32 values are needed")
    tile, grid = planned(f"codebook-g{group}", x, (m, n, k), tile or tile_for(m, group, target(x)), tile, splits, halves=2)
    y, written = output(x, m, n, grid[2], x.dtype)
    if m and n:
        codebook_kernel[grid](
            x, w, codebook, scales, written, m, n, k, pairs,
            GROUP=group, SPLITS=grid[2], BLOCK_M=tile.m, BLOCK_N=tile.n, **tile.launch,
        )  # fmt: skip
    return finished(y, written, grid[2])


def cases(sm: int) -> list[Case]:
    made = []
    for group in (32, 64, 128):
        for m in (1, 32, 512):
            tile, splits = tile_for(m, group, sm), 8 if m == 1 else 1
            signature = {"x": "*bf16", "w": "*u8", "codebook": "*fp32", "scales": "*bf16",
                         "y": "*fp32" if splits > 1 else "*bf16", "M": "i32", "N": "i32", "K": "i32", "PAIRS": "i32"}  # fmt: skip
            constants = {"GROUP": group, "SPLITS": splits, "BLOCK_M": tile.m, "BLOCK_N": tile.n}
            name = f"codebook/g{group}-m{m}"
            made.append(Case(name, codebook_kernel, signature, constants, tile.warps, tile.stages, "bf16", ("M", "PAIRS")))
    return made
