"""y[M, N] = x[M, K] @ w[N, K].T with INT8 weights, per channel or in groups, and 16-bit activations. Never run on a GPU.

x: float16 or bfloat16 [M, K]; w: int8 [N, K]; scales: [1, N] per output channel, or [groups, N] with groups of 32, 64, 128
along K (the last one may be short).

Regime: decode, where weights are read and half the bytes are left; with M in the hundreds W8A8 has the better arithmetic.
INT8 is exact in 16 bits (bfloat16 holds every integer up to 256), and scales multiply float32 sums: all rounding is that
of those sums and of y. Source: weight-only INT8 as in LLM.int8's storage (arXiv:2208.07339) and MatMulNBits; split-K for
skinny products as in arXiv:2402.00025.
"""

import triton
import triton.language as tl

from .triton_launch import Case, Tensor, Tile, check, finished, output, planned, signed_float, sixteen_bit, target


@triton.jit(do_not_specialize=["M"])
def w8a16_kernel(
    x,
    w,
    scales,
    y,
    M,
    N,
    K,
    GROUP: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of one part of K: program (tile of N, tile of M, part). GROUP 0: one scale a channel."""
    split = tl.program_id(2)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    j = tl.arange(0, BLOCK_K)
    row, column = m[:, None] < M, n < N
    x_at = x + m[:, None] * K + j[None, :]
    w_at = w + n[None, :] * K + j[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(split * BLOCK_K, K, SPLITS * BLOCK_K):
        inside = k + j < K
        x_tile = tl.load(x_at + k, mask=row & inside[None, :], other=0.0)
        q = tl.load(w_at + k, mask=column[None, :] & inside[:, None], other=0)
        w_tile = signed_float(q, x.dtype.element_ty)
        if GROUP == 0:
            total = tl.dot(x_tile, w_tile, total)
        else:
            scale = tl.load(scales + (k // GROUP) * N + n, mask=column, other=0.0).to(tl.float32)
            total += tl.dot(x_tile, w_tile) * scale[None, :]
    if GROUP == 0:
        total *= tl.load(scales + n, mask=column, other=0.0).to(tl.float32)[None, :]
    y_at = y + split * M * N + m[:, None] * N + n[None, :]
    tl.store(y_at, total.to(y.dtype.element_ty), mask=row & column[None, :])


EXCEPTIONS: dict[tuple[int, int, int], Tile] = {}
"""(rows, group, sm) whose usual tile spills or asks for too much: what compiles there without."""


def tile_for(m: int, group: int, sm: int) -> Tile:
    """Static choice by registers and shared memory, not by time: nothing was timed. `k` never crosses a group."""
    rows = 16 if m <= 16 else 32 if m <= 32 else 64
    usual = Tile(16, 64, min(group, 128) or 128, warps=4, stages=4) if rows == 16 else Tile(rows, 64, min(group, 64) or 64)
    return EXCEPTIONS.get((rows, group, sm), usual)


def tiles_tried(group: int) -> tuple[Tile, ...]:
    """What timing on a device may choose instead (`triton_tuning.py`)."""
    return Tile(16, 128, group or 128, warps=4, stages=3), Tile(64, 128, group or 64, warps=8, stages=3)


def w8a16(x: Tensor, w: Tensor, scales: Tensor, group: int, *, tile: Tile | None = None, splits: int | None = None) -> Tensor:
    """y: [M, N] in x's type. `group` 0: scales [1, N] per channel."""
    sixteen_bit(x)
    check(x, w, scales)
    (m, k), n = x.shape, w.shape[0]
    if w.shape[1] != k or scales.shape != (-(-k // group) if group else 1, n):
        raise ValueError(f"x {tuple(x.shape)}, w {tuple(w.shape)}, scales {tuple(scales.shape)} do not fit group {group}")
    tile, grid = planned(f"w8a16-g{group}", x, (m, n, k), tile or tile_for(m, group, target(x)), tile, splits)
    y, written = output(x, m, n, grid[2], x.dtype)
    if m and n:
        w8a16_kernel[grid](
            x, w, scales, written, m, n, k,
            GROUP=group, SPLITS=grid[2], BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k, **tile.launch,
        )  # fmt: skip
    return finished(y, written, grid[2])


GROUPS = (0, 32, 64, 128)


def case(name: str, group: int, tile: Tile, splits: int) -> Case:
    signature = {"x": "*bf16", "w": "*i8", "scales": "*bf16", "y": "*fp32" if splits > 1 else "*bf16",
                 "M": "i32", "N": "i32", "K": "i32"}  # fmt: skip
    constants = {"GROUP": group, "SPLITS": splits, "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k}
    return Case(name, w8a16_kernel, signature, constants, tile.warps, tile.stages, "bf16", ("M",))


def cases(sm: int) -> list[Case]:
    return [
        case(f"w8a16/{f'g{group}' if group else 'channel'}-m{m}", group, tile_for(m, group, sm), 8 if m == 1 else 1)
        for group in GROUPS
        for m in (1, 32, 512)
    ]


def tried(sm: int) -> list[Case]:
    return [
        case(f"w8a16-g{group}/{tile.label}", group, tile, 8 if tile.m <= 64 else 1)
        for group in GROUPS
        for tile in tiles_tried(group)
    ]
