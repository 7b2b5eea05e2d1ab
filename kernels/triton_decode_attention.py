"""One decode step of attention over an INT8 or INT4 cache, GQA, split over the cache (flash decoding). Never run on a GPU.

q: float16 or bfloat16 [B, HQ, D], one new token each; keys, values: INT8 [B, HKV, S, D], or two INT4 codes a byte, uint8
[B, HKV, S, D / 2] with dimensions d (low nibble) and d + D / 2 (high); scales: float32 [B, HKV, S], one per token and head;
INT8 is symmetric, INT4 has zero points uint8 [B, HKV, S]: value = (code - zero) * scale. lengths: int32 [B], how many of
the S places hold tokens (none: the output is 0). The HQ / HKV query heads that share a cache head are the rows of the
matrix instruction, filled up to 16.

Regime: decode reads the whole cache each step, so bytes are time, and one program a sequence and head leaves most of a GPU
idle: the cache is cut into parts, each keeps its running maximum, sum and weighted values, and a second kernel joins them.
The grid depends on S alone, so that a CUDA graph can replay it while lengths grow.

Integers are exact in 16 bits; a key's scale multiplies the float32 score, a value's scale the weight, which is then rounded
to q's type: that, and float32 sums, is all the rounding before the output's. Source: flash decoding (Dao et al. 2023, with
the online softmax of arXiv:2205.14135); INT4 cache with zero points as in KIVI (arXiv:2402.02750), though per token here.
"""

import math
from typing import Any

import triton
import triton.language as tl

from .triton_launch import LAUNCH, Case, Tensor, Tile, check, signed_float, sixteen_bit, target, unsigned_float

MOST_SPLITS = 64


@triton.jit(do_not_specialize=["S", "PART", "SPLITS"])
def attend_kernel(
    q,
    keys,
    key_scales,
    key_zeros,
    values,
    value_scales,
    value_zeros,
    lengths,
    partial,
    largest_of,
    sum_of,
    SCALE,
    S,
    PART,
    SPLITS,
    HKV: tl.constexpr,
    SHARED: tl.constexpr,
    D: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One part of one cache head: program (b * HKV + head, part). SCALE: 1 / sqrt(D) * log2(e), for exp2."""
    pair, part = tl.program_id(0), tl.program_id(1)
    WIDTH: tl.constexpr = D if BITS == 8 else D // 2
    dtype: tl.constexpr = q.dtype.element_ty
    r, d, t = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK)
    head = pair * SHARED + r  # of q, counted over the batch: b * HQ + h
    real, in_width = r < SHARED, d < WIDTH
    q_at = q + head[:, None] * D + d[None, :]
    q_low = tl.load(q_at, mask=real[:, None] & in_width[None, :], other=0.0)
    if BITS == 4:
        q_high = tl.load(q_at + WIDTH, mask=real[:, None] & in_width[None, :], other=0.0)
        high = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    low = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    largest = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    weight = tl.zeros((BLOCK_Q,), tl.float32)
    end = tl.minimum(part * PART + PART, tl.minimum(tl.load(lengths + pair // HKV), S))
    for start in range(part * PART, end, BLOCK):
        token = start + t
        inside = token < end
        at = pair * S + token
        k_code = tl.load(keys + at[None, :] * WIDTH + d[:, None], mask=inside[None, :] & in_width[:, None], other=0)
        v_code = tl.load(values + at[:, None] * WIDTH + d[None, :], mask=inside[:, None] & in_width[None, :], other=0)
        if BITS == 8:
            scores = tl.dot(q_low, signed_float(k_code, dtype))
        else:
            k_zero = tl.load(key_zeros + at, mask=inside, other=0).to(tl.float32)[None, :]
            scores = tl.dot(q_low, unsigned_float(k_code & 15, k_zero, dtype))
            scores = tl.dot(q_high, unsigned_float(k_code >> 4, k_zero, dtype), scores)
        scores *= tl.load(key_scales + at, mask=inside, other=0.0)[None, :] * SCALE
        scores = tl.where(inside[None, :], scores, float("-inf"))
        new = tl.maximum(largest, tl.max(scores, 1))
        base = tl.where(new == float("-inf"), 0.0, new)  # all keys so far at -inf: their weights are 0, not NaN
        p = tl.exp2(scores - base[:, None])
        kept = tl.exp2(largest - base)
        weight = weight * kept + tl.sum(p, 1)
        p = (p * tl.load(value_scales + at, mask=inside, other=0.0)[None, :]).to(dtype)
        if BITS == 8:
            low = tl.dot(p, signed_float(v_code, dtype), low * kept[:, None])
        else:
            v_zero = tl.load(value_zeros + at, mask=inside, other=0).to(tl.float32)[:, None]
            low = tl.dot(p, unsigned_float(v_code & 15, v_zero, dtype), low * kept[:, None])
            high = tl.dot(p, unsigned_float(v_code >> 4, v_zero, dtype), high * kept[:, None])
        largest = new
    row = head * SPLITS + part
    out_at = partial + row[:, None] * D + d[None, :]
    tl.store(out_at, low, mask=real[:, None] & in_width[None, :])
    if BITS == 4:
        tl.store(out_at + WIDTH, high, mask=real[:, None] & in_width[None, :])
    tl.store(largest_of + row, largest, mask=real)
    tl.store(sum_of + row, weight, mask=real)


@triton.jit(do_not_specialize=["SPLITS"])
def join_kernel(partial, largest_of, sum_of, y, SPLITS, D: tl.constexpr, BLOCK_SPLITS: tl.constexpr, BLOCK_D: tl.constexpr):
    """The parts of one query head: float32 [SPLITS, D] with maxima and sums -> y: [D]."""
    head = tl.program_id(0)
    part, d = tl.arange(0, BLOCK_SPLITS), tl.arange(0, BLOCK_D)
    real = part < SPLITS
    largest = tl.load(largest_of + head * SPLITS + part, mask=real, other=float("-inf"))
    top = tl.max(largest, 0)
    share = tl.exp2(largest - tl.where(top == float("-inf"), 0.0, top))
    total = tl.sum(share * tl.load(sum_of + head * SPLITS + part, mask=real, other=0.0), 0)
    at = partial + (head * SPLITS + part)[:, None] * D + d[None, :]
    summed = tl.sum(share[:, None] * tl.load(at, mask=real[:, None] & (d < D)[None, :], other=0.0), 0)
    result = tl.where(total == 0.0, 0.0, summed / tl.where(total == 0.0, 1.0, total))
    tl.store(y + head * D + d, result.to(y.dtype.element_ty), mask=d < D)


def pack_int4(codes: Tensor) -> Tensor:
    """codes: uint8 [..., D] below 16 -> bytes [..., D / 2]: dimension d low, d + D / 2 high."""
    half = codes.shape[-1] // 2
    return (codes[..., :half] | (codes[..., half:] << 4)).contiguous()


def quantize_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x: [B, H, S, D] -> INT8 codes and scales float32 [B, H, S]; plain torch, for filling a cache."""
    scales = x.float().abs().amax(-1) / 127
    return (x.float() / scales.clamp_min(1e-30)[..., None]).round().clamp(-127, 127).to(_torch().int8), scales


def quantize_int4(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x: [B, H, S, D] -> packed codes, scales float32 and zero points uint8 [B, H, S]; the range always holds 0."""
    torch = _torch()
    low, high = x.float().amin(-1).clamp_max(0), x.float().amax(-1).clamp_min(0)
    scales = ((high - low) / 15).clamp_min(1e-30)
    zeros = (-low / scales).round().clamp(0, 15)
    codes = ((x.float() / scales[..., None]).round() + zeros[..., None]).clamp(0, 15).to(torch.uint8)
    return pack_int4(codes), scales, zeros.to(torch.uint8)


def _torch() -> Any:
    import torch

    return torch


EXCEPTIONS: dict[tuple[int, int, int], Tile] = {
    (4, 64, 100): Tile(m=16, n=64, k=64, warps=8, stages=2),
    (4, 64, 120): Tile(m=16, n=64, k=64, warps=8, stages=2),
    (8, 64, 90): Tile(m=16, n=64, k=64, warps=8, stages=2),
    (8, 64, 100): Tile(m=16, n=64, k=64, warps=8, stages=2),
    (8, 64, 120): Tile(m=16, n=64, k=64, warps=8, stages=2),
}
"""(bits, D, sm) whose usual tile spills or asks for too much: what compiles there without."""


def tile_for(bits: int, dim: int, sm: int) -> Tile:
    """Rows of q, tokens a step and dimension; a static choice by registers, not by time: nothing was timed."""
    return EXCEPTIONS.get((bits, dim, sm), Tile(16, 64, dim, warps=4, stages=2))


def parts_for(x: Tensor, programs: int, tokens: int, block: int) -> int:
    """Parts of the cache: two programs a multiprocessor, at least two blocks of tokens a part."""
    processors = _torch().cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 8
    return max(1, min(-(-2 * processors // max(programs, 1)), tokens // (2 * block), MOST_SPLITS))


def decode_attention(
    q: Tensor,
    keys: tuple[Tensor, Tensor, Tensor | None],
    values: tuple[Tensor, Tensor, Tensor | None],
    lengths: Tensor,
    *,
    parts: int | None = None,
) -> Tensor:
    """y: [B, HQ, D] in q's type. keys, values: (codes, scales, zero points or None for INT8)."""
    torch = _torch()
    sixteen_bit(q)
    check(q, lengths, *(one for one in (*keys, *values) if one is not None))
    (batch, hq, dim), (_, hkv, tokens, width) = q.shape, keys[0].shape
    bits = 8 if keys[0].dtype == torch.int8 else 4
    if hq % hkv or width != (dim if bits == 8 else dim // 2) or (bits == 4 and (dim % 2 or keys[2] is None or values[2] is None)):
        raise ValueError(f"q {tuple(q.shape)} and a cache {tuple(keys[0].shape)} of {bits} bits do not fit")
    tile = tile_for(bits, dim, target(q))
    parts = parts or parts_for(q, batch * hkv, tokens, tile.n)
    part = triton.cdiv(triton.cdiv(tokens, parts), tile.n) * tile.n
    partial = torch.empty((batch, hq, parts, dim), dtype=torch.float32, device=q.device)
    largest, total = (torch.empty((batch, hq, parts), dtype=torch.float32, device=q.device) for _ in range(2))
    y = torch.empty_like(q)
    if not q.numel():
        return y
    check(partial)
    key_zeros, value_zeros = (one[0] if one[2] is None else one[2] for one in (keys, values))
    attend_kernel[(batch * hkv, parts)](
        q, keys[0], keys[1], key_zeros, values[0], values[1], value_zeros, lengths, partial, largest, total,
        math.log2(math.e) / math.sqrt(dim), tokens, part, parts,
        HKV=hkv, SHARED=hq // hkv, D=dim, BITS=bits, BLOCK_Q=max(16, triton.next_power_of_2(hq // hkv)),
        BLOCK_D=max(16, triton.next_power_of_2(width)), BLOCK=tile.n, **tile.launch,
    )  # fmt: skip
    join_kernel[(batch * hq,)](
        partial, largest, total, y, parts,
        D=dim, BLOCK_SPLITS=triton.next_power_of_2(parts), BLOCK_D=triton.next_power_of_2(dim), num_warps=4, **LAUNCH,
    )  # fmt: skip
    return y


def cases(sm: int) -> list[Case]:
    made = []
    for bits, dim, shared in ((8, 64, 3), (8, 128, 4), (8, 128, 8), (4, 64, 3), (4, 128, 4), (4, 128, 8)):
        code, zero, width = ("*i8", "*i8", dim) if bits == 8 else ("*u8", "*u8", dim // 2)
        side = {"keys": code, "values": code, "key_zeros": zero, "value_zeros": zero}
        floats = dict.fromkeys(("key_scales", "value_scales", "partial", "largest_of", "sum_of"), "*fp32")
        sizes = {"SCALE": "fp32", "S": "i32", "PART": "i32", "SPLITS": "i32"}
        tile = tile_for(bits, dim, sm)
        constants = {"HKV": 8, "SHARED": shared, "D": dim, "BITS": bits, "BLOCK_Q": 16, "BLOCK_D": width, "BLOCK": tile.n}
        signature = {"q": "*bf16", **side, "lengths": "*i32", **floats, **sizes}
        name, free = f"decode-attention/int{bits}-d{dim}-gqa{shared}", ("S", "PART", "SPLITS")
        made.append(Case(name, attend_kernel, signature, constants, tile.warps, tile.stages, "bf16", free))
    joined = {"partial": "*fp32", "largest_of": "*fp32", "sum_of": "*fp32", "y": "*bf16", "SPLITS": "i32"}
    constants = {"D": 128, "BLOCK_SPLITS": 16, "BLOCK_D": 128}
    made.append(Case("decode-attention/join", join_kernel, joined, constants, 4, 3, None, ("SPLITS",)))
    return made
