"""y[M, N] = x[M, K] @ w[N, K].T with INT4 weights in groups along K and 16-bit activations. Never run on a GPU.

x: float16 or bfloat16 [M, K]; w: bytes [N, pairs * group] as `pack_pairs` lays them out (K innermost: a column of the
product reads consecutive bytes); scales: [groups, N]; zeros: uint8 [groups, N], or None for symmetric weights, whose zero
point is 8. Group 32, 64 or 128 (16 works in the interpreter too).

Regime: decode reads weights, 4.25 to 5 bits each, so small M has tiles of 16 rows and splits K until the GPU is full (each
part writes float32 sums, a second kernel adds them in a fixed order). Large M has larger tiles and no split.
Integers are exact in 16 bits, and scales multiply the float32 sum of a group, not the weights: all rounding is that of
float32 sums and of y. Source: group-wise INT4 as in GPTQ (arXiv:2210.17323); integers turned into floats by or-ing into a
mantissa as in "Who Says Elephants Can't Run" (arXiv:2211.10017); split-K for skinny products as in arXiv:2402.00025.
"""

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
    unsigned_float,
)


@triton.jit(do_not_specialize=["M", "PAIRS"])
def w4a16_kernel(
    x,
    w,
    scales,
    zeros,
    y,
    M,
    N,
    K,
    PAIRS,
    GROUP: tl.constexpr,
    ASYMMETRIC: tl.constexpr,
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
        if ASYMMETRIC:
            z_low = tl.load(zeros + 2 * pair * N + n, mask=column, other=0).to(tl.float32)[None, :]
            z_high = tl.load(zeros + (2 * pair + 1) * N + n, mask=column, other=0).to(tl.float32)[None, :]
        else:
            z_low = 8.0
            z_high = 8.0
        total += tl.dot(x_low, unsigned_float(both & 15, z_low, x.dtype.element_ty)) * s_low[None, :]
        total += tl.dot(x_high, unsigned_float(both >> 4, z_high, x.dtype.element_ty)) * s_high[None, :]
    y_at = y + split * M * N + m[:, None] * N + n[None, :]
    tl.store(y_at, total.to(y.dtype.element_ty), mask=row & column[None, :])


def pack(codes: Tensor, scales: Tensor, zeros: Tensor | None, group: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """codes: uint8 [N, K], scales and zeros: [N, groups] -> what the kernel reads."""
    w = pack_pairs(codes, group)
    pairs = w.shape[1] // group
    return w, pack_groups(scales, pairs), None if zeros is None else pack_groups(zeros, pairs)


EXCEPTIONS: dict[tuple[int, int, int], Tile] = {
    (64, 32, 89): Tile(m=64, n=128, k=32, warps=8, stages=2),
    (64, 128, 80): Tile(m=32, n=64, k=128, warps=8, stages=2),
    (64, 128, 120): Tile(m=32, n=64, k=128, warps=8, stages=2),
}
"""(rows, group, sm) whose usual tile spills or asks for too much: what compiles there without."""


def tile_for(m: int, group: int, sm: int) -> Tile:
    """Static choice by registers and shared memory, not by time: nothing was timed."""
    rows = 16 if m <= 16 else 32 if m <= 32 else 64
    usual = {
        16: Tile(16, 64, group, warps=4, stages=4 if group <= 64 else 3),
        32: Tile(32, 64, group, warps=4, stages=3),
        64: Tile(64, 128 if group <= 64 else 64, group, warps=8, stages=3 if group <= 64 else 2),
    }
    return EXCEPTIONS.get((rows, group, sm), usual[rows])


def tiles_tried(group: int) -> tuple[Tile, ...]:
    """What timing on a device may choose instead (`triton_tuning.py`)."""
    return Tile(16, 128, group, warps=4, stages=3), Tile(32, 128, group, warps=8, stages=3)


def w4a16(
    x: Tensor, w: Tensor, scales: Tensor, zeros: Tensor | None, group: int, *, tile: Tile | None = None, splits: int | None = None
) -> Tensor:
    """y: [M, N] in x's type."""
    sixteen_bit(x)
    check(x, w, scales, *([] if zeros is None else [zeros]))
    (m, k), n, pairs = x.shape, w.shape[0], w.shape[1] // group
    if pairs != -(-k // (2 * group)) or scales.shape != (2 * pairs, n) or not (zeros is None or zeros.shape == scales.shape):
        raise ValueError(f"x {tuple(x.shape)}, w {tuple(w.shape)}, scales {tuple(scales.shape)} do not fit group {group}")
    tile, grid = planned(f"w4a16-g{group}", x, (m, n, k), tile or tile_for(m, group, target(x)), tile, splits, halves=2)
    y, written = output(x, m, n, grid[2], x.dtype)
    if m and n:
        w4a16_kernel[grid](
            x, w, scales, scales if zeros is None else zeros, written, m, n, k, pairs,
            GROUP=group, ASYMMETRIC=zeros is not None, SPLITS=grid[2], BLOCK_M=tile.m, BLOCK_N=tile.n, **tile.launch,
        )  # fmt: skip
    return finished(y, written, grid[2])


def case(name: str, tile: Tile, *, asymmetric: bool, splits: int) -> Case:
    pointers = {"x": "*bf16", "w": "*u8", "scales": "*bf16", "zeros": "*u8" if asymmetric else "*bf16"}
    signature = {**pointers, "y": "*fp32" if splits > 1 else "*bf16", **dict.fromkeys(("M", "N", "K", "PAIRS"), "i32")}
    constants = {"GROUP": tile.k, "ASYMMETRIC": asymmetric, "SPLITS": splits, "BLOCK_M": tile.m, "BLOCK_N": tile.n}
    return Case(name, w4a16_kernel, signature, constants, tile.warps, tile.stages, "bf16", ("M", "PAIRS"))


def cases(sm: int) -> list[Case]:
    made = []
    for group in (32, 64, 128):
        for m in (1, 32, 512):
            tile, splits = tile_for(m, group, sm), 8 if m == 1 else 1
            made.append(case(f"w4a16/g{group}-m{m}", tile, asymmetric=False, splits=splits))
            made.append(case(f"w4a16/g{group}-m{m}-asymmetric", tile, asymmetric=True, splits=splits))
    return made


def tried(sm: int) -> list[Case]:
    """With zero points, which take the most registers."""
    return [
        case(f"w4a16-g{group}/{tile.label}", tile, asymmetric=True, splits=8 if tile.m <= 64 else 1)
        for group in (32, 64, 128)
        for tile in tiles_tried(group)
    ]
