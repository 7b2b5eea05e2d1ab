"""Rotate and quantize: blocks of each token times a Hadamard matrix, then INT8 or INT4 per token. Never run on a GPU.

x: float16 or bfloat16 [M, K], K = blocks * block, block 16, 32, 64 or 128 -> codes and scales float32 [M] of
x (I kron H / sqrt(block)), H Sylvester's: H[i, j] = (-1)^popcount(i & j). Codes: int8 [M, K], symmetric to +-127; or
INT4, symmetric to +-7 and stored + 8, uint8 [M, pairs * block]: two neighbouring blocks a run of bytes, the first one in
the low nibbles, as `pack_pairs` lays out weights of that group (a missing last block is all 8, which is zero).

Regime: before a product in INT8 or INT4, where an outlier would stretch the token's scale: the rotation spreads it over its
block. It reads x twice (the second time from L2) and writes codes: bytes bound it. A token's blocks are the rows of the
matrix instruction, so that one token fills it too, and H's +-1 are exact in 16 bits: float32 sums, and one factor per
token, are the only rounding before the code's. Random signs, where wanted, fold into the rows of the linear that makes x,
and the inverse into the columns of the one that reads it. Source: online Hadamard before down_proj, QuaRot
(arXiv:2404.00456).

A row that holds NaN or an infinity has the scale NaN, so that its outputs are NaN and not plausible numbers.
"""

import math

import triton
import triton.language as tl

from .triton_launch import Case, Tensor, Tile, check, sixteen_bit

BLOCKS = (16, 32, 64, 128)


@triton.jit
def sylvester(BLOCK: tl.constexpr, dtype: tl.constexpr):
    """H of order BLOCK, at most 256: +-1 by the parity of i & j."""
    i = tl.arange(0, BLOCK)
    bits = i[:, None] & i[None, :]
    bits ^= bits >> 4
    bits ^= bits >> 2
    bits ^= bits >> 1
    return (1 - 2 * (bits & 1)).to(tl.float32).to(dtype)


@triton.jit
def rounded(value, factor, LARGEST: tl.constexpr):
    """value * factor to the nearest integer, half to even; 0 where the factor is, whatever the value."""
    ratio = tl.where(factor == 0.0, 0.0, value * factor)
    ratio = tl.minimum(tl.maximum(ratio, -LARGEST), LARGEST)
    return (ratio + 12582912.0) - 12582912.0  # 1.5 * 2^23: the sum has no bits left for a fraction


@triton.jit(do_not_specialize=["M", "PAIRS"])
def rotate_quantize_kernel(
    x,
    q,
    scales,
    M,
    K,
    PAIRS,
    ROOT: tl.constexpr,
    BLOCK: tl.constexpr,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """One token a program; ROWS pairs of blocks a step. ROOT: 1 / sqrt(BLOCK), which only the scale sees."""
    token = tl.program_id(0)
    LARGEST: tl.constexpr = 127.0 if BITS == 8 else 7.0
    p, j = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    turn = sylvester(BLOCK, x.dtype.element_ty)
    largest = 0.0
    broken = 0
    for start in range(0, PAIRS, ROWS):
        k = 2 * (start + p)[:, None] * BLOCK + j[None, :]
        low = tl.load(x + token * K + k, mask=k < K, other=0.0)
        high = tl.load(x + token * K + k + BLOCK, mask=k + BLOCK < K, other=0.0)
        finite = (tl.abs(low.to(tl.float32)) < float("inf")) & (tl.abs(high.to(tl.float32)) < float("inf"))
        broken = tl.maximum(broken, tl.max(tl.where(finite, 0, 1)))
        turned = tl.maximum(tl.abs(tl.dot(low, turn)), tl.abs(tl.dot(high, turn)))
        largest = tl.maximum(largest, tl.max(turned))
    factor = tl.div_rn(LARGEST, tl.where(largest > 0, largest, 1.0))
    factor = tl.where((broken == 0) & (largest > 0) & (factor < float("inf")), factor, 0.0)
    for start in range(0, PAIRS, ROWS):
        k = 2 * (start + p)[:, None] * BLOCK + j[None, :]
        low = tl.load(x + token * K + k, mask=k < K, other=0.0)
        high = tl.load(x + token * K + k + BLOCK, mask=k + BLOCK < K, other=0.0)
        low_code = rounded(tl.dot(low, turn), factor, LARGEST)
        high_code = rounded(tl.dot(high, turn), factor, LARGEST)
        if BITS == 8:
            tl.store(q + token * K + k, low_code.to(tl.int8), mask=k < K)
            tl.store(q + token * K + k + BLOCK, high_code.to(tl.int8), mask=k + BLOCK < K)
        else:
            both = (low_code + 8.0).to(tl.uint8) | ((high_code + 8.0).to(tl.uint8) << 4)
            at = (start + p)[:, None] * BLOCK + j[None, :]
            tl.store(q + token * (PAIRS * BLOCK) + at, both, mask=k < K)
    tl.store(scales + token, tl.where(broken == 0, tl.div_rn(largest, LARGEST) * ROOT, float("nan")))


def tile_for(block: int) -> Tile:
    """Pairs of blocks a step; a static choice by registers and shared memory, not by time: nothing was timed."""
    return Tile(16, block, block, warps=4 if block <= 64 else 8, stages=2)


def rotate_quantize(x: Tensor, block: int, bits: int) -> tuple[Tensor, Tensor]:
    """x: [M, K] -> (codes, scales float32 [M]); a row of zeros has the scale 0."""
    import torch

    sixteen_bit(x)
    check(x)
    m, k = x.shape
    if block not in BLOCKS or k % block or bits not in (4, 8):
        raise ValueError(f"K = {k}, block {block}, {bits} bits: blocks are {BLOCKS} and divide K, codes have 8 or 4 bits")
    pairs = -(-k // (2 * block))
    q = torch.empty((m, k) if bits == 8 else (m, pairs * block), dtype=torch.int8 if bits == 8 else torch.uint8, device=x.device)
    scales = torch.empty(m, dtype=torch.float32, device=x.device)
    tile = tile_for(block)
    if m:
        rotate_quantize_kernel[(m,)](
            x, q, scales, m, k, pairs, ROOT=1 / math.sqrt(block), BLOCK=block, BITS=bits, ROWS=tile.m, **tile.launch
        )
    return q, scales


def cases(sm: int) -> list[Case]:
    made = []
    for block in (32, 64, 128):
        for bits in (8, 4):
            tile = tile_for(block)
            sizes = dict.fromkeys(("M", "K", "PAIRS"), "i32")
            signature = {"x": "*bf16", "q": "*i8" if bits == 8 else "*u8", "scales": "*fp32", **sizes}
            constants = {"ROOT": 1 / math.sqrt(block), "BLOCK": block, "BITS": bits, "ROWS": tile.m}
            name, free = f"hadamard/int{bits}-block{block}", ("M", "PAIRS")
            made.append(Case(name, rotate_quantize_kernel, signature, constants, tile.warps, tile.stages, "bf16", free))
    return made
