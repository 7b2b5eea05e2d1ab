"""One decode step of attention over a quantized cache, GQA, split over the cache (flash decoding). Never run on a GPU.

q: float16 or bfloat16 [B, HQ, D], one new token each; keys, values: a `Cached` of one of four formats; lengths: int32 [B],
how many of the S places hold tokens (none: the output is 0). The HQ / HKV query heads that share a cache head are the rows
of the matrix instruction, filled up to 16.

    int8    codes int8 [B, HKV, S, D], scales float32 [B, HKV, S]: one per token and head, symmetric
    int4    two codes a byte, uint8 [B, HKV, S, D / 2], dimension d low and d + D / 2 high; scales and zero points uint8
            [B, HKV, S]: value = (code - zero) * scale
    fp8     codes float8_e4m3fn [B, HKV, S, D], one scale float32 [1] for all. Widened to 16 bits, on sm_80 by moving bits
    turbo   4-bit codes as int4 has them, into 16 values float32 [16]; scales [B, HKV, S] are norms / sqrt(D), and `turn`,
            orthogonal [D, D], is what vectors were rotated by. q is rotated once and y back, the cache never

Regime: decode reads the whole cache each step, so bytes are time, and one program a sequence and head leaves most of a GPU
idle: the cache is cut into parts, each keeps its running maximum, sum and weighted values, and a second kernel joins them.
The grid depends on S alone, so that a CUDA graph can replay it while lengths grow.

Integers and E4M3 are exact in 16 bits, turbo's 16 values are rounded to q's type; a key's scale multiplies the float32
score, a value's scale the weight, which is then rounded to q's type: that, and float32 sums, is all the rounding before the
output's; turbo rounds the rotated q to its type as well. Source: flash decoding (Dao et al. 2023, with the online softmax
of arXiv:2205.14135); INT4 cache with zero points as in KIVI (arXiv:2402.02750), though per token here; E4M3
(arXiv:2209.05433); TurboQuant's least-squares form (arXiv:2504.19874), whose 3 bits and fewer fit but save no bytes here.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import triton
import triton.language as tl

from .triton_codebook import looked_up
from .triton_launch import LAUNCH, Case, Tensor, Tile, check, processors, signed_float, sixteen_bit, target, unsigned_float
from .triton_tuning import chosen

MOST_SPLITS = 64
Format = Literal["int8", "int4", "fp8", "turbo"]


@dataclass(frozen=True)
class Cached:
    """Keys or values as the kernel reads them; the module's docstring has the shapes."""

    format: Format
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    codebook: Tensor | None = None
    turn: Tensor | None = None

    @property
    def dim(self) -> int:
        return int(self.codes.shape[-1]) * (2 if self.format in ("int4", "turbo") else 1)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(one for one in (self.codes, self.scales, self.zeros, self.codebook, self.turn) if one is not None)


@triton.jit
def e4m3_float(q, dtype: tl.constexpr, NATIVE: tl.constexpr):
    """q: bytes of E4M3 as `dtype`, exactly, by the target's own conversion or, before sm_89, which has none, by bits:
    exponent and mantissa moved into a float32 are 2^120 too small. NaN stays NaN."""
    if NATIVE:
        return q.to(tl.float8e4nv, bitcast=True).to(dtype)
    size = q.to(tl.int32) & 127
    value = (size << 20).to(tl.float32, bitcast=True) * 1329227995784915872903807060280344576.0
    value = tl.where(size == 127, float("nan"), value)
    return tl.where(q >= 128, -value, value).to(dtype)


@triton.jit(do_not_specialize=["S", "PART", "SPLITS"])
def attend_kernel(
    q,
    keys,
    key_scales,
    key_zeros,
    values,
    value_scales,
    value_zeros,
    codebook,
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
    FORMAT: tl.constexpr,
    NATIVE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One part of one cache head: program (b * HKV + head, part). SCALE: 1 / sqrt(D) * log2(e), for exp2."""
    pair, part = tl.program_id(0), tl.program_id(1)
    NIBBLES: tl.constexpr = FORMAT == "int4" or FORMAT == "turbo"
    WIDTH: tl.constexpr = D // 2 if NIBBLES else D
    dtype: tl.constexpr = q.dtype.element_ty
    r, d, t = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK)
    head = pair * SHARED + r  # of q, counted over the batch: b * HQ + h
    real, in_width = r < SHARED, d < WIDTH
    q_at = q + head[:, None] * D + d[None, :]
    q_low = tl.load(q_at, mask=real[:, None] & in_width[None, :], other=0.0)
    if NIBBLES:
        q_high = tl.load(q_at + WIDTH, mask=real[:, None] & in_width[None, :], other=0.0)
        high = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    if FORMAT == "turbo":
        table = tl.load(codebook + tl.arange(0, 16)).to(dtype)
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
        if FORMAT == "int8":
            scores = tl.dot(q_low, signed_float(k_code, dtype))
        elif FORMAT == "fp8":
            scores = tl.dot(q_low, e4m3_float(k_code, dtype, NATIVE))
        elif FORMAT == "int4":
            k_zero = tl.load(key_zeros + at, mask=inside, other=0).to(tl.float32)[None, :]
            scores = tl.dot(q_low, unsigned_float(k_code & 15, k_zero, dtype))
            scores = tl.dot(q_high, unsigned_float(k_code >> 4, k_zero, dtype), scores)
        else:
            scores = tl.dot(q_low, looked_up(table, k_code & 15, BLOCK_D, BLOCK))
            scores = tl.dot(q_high, looked_up(table, k_code >> 4, BLOCK_D, BLOCK), scores)
        if FORMAT == "fp8":
            scores *= tl.load(key_scales) * SCALE
        else:
            scores *= tl.load(key_scales + at, mask=inside, other=0.0)[None, :] * SCALE
        scores = tl.where(inside[None, :], scores, float("-inf"))
        new = tl.maximum(largest, tl.max(scores, 1))
        base = tl.where(new == float("-inf"), 0.0, new)  # all keys so far at -inf: their weights are 0, not NaN
        p = tl.exp2(scores - base[:, None])
        kept = tl.exp2(largest - base)
        weight = weight * kept + tl.sum(p, 1)
        if FORMAT != "fp8":
            p *= tl.load(value_scales + at, mask=inside, other=0.0)[None, :]
        p = p.to(dtype)
        if FORMAT == "int8":
            low = tl.dot(p, signed_float(v_code, dtype), low * kept[:, None])
        elif FORMAT == "fp8":
            low = tl.dot(p, e4m3_float(v_code, dtype, NATIVE), low * kept[:, None])
        elif FORMAT == "int4":
            v_zero = tl.load(value_zeros + at, mask=inside, other=0).to(tl.float32)[:, None]
            low = tl.dot(p, unsigned_float(v_code & 15, v_zero, dtype), low * kept[:, None])
            high = tl.dot(p, unsigned_float(v_code >> 4, v_zero, dtype), high * kept[:, None])
        else:
            low = tl.dot(p, looked_up(table, v_code & 15, BLOCK, BLOCK_D), low * kept[:, None])
            high = tl.dot(p, looked_up(table, v_code >> 4, BLOCK, BLOCK_D), high * kept[:, None])
        largest = new
    if FORMAT == "fp8":
        low *= tl.load(value_scales)
    row = head * SPLITS + part
    out_at = partial + row[:, None] * D + d[None, :]
    tl.store(out_at, low, mask=real[:, None] & in_width[None, :])
    if NIBBLES:
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


def quantize_int8(x: Tensor) -> Cached:
    """x: [B, H, S, D]; plain torch, as the other three, for filling a cache."""
    scales = x.float().abs().amax(-1) / 127
    codes = (x.float() / scales.clamp_min(1e-30)[..., None]).round().clamp(-127, 127).to(_torch().int8)
    return Cached("int8", codes, scales)


def quantize_int4(x: Tensor) -> Cached:
    """x: [B, H, S, D]; the range always holds 0."""
    torch = _torch()
    low, high = x.float().amin(-1).clamp_max(0), x.float().amax(-1).clamp_min(0)
    scales = ((high - low) / 15).clamp_min(1e-30)
    zeros = (-low / scales).round().clamp(0, 15)
    codes = ((x.float() / scales[..., None]).round() + zeros[..., None]).clamp(0, 15).to(torch.uint8)
    return Cached("int4", pack_int4(codes), scales, zeros=zeros.to(torch.uint8))


def quantize_fp8(x: Tensor, peak: float = 448.0) -> Cached:
    """x: [B, H, S, D]; `peak` becomes the largest code, 448, and what is beyond is clipped. 448: the scale 1."""
    torch = _torch()
    scale = torch.full((1,), peak / 448.0, dtype=torch.float32, device=x.device)
    return Cached("fp8", (x.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn), scale)


def quantize_turbo(x: Tensor, codebook: Tensor, turn: Tensor) -> Cached:
    """x: [B, H, S, D]; codebook: float32, at most 16 ascending values for N(0, 1); turn: float32, orthogonal [D, D]."""
    torch = _torch()
    norms = x.float().norm(dim=-1, keepdim=True)
    turned = x.float() / norms.clamp(min=1e-30) @ turn.T * math.sqrt(x.shape[-1])
    codes = torch.bucketize(turned.contiguous(), (codebook[1:] + codebook[:-1]) / 2).to(torch.uint8)
    filled = torch.nn.functional.pad(codebook, (0, 16 - len(codebook)))
    return Cached("turbo", pack_int4(codes), norms[..., 0] / math.sqrt(x.shape[-1]), codebook=filled, turn=turn)


def dequantized(one: Cached, dtype: Any) -> Tensor:
    """float64 [B, H, S, D]: what a product with q of type `dtype` sees; for turbo in the rotated basis."""
    if one.format == "fp8":
        return one.codes.double() * one.scales.double()
    if one.format == "int8":
        return one.codes.double() * one.scales.double()[..., None]
    codes = _torch().cat([one.codes & 15, one.codes >> 4], -1)
    if one.codebook is not None:
        return one.codebook.to(dtype).double()[codes.long()] * one.scales.double()[..., None]
    assert one.zeros is not None
    return (codes.double() - one.zeros.double()[..., None]) * one.scales.double()[..., None]


def _torch() -> Any:
    import torch

    return torch


EXCEPTIONS: dict[tuple[Format, int, int], Tile] = {
    ("fp8", 64, 100): Tile(m=16, n=64, k=64, warps=8, stages=2),
    ("int4", 64, 100): Tile(m=16, n=64, k=64, warps=8, stages=2),
    ("int4", 64, 120): Tile(m=16, n=64, k=64, warps=8, stages=2),
    ("int8", 64, 90): Tile(m=16, n=64, k=64, warps=8, stages=2),
    ("int8", 64, 100): Tile(m=16, n=64, k=64, warps=8, stages=2),
    ("int8", 64, 120): Tile(m=16, n=64, k=64, warps=8, stages=2),
}
"""(format, D, sm) whose usual tile spills or asks for too much: what compiles there without."""


def tile_for(format: Format, dim: int, sm: int) -> Tile:
    """Rows of q, tokens a step and dimension; a static choice by registers, not by time: nothing was timed."""
    return EXCEPTIONS.get((format, dim, sm), Tile(16, 64, dim, warps=4, stages=2))


def parts_of(processors: int, programs: int, tokens: int, block: int) -> int:
    """Parts of the cache: two programs a multiprocessor, at least two blocks of tokens a part."""
    return max(1, min(-(-2 * processors // max(programs, 1)), tokens // (2 * block), MOST_SPLITS))


def decode_attention(
    q: Tensor, keys: Cached, values: Cached, lengths: Tensor, *, scaling: float | None = None, parts: int | None = None
) -> Tensor:
    """y: [B, HQ, D] in q's type. `scaling` multiplies q k; None: D^-0.5."""
    torch = _torch()
    sixteen_bit(q)
    check(q, lengths, *keys.tensors, *values.tensors)
    (batch, hq, dim), (_, hkv, tokens, width) = q.shape, keys.codes.shape
    if hq % hkv or keys.dim != dim or keys.format != values.format or keys.codes.shape != values.codes.shape:
        shapes = f"keys {tuple(keys.codes.shape)} {keys.format}, values {tuple(values.codes.shape)} {values.format}"
        raise ValueError(f"q {tuple(q.shape)}, {shapes} do not fit")
    best = chosen(f"decode-attention-{keys.format}", (batch * hkv, hq // hkv, dim), q)
    tile = best[0] if best else tile_for(keys.format, dim, target(q))
    parts = parts or parts_of(processors(q), batch * hkv, tokens, tile.n)
    part = triton.cdiv(triton.cdiv(tokens, parts), tile.n) * tile.n
    partial = torch.empty((batch, hq, parts, dim), dtype=torch.float32, device=q.device)
    largest, total = (torch.empty((batch, hq, parts), dtype=torch.float32, device=q.device) for _ in range(2))
    y = torch.empty(q.shape, dtype=q.dtype if values.turn is None else torch.float32, device=q.device)
    if not q.numel():
        return y.to(q.dtype)
    check(partial)
    turned = q if keys.turn is None else (q.float() @ keys.turn.T).to(q.dtype)
    k_codes, v_codes = (one.codes.view(torch.uint8) if one.format == "fp8" else one.codes for one in (keys, values))
    key_zeros, value_zeros = (one.codes if one.zeros is None else one.zeros for one in (keys, values))
    attend_kernel[(batch * hkv, parts)](
        turned, k_codes, keys.scales, key_zeros, v_codes, values.scales, value_zeros,
        keys.scales if keys.codebook is None else keys.codebook, lengths, partial, largest, total,
        math.log2(math.e) * (dim**-0.5 if scaling is None else scaling), tokens, part, parts,
        HKV=hkv, SHARED=hq // hkv, D=dim, FORMAT=keys.format, NATIVE=target(q) >= 89,
        BLOCK_Q=max(16, triton.next_power_of_2(hq // hkv)),
        BLOCK_D=max(16, triton.next_power_of_2(width)), BLOCK=tile.n, **tile.launch,
    )  # fmt: skip
    join_kernel[(batch * hq,)](
        partial, largest, total, y, parts,
        D=dim, BLOCK_SPLITS=triton.next_power_of_2(parts), BLOCK_D=triton.next_power_of_2(dim), num_warps=4, **LAUNCH,
    )  # fmt: skip
    return y if values.turn is None else (y @ values.turn).to(q.dtype)


CODES: dict[Format, str] = {"int8": "*i8", "int4": "*u8", "fp8": "*u8", "turbo": "*u8"}


def case(name: str, kind: Format, dim: int, shared: int, tile: Tile, sm: int) -> Case:
    side = dict.fromkeys(("keys", "values", "key_zeros", "value_zeros"), CODES[kind])
    floats = dict.fromkeys(("key_scales", "value_scales", "codebook", "partial", "largest_of", "sum_of"), "*fp32")
    sizes = {"SCALE": "fp32", "S": "i32", "PART": "i32", "SPLITS": "i32"}
    width = dim // 2 if kind in ("int4", "turbo") else dim
    constants = {"HKV": 8, "SHARED": shared, "D": dim, "FORMAT": kind, "NATIVE": sm >= 89, "BLOCK_Q": 16, "BLOCK_D": width,
                 "BLOCK": tile.n}  # fmt: skip
    signature = {"q": "*bf16", **side, "lengths": "*i32", **floats, **sizes}
    return Case(name, attend_kernel, signature, constants, tile.warps, tile.stages, "bf16", ("S", "PART", "SPLITS"))


def cases(sm: int) -> list[Case]:
    made = []
    for kind in CODES:
        for dim, shared in ((64, 3), (128, 4), (128, 8)):
            name = f"decode-attention/{kind}-d{dim}-gqa{shared}"
            made.append(case(name, kind, dim, shared, tile_for(kind, dim, sm), sm))
    joined = {"partial": "*fp32", "largest_of": "*fp32", "sum_of": "*fp32", "SPLITS": "i32"}
    constants = {"D": 128, "BLOCK_SPLITS": 16, "BLOCK_D": 128}
    for name, number in (("decode-attention/join", "*bf16"), ("decode-attention/join-fp32", "*fp32")):
        made.append(Case(name, join_kernel, {**joined, "y": number}, constants, 4, 3, None, ("SPLITS",)))
    return made


def tried(sm: int) -> list[Case]:
    """What timing on a device may choose instead (`triton_tuning.py`), for heads 128 wide."""
    tile = Tile(16, 128, 128, warps=8, stages=2)
    return [case(f"decode-attention-{kind}/{tile.label}", kind, 128, 4, tile, sm) for kind in CODES]
