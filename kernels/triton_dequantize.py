"""Quantized weights back to w[N, K] in 16 bits, for a plain product after it: the honest slow path. Never run on a GPU.

Reads what the fused kernels read (`triton_w4a16.pack`, `triton_w8a16`, `triton_codebook.pack`) and writes float16 or
bfloat16 [N, K]; `torch.matmul` multiplies. Every value is one rounding of an exact product: integers of at most 9 bits
times a 16-bit scale fit float32.

Regime: none in which it wins. At small M it moves 16 bits written and 16 read where a fused kernel reads 4 or 8, up to 9x
the bytes of W4A16; at large M the product hides that and the path comes near bf16. It is what libraries do where no fused
kernel exists, so that it is the reference which a fused kernel has to beat, and what a runtime falls back to. Source: the
dequantize-then-multiply path of bitsandbytes' NF4 at prefill (arXiv:2305.14314) and of GPTQ loaders.
"""

from typing import Any

import triton
import triton.language as tl

from .triton_codebook import looked_up
from .triton_launch import LAUNCH, Case, Tensor, check, signed_float, unsigned_float

ROWS = 64
COLUMNS = 128
"""One tile of INT8; nibbles take a pair of groups a program."""
WARPS = 4


@triton.jit
def dequantize_pairs_kernel(
    w,
    codebook,
    scales,
    zeros,
    y,
    N,
    K,
    PAIRS,
    GROUP: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Program (tile of N, pair of groups). KIND: "symmetric" (zero point 8), "asymmetric" or "codebook"."""
    pair = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    j = tl.arange(0, GROUP)
    row = n < N
    both = tl.load(w + n[:, None] * (PAIRS * GROUP) + pair * GROUP + j[None, :], mask=row[:, None], other=0)
    s_low = tl.load(scales + 2 * pair * N + n, mask=row, other=0.0).to(tl.float32)[:, None]
    s_high = tl.load(scales + (2 * pair + 1) * N + n, mask=row, other=0.0).to(tl.float32)[:, None]
    if KIND == "codebook":
        table = tl.load(codebook + tl.arange(0, 16)).to(y.dtype.element_ty).to(tl.float32)
        low = looked_up(table, both & 15, BLOCK_N, GROUP)
        high = looked_up(table, both >> 4, BLOCK_N, GROUP)
    else:
        if KIND == "asymmetric":
            z_low = tl.load(zeros + 2 * pair * N + n, mask=row, other=0).to(tl.float32)[:, None]
            z_high = tl.load(zeros + (2 * pair + 1) * N + n, mask=row, other=0).to(tl.float32)[:, None]
        else:
            z_low = 8.0
            z_high = 8.0
        low = unsigned_float(both & 15, z_low, tl.float32)
        high = unsigned_float(both >> 4, z_high, tl.float32)
    k = 2 * pair * GROUP + j
    y_at = y + n[:, None] * K + k[None, :]
    tl.store(y_at, (low * s_low).to(y.dtype.element_ty), mask=row[:, None] & (k < K)[None, :])
    tl.store(y_at + GROUP, (high * s_high).to(y.dtype.element_ty), mask=row[:, None] & (k + GROUP < K)[None, :])


@triton.jit
def dequantize_int8_kernel(w, scales, y, N, K, GROUP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """Program (tile of N, tile of K inside one group); GROUP 0: one scale per row."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    row = n < N
    inside = row[:, None] & (k < K)[None, :]
    at = n[:, None] * K + k[None, :]
    group = 0 if GROUP == 0 else tl.program_id(1) * BLOCK_K // GROUP
    scale = tl.load(scales + group * N + n, mask=row, other=0.0).to(tl.float32)
    value = signed_float(tl.load(w + at, mask=inside, other=0), tl.float32) * scale[:, None]
    tl.store(y + at, value.to(y.dtype.element_ty), mask=inside)


def dequantize_int4(w: Tensor, scales: Tensor, zeros: Tensor | None, group: int, k: int) -> Tensor:
    """What `triton_w4a16.pack` gave -> [N, K] in the scales' type."""
    return _pairs(w, None, scales, zeros, group, k, "symmetric" if zeros is None else "asymmetric")


def dequantize_codebook(w: Tensor, codebook: Tensor, scales: Tensor, group: int, k: int) -> Tensor:
    """What `triton_codebook.pack` gave -> [N, K] in the scales' type, to which the codebook is rounded, as the product does."""
    import torch

    if codebook.shape != (16,) or codebook.dtype != torch.float32:
        raise ValueError(f"codebook is {codebook.dtype} {tuple(codebook.shape)}; 16 float32 values are needed")
    return _pairs(w, codebook, scales, None, group, k, "codebook")


def _pairs(w: Tensor, codebook: Tensor | None, scales: Tensor, zeros: Tensor | None, group: int, k: int, kind: str) -> Tensor:
    n, pairs = w.shape[0], w.shape[1] // group
    y = _written(scales, n, k)
    check(w, scales, y, *(one for one in (codebook, zeros) if one is not None))
    if pairs != -(-k // (2 * group)) or scales.shape != (2 * pairs, n) or not (zeros is None or zeros.shape == scales.shape):
        raise ValueError(f"w {tuple(w.shape)}, scales {tuple(scales.shape)} do not fit K = {k} and group {group}")
    if y.numel():
        dequantize_pairs_kernel[(triton.cdiv(n, ROWS), pairs)](
            w, scales if codebook is None else codebook, scales, scales if zeros is None else zeros, y, n, k, pairs,
            GROUP=group, KIND=kind, BLOCK_N=ROWS, num_warps=WARPS, **LAUNCH,
        )  # fmt: skip
    return y


def dequantize_int8(w: Tensor, scales: Tensor, group: int) -> Tensor:
    """w: int8 [N, K], scales: [groups, N], or [1, N] with group 0 -> [N, K] in the scales' type."""
    n, k = w.shape
    y = _written(scales, n, k)
    check(w, scales, y)
    if scales.shape != (-(-k // group) if group else 1, n):
        raise ValueError(f"w {tuple(w.shape)}, scales {tuple(scales.shape)} do not fit group {group}")
    if y.numel():
        columns = group or COLUMNS
        dequantize_int8_kernel[(triton.cdiv(n, ROWS), triton.cdiv(k, columns))](
            w, scales, y, n, k, GROUP=group, BLOCK_N=ROWS, BLOCK_K=columns, num_warps=WARPS, **LAUNCH
        )
    return y


def _written(scales: Tensor, n: int, k: int) -> Any:
    import torch

    if scales.dtype not in (torch.float16, torch.bfloat16):
        raise TypeError(f"scales are {scales.dtype}; weights are written in their type, float16 or bfloat16")
    return torch.empty((n, k), dtype=scales.dtype, device=scales.device)


def cases(sm: int) -> list[Case]:
    made = []
    for group in (32, 64, 128):
        for kind in ("symmetric", "asymmetric", "codebook"):
            pointers = {"w": "*u8", "codebook": "*fp32" if kind == "codebook" else "*bf16", "scales": "*bf16",
                        "zeros": "*u8" if kind == "asymmetric" else "*bf16", "y": "*bf16"}  # fmt: skip
            signature = {**pointers, "N": "i32", "K": "i32", "PAIRS": "i32"}
            constants = {"GROUP": group, "KIND": kind, "BLOCK_N": ROWS}
            name = f"dequantize/{kind}-g{group}"
            made.append(Case(name, dequantize_pairs_kernel, signature, constants, WARPS, 3, None, ("PAIRS",)))
    for group in (0, 64):
        signature = {"w": "*i8", "scales": "*bf16", "y": "*bf16", "N": "i32", "K": "i32"}
        constants = {"GROUP": group, "BLOCK_N": ROWS, "BLOCK_K": group or COLUMNS}
        name = f"dequantize/int8-{f'g{group}' if group else 'channel'}"
        made.append(Case(name, dequantize_int8_kernel, signature, constants, WARPS, 3, None))
    return made
