"""y[M, N] = x[M, K] @ w[N, K].T in INT8 or FP8 E4M3: activations scaled per token, weights per channel. Never run on a GPU.

x: int8 or float8_e4m3fn [M, K] with scales float32 [M] from `quantize`; w: the same type [N, K] with scales float32 [N]. Sums of
INT8 are exact in int32 (K up to 131,071); those of FP8 are float32, on sm_90, whose instruction adds in fewer bits, through a
float32 add every 128 products (`max_num_imprecise_acc`). The scales multiply them once in float32. FP8 needs sm_89 or newer.

Regime: prefill and large batches, where arithmetic outweighs reading and 8 bits have twice the peak of bf16; at small M the
kernel splits K as the weight-only kernels do. FP8 keeps outliers better (3 mantissa bits, largest 448); its tiles of 16 rows
become fp16 products on sm_90 and sm_100 (compiling shows HMMA): decode saves bytes there, not arithmetic.
Source: per-token x per-channel scales as in SmoothQuant (arXiv:2211.10438) and ZeroQuant (arXiv:2206.01861); E4M3 as in
arXiv:2209.05433, scaled as in vLLM's and torchao's dynamic FP8.

A row that holds NaN or an infinity has the scale NaN, so that its outputs are NaN and not plausible numbers.
"""

from typing import Any

import triton
import triton.language as tl

from .triton_launch import LAUNCH, Case, Tensor, Tile, capability, check, finished, output, planned, target

MOST_K = (1 << 17) - 1


@triton.jit(do_not_specialize=["M"])
def quantize_rows_kernel(x, q, scales, M, K, BLOCK: tl.constexpr):
    """One row a program: scale = largest / 127 or 448, codes rounded half to even, those of FP8 by the conversion itself."""
    INTEGER: tl.constexpr = q.dtype.element_ty == tl.int8
    MOST: tl.constexpr = 127.0 if INTEGER else 448.0
    row = tl.program_id(0)
    largest = 0.0
    broken = 0
    for start in range(0, K, BLOCK):
        at = start + tl.arange(0, BLOCK)
        size = tl.abs(tl.load(x + row * K + at, mask=at < K, other=0.0).to(tl.float32))
        largest = tl.maximum(largest, tl.max(size, 0))
        broken = tl.maximum(broken, tl.max(tl.where(size < float("inf"), 0, 1), 0))
    scale = tl.div_rn(largest, MOST)
    usable = (broken == 0) & (scale > 0)
    divisor = tl.where(usable, scale, 1.0)
    for start in range(0, K, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * K + at, mask=at < K, other=0.0).to(tl.float32)
        ratio = tl.div_rn(tl.where(usable, value, 0.0), divisor)
        ratio = tl.minimum(tl.maximum(ratio, -MOST), MOST)
        if INTEGER:
            ratio = (ratio + 12582912.0) - 12582912.0  # 1.5 * 2^23: the sum has no bits left for a fraction
        tl.store(q + row * K + at, ratio.to(q.dtype.element_ty), mask=at < K)
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
    INTEGER: tl.constexpr = x.dtype.element_ty == tl.int8
    split = tl.program_id(2)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    j = tl.arange(0, BLOCK_K)
    row, column = m < M, n < N
    x_at = x + m[:, None] * K + j[None, :]
    w_at = w + n[None, :] * K + j[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.int32 if INTEGER else tl.float32)
    for k in range(split * BLOCK_K, K, SPLITS * BLOCK_K):
        inside = k + j < K
        x_tile = tl.load(x_at + k, mask=row[:, None] & inside[None, :], other=0.0)
        w_tile = tl.load(w_at + k, mask=column[None, :] & inside[:, None], other=0.0)
        total = tl.dot(x_tile, w_tile, total, max_num_imprecise_acc=None if INTEGER else 128)
    x_scale = tl.load(x_scales + m, mask=row, other=0.0)
    w_scale = tl.load(w_scales + n, mask=column, other=0.0)
    scaled = total.to(tl.float32) * x_scale[:, None] * w_scale[None, :]
    y_at = y + split * M * N + m[:, None] * N + n[None, :]
    tl.store(y_at, scaled.to(y.dtype.element_ty), mask=row[:, None] & column[None, :])


def quantize(x: Tensor, dtype: Any) -> tuple[Tensor, Tensor]:
    """x: [M, K] -> torch.int8 or torch.float8_e4m3fn [M, K], scales float32 [M]. A row of zeros has the scale 0."""
    import torch

    check(x)
    m, k = x.shape
    q = torch.empty((m, k), dtype=dtype, device=x.device)
    scales = torch.empty(m, dtype=torch.float32, device=x.device)
    if m:
        quantize_rows_kernel[(m,)](x, q, scales, m, k, BLOCK=1024, num_warps=4, **LAUNCH)
    return q, scales


def tile_for(m: int, sm: int) -> Tile:
    """Static choice by registers and shared memory, not by time: nothing was timed. The same on every target."""
    if m <= 16:
        return Tile(16, 64, 128, warps=4, stages=4)
    return Tile(64, 64, 128, warps=4, stages=3) if m <= 64 else Tile(128, 128, 128, warps=8, stages=3)


TRIED = (
    Tile(16, 128, 128, warps=4, stages=3),
    Tile(64, 128, 128, warps=8, stages=3),
    Tile(128, 64, 128, warps=4, stages=3),
)
"""What timing on a device may choose instead (`triton_tuning.py`)."""


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
    import torch

    check(x, w, x_scales, w_scales)
    (m, k), n = x.shape, w.shape[0]
    if w.shape[1] != k or w.dtype != x.dtype or x_scales.shape != (m,) or w_scales.shape != (n,):
        types = f"x {tuple(x.shape)} {x.dtype}, w {tuple(w.shape)} {w.dtype}"
        raise ValueError(f"{types}, {len(x_scales)} and {len(w_scales)} scales do not fit")
    integer = x.dtype == torch.int8
    if integer and k > MOST_K:
        raise ValueError(f"K = {k} may overflow int32 sums; at most {MOST_K}")
    if not integer and x.is_cuda and capability(x) < 89:
        raise ValueError(f"sm_{capability(x)} has no FP8 E4M3 instruction; sm_89 or newer is needed")
    tile, grid = planned("w8a8" if integer else "fp8", x, (m, n, k), tile or tile_for(m, target(x)), tile, splits)
    y, written = output(x, m, n, grid[2], dtype)
    if m and n:
        w8a8_kernel[grid](
            x, w, x_scales, w_scales, written, m, n, k,
            SPLITS=grid[2], BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k, **tile.launch,
        )  # fmt: skip
    return finished(y, written, grid[2])


def case(name: str, code: str, tile: Tile, splits: int, matrix: str) -> Case:
    pointers = {"x": f"*{code}", "w": f"*{code}", "x_scales": "*fp32", "w_scales": "*fp32"}
    signature = {**pointers, "y": "*fp32" if splits > 1 else "*bf16", "M": "i32", "N": "i32", "K": "i32"}
    constants = {"SPLITS": splits, "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k}
    return Case(name, w8a8_kernel, signature, constants, tile.warps, tile.stages, matrix, ("M",))


def kinds(sm: int) -> dict[str, str]:
    """Kernel -> triton's name of its codes."""
    return {"w8a8": "i8", **({"fp8": "fp8e4nv"} if sm >= 89 else {})}


def matrix_of(kind: str, rows: int, sm: int) -> str:
    """The products that the compiler makes: of FP8 in 16 rows, fp16 ones where the instruction takes 64."""
    return "int8" if kind == "w8a8" else "fp16" if rows <= 32 and sm in (90, 100) else "fp8"


def cases(sm: int) -> list[Case]:
    made = []
    for kind, code in kinds(sm).items():
        row = {"x": "*bf16", "q": f"*{code}", "scales": "*fp32", "M": "i32", "K": "i32"}
        made.append(Case(f"{kind}/quantize", quantize_rows_kernel, row, {"BLOCK": 1024}, 4, 3, None, ("M",)))
        for m in (1, 64, 512):
            splits = 8 if m == 1 else 1
            made.append(case(f"{kind}/m{m}", code, tile_for(m, sm), splits, matrix_of(kind, m, sm)))
    return made


def tried(sm: int) -> list[Case]:
    return [
        case(f"{kind}/{tile.label}", code, tile, 8 if tile.m <= 64 else 1, matrix_of(kind, tile.m, sm))
        for kind, code in kinds(sm).items()
        for tile in TRIED
    ]
