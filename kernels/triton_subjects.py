"""What `advisor selfcheck` puts each Triton kernel through: inputs, the float64 truth, the error that formats allow, rivals.

A subject runs everything that a step of a model would: the activation's quantizer counts, packing of weights does not.
`allowed` bounds each element by the formats alone: u |y| for the rounding of the output and (additions + 4) v |x| |w| for
its sums, where v is 2^-24 in the interpreter; on a GPU 2^-23, as matrix instructions truncate (Fasi et al. 2021,
10.7717/peerj-cs.330), and 2^-13 for FP8, whose sums keep 14 bits on sm_90 between float32 additions (arXiv:2412.19437,
section 3.3.2). Nothing is tuned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .rivals import Integers

Tensor = Any
Call = Callable[[], Any]

BF16, FP16 = "bfloat16", "float16"
UNIT = {FP16: 2.0**-11, BF16: 2.0**-8}
"""Largest relative error of rounding to it; below 2^-14 float16 is off by 2^-25 at most instead."""
Sizes = tuple[int, int, int]
"""M, N, K"""


@dataclass(frozen=True)
class Subject:
    name: str
    shape: str
    run: Call
    true: Call
    """float64"""
    allowed: Callable[[Tensor], Tensor]
    """Of the truth: the largest error of each element."""
    plain: Call | None = None
    """The 16-bit operator that it replaces: cuBLAS through torch.matmul, or torch's attention; None: nothing."""
    problem: tuple[str, Tensor, Tensor] | None = None
    """(kind, x [M, K], w [N, K] in 16 bits) for other packages' kernels of that kind (`rivals.py`)."""
    integers: Integers | None = None
    """What our INT4 product multiplies by, for packages that take it."""


SMALL: tuple[Sizes, ...] = ((1, 40, 192), (17, 72, 200))
"""For the numbers: a single row, odd rows, tails of every kind."""
DECODE: tuple[Sizes, ...] = ((1, 4096, 4096), (16, 4096, 4096))
PREFILL: tuple[Sizes, ...] = ((512, 4096, 4096),)
BOOKS = ("nf4", "fp4", "quantile", "dynamic")
Cache = tuple[int, int, int, int, int]
"""batch, query heads, cache heads, head width, tokens"""
SMALL_CACHES: tuple[Cache, ...] = ((2, 4, 2, 64, 150),)
CACHES: tuple[Cache, ...] = ((16, 32, 8, 128, 2048),)


def subjects(device: str, sm: int, *, small: bool) -> dict[str, Callable[[], Subject]]:
    """Name and shape -> what builds the subject. `small`: where numbers go wrong, in both 16-bit types, each of which is a
    kernel of its own; else shapes of models, timed as well, in bfloat16."""
    if not small:
        return _subjects(device, sm, DECODE, PREFILL, CACHES, BF16)
    return _subjects(device, sm, SMALL, SMALL, SMALL_CACHES, BF16) | _subjects(device, sm, SMALL, SMALL, SMALL_CACHES, FP16)


def _subjects(
    device: str, sm: int, decode: Iterable[Sizes], prefill: Iterable[Sizes], caches: Iterable[Cache], dtype: str
) -> dict[str, Callable[[], Subject]]:
    made: dict[str, Callable[[], Subject]] = {}
    for sizes in decode:
        at = " {}x{}x{}".format(*sizes) + typed(dtype)
        for group in (32, 64, 128):
            made[f"w4a16-g{group}{at}"] = partial(_int4, device, sizes, group, asymmetric=False, dtype=dtype)
            made[f"w4a16-g{group}-asymmetric{at}"] = partial(_int4, device, sizes, group, asymmetric=True, dtype=dtype)
            made[f"w8a16-g{group}{at}"] = partial(_int8_weights, device, sizes, group, dtype=dtype)
        made["w8a16" + at] = partial(_int8_weights, device, sizes, dtype=dtype)
        for book in BOOKS:
            made[f"codebook-{book}{at}"] = partial(_codebook, device, sizes, book, dtype=dtype)
        for kind in ("int4", "int8", "codebook"):
            made[f"dequantize-{kind}{at}"] = partial(_dequantize, device, sizes, kind, dtype=dtype)
    for sizes in prefill:
        at = " {}x{}x{}".format(*sizes) + typed(dtype)
        made["w8a8" + at] = partial(_int8, device, sizes, dtype=dtype)
        made["llm-int8" + at] = partial(_llm_int8, device, sizes, dtype=dtype)
        for bits in (8, 4):
            made[f"hadamard-int{bits}{at}"] = partial(_hadamard, device, sizes, bits, dtype=dtype)
        if sm >= 89 or device == "cpu":
            made["fp8" + at] = partial(_fp8, device, sizes, dtype=dtype)
    for cache in caches:
        for kind in ("int8", "int4", "fp8", "turbo"):
            name = f"decode-attention-{kind} " + "x".join(map(str, cache)) + typed(dtype)
            made[name] = partial(attention, device, cache, kind, dtype=dtype)
    return made


def typed(dtype: str) -> str:
    """What a name or shape says of another type than bfloat16."""
    return "" if dtype == BF16 else f", {dtype}"


def product(name: str, device: str, sizes: Sizes) -> Subject:
    """Of a kernel that is timed on the sizes of a model (`triton_tuning.py`): w4a16-g32 to -g128 with zero points, w8a16-g0
    (per channel) to -g128, w8a8, fp8."""
    if name.startswith("w4a16-g"):
        return _int4(device, sizes, int(name.removeprefix("w4a16-g")), asymmetric=True)
    if name.startswith("w8a16-g"):
        return _int8_weights(device, sizes, int(name.removeprefix("w8a16-g")))
    return {"w8a8": _int8, "fp8": _fp8}[name](device, sizes)


COMPILED = {
    **{f"w4a16-g{group}{kind}": f"w4a16/g{group}" for group in (32, 64, 128) for kind in ("", "-asymmetric")},
    "w8a16": "w8a16/channel",
    **{f"w8a16-g{group}": f"w8a16/g{group}" for group in (32, 64, 128)},
    **{f"codebook-{book}": "codebook/g64" for book in BOOKS},
    "dequantize-int4": "dequantize/symmetric-g64",
    "dequantize-int8": "dequantize/int8-g64",
    "dequantize-codebook": "dequantize/codebook-g64",
    "w8a8": "w8a8/",
    "llm-int8": "llm-int8/",
    **{f"hadamard-int{bits}": f"hadamard/int{bits}" for bits in (8, 4)},
    "fp8": "fp8/",
    **{f"decode-attention-{kind}": f"decode-attention/{kind}" for kind in ("int8", "int4", "fp8", "turbo")},
}
"""Subject -> how the names of its code in the golden table begin."""


def excess(found: Tensor, subject: Subject) -> float:
    """Largest error over what is allowed: at most 1 is right; infinite where one is no number and the other is."""
    true = subject.true()
    if found.shape != true.shape or not bool(found.isfinite().all()):
        return math.inf
    error, allowed = (found.double() - true).abs(), subject.allowed(true)
    return float((error / allowed.clamp_min(1e-300)).max()) if error.numel() else 0.0


def _drawn(device: str, sizes: Sizes, dtype: str) -> tuple[Tensor, Tensor]:
    """x: [M, K] standard normal, w: [N, K] with variance 1 / K, both exact in 16 bits; the same on every device."""
    import torch

    m, n, k = sizes
    draw = torch.Generator().manual_seed(m + n + k)
    kind = getattr(torch, dtype)
    x = torch.randn(m, k, generator=draw).to(kind)
    w = torch.randn(n, k, generator=draw).div(math.sqrt(k)).to(kind)
    return x.to(device), w.to(device)


def _product(name: str, run: Call, x: Tensor, w: Tensor, additions: int, plain: Tensor, kind: str) -> Subject:
    """x: float64 [M, K], w: float64 [N, K], both as the kernel's formats have them exactly. plain: w in 16 bits."""
    (m, k), n, device = x.shape, w.shape[0], str(x.device)
    v = 2.0**-24 if device == "cpu" else 2.0**-13 if kind == "fp8" else 2.0**-23
    dtype = str(plain.dtype).removeprefix("torch.")

    def allowed(true: Tensor) -> Tensor:
        sums = (additions + 4) * v * (x.abs() @ w.abs().T)
        return UNIT[dtype] * (true.abs() + sums) + sums + (2.0**-25 if dtype == FP16 else 0)

    half, shape = x.to(plain.dtype), f"M {m}, N {n}, K {k}{typed(dtype)}"
    return Subject(name, shape, run, lambda: x @ w.T, allowed, lambda: half @ plain.T, (kind, half, plain))


def _codes(w: Tensor, group: int, levels: int) -> tuple[Tensor, Tensor]:
    """w: [N, K] -> unsigned codes around levels / 2, scales [N, groups] in w's type."""
    import torch

    n, k = w.shape
    groups = -(-k // group)
    blocks = torch.nn.functional.pad(w.float(), (0, groups * group - k)).reshape(n, groups, group)
    scales = (blocks.abs().amax(-1) / (levels / 2 - 1)).clamp_min(1e-6).to(w.dtype)
    codes = ((blocks / scales.float()[..., None]).round() + levels // 2).clamp(0, levels - 1)
    return codes.reshape(n, -1)[:, :k].to(torch.uint8).contiguous(), scales


def _spread(scales: Tensor, group: int, k: int) -> Tensor:
    return scales.double().repeat_interleave(group, 1)[:, :k]


def _int4(device: str, sizes: Sizes, group: int, *, asymmetric: bool, dtype: str = BF16) -> Subject:
    import torch

    from . import triton_w4a16
    from .rivals import Integers

    x, w = _drawn(device, sizes, dtype)
    codes, scales = _codes(w, group, 16)
    zeros = (torch.arange(scales.numel(), device=device) % 16).to(torch.uint8).reshape(scales.shape) if asymmetric else None
    packed = triton_w4a16.pack(codes, scales, zeros, group)
    values = (codes.double() - (8 if zeros is None else _spread(zeros, group, sizes[2]))) * _spread(scales, group, sizes[2])
    name = f"w4a16-g{group}{'-asymmetric' if asymmetric else ''}"
    made = _product(name, lambda: triton_w4a16.w4a16(x, *packed, group), x.double(), values, sizes[2], w, "w4a16")
    return replace(made, integers=Integers(codes, scales, zeros, group))


def _signed(codes: Tensor) -> Tensor:
    """uint8 around 128 -> int8"""
    import torch

    return (codes.to(torch.int16) - 128).to(torch.int8)


def _int8_weights(device: str, sizes: Sizes, group: int = 0, *, dtype: str = BF16) -> Subject:
    """`group` 0: one scale a channel."""
    from . import triton_w8a16

    x, w = _drawn(device, sizes, dtype)
    codes, scales = _codes(w, group or sizes[2], 256)
    signed, rows = _signed(codes), scales.T.contiguous()
    values = signed.double() * _spread(scales, group or sizes[2], sizes[2])
    name = f"w8a16-g{group}" if group else "w8a16"
    return _product(name, lambda: triton_w8a16.w8a16(x, signed, rows, group), x.double(), values, sizes[2], w, "w8a16")


def _book(book: str, w: Tensor) -> Tensor:
    """float32 [16]"""
    import torch

    from . import triton_codebook as kernel

    if book == "quantile":
        return torch.tensor(kernel.quantile_codebook(w.float().cpu().numpy()), device=w.device)
    return torch.tensor({"nf4": kernel.NF4, "fp4": kernel.FP4, "dynamic": kernel.dynamic_codebook()}[book], device=w.device)


def _codebook(device: str, sizes: Sizes, book: str, *, dtype: str = BF16) -> Subject:
    """Other packages have NF4 alone."""
    from . import triton_codebook

    x, w = _drawn(device, sizes, dtype)
    codes, scales = _codes(w, 64, 16)
    table, packed = _book(book, w), triton_codebook.pack(codes, scales, 64)
    values = table.to(x.dtype).double()[codes.long()] * _spread(scales, 64, sizes[2])

    def run() -> Tensor:
        return triton_codebook.codebook_product(x, packed[0], table, packed[1], 64)

    name = f"codebook-{book}"
    return _product(name, run, x.double(), values, sizes[2], w, name)


def _dequantize(device: str, sizes: Sizes, kind: str, *, dtype: str = BF16) -> Subject:
    """The slow path itself: nothing that it replaces, so no verdict on its speed."""
    from . import triton_codebook, triton_dequantize, triton_w4a16

    x, w = _drawn(device, sizes, dtype)
    codes, scales = _codes(w, 64, 256 if kind == "int8" else 16)
    spread = _spread(scales, 64, sizes[2])
    written: Call
    if kind == "int8":
        signed, rows = _signed(codes), scales.T.contiguous()
        exact, written = signed.double() * spread, lambda: triton_dequantize.dequantize_int8(signed, rows, 64)
    elif kind == "int4":
        packed = triton_w4a16.pack(codes, scales, None, 64)
        exact, written = (codes.double() - 8) * spread, lambda: triton_dequantize.dequantize_int4(*packed, 64, sizes[2])
    else:
        nf4, pair = _book("nf4", w), triton_codebook.pack(codes, scales, 64)
        exact = nf4.to(w.dtype).double()[codes.long()] * spread
        written = lambda: triton_dequantize.dequantize_codebook(pair[0], nf4, pair[1], 64, sizes[2])  # noqa: E731
    values = exact.to(w.dtype).double()
    made = _product(f"dequantize-{kind}", lambda: x @ written().T, x.double(), values, sizes[2], w, "dequantize")
    return Subject(made.name, made.shape, made.run, made.true, made.allowed)


def _int8(device: str, sizes: Sizes, *, dtype: str = BF16) -> Subject:
    import torch

    from . import triton_w8a8

    x, w = _drawn(device, sizes, dtype)
    w_scales = w.float().abs().amax(1) / 127
    codes = (w.float() / w_scales[:, None]).round().to(torch.int8)
    x_scales = x.float().abs().amax(1, keepdim=True) / 127
    rounded = (x.float() / x_scales).round().double() * x_scales.double()

    def run() -> Tensor:
        return triton_w8a8.w8a8(*triton_w8a8.quantize(x, torch.int8), codes, w_scales, x.dtype)

    values = codes.double() * w_scales.double()[:, None]
    made = _product("w8a8", run, rounded, values, 16, w, "w8a8")
    return _with_own_inputs(made, x, w)


def _fp8(device: str, sizes: Sizes, *, dtype: str = BF16) -> Subject:
    import torch

    from . import triton_w8a8

    x, w = _drawn(device, sizes, dtype)

    def split(one: Tensor) -> tuple[Tensor, Tensor]:
        scales = one.float().abs().amax(1) / 448
        return (one.float() / scales[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn), scales

    (x_codes, x_scales), (codes, w_scales) = split(x), split(w)

    def run() -> Tensor:
        return triton_w8a8.w8a8(*triton_w8a8.quantize(x, torch.float8_e4m3fn), codes, w_scales, x.dtype)

    rounded, values = x_codes.double() * x_scales.double()[:, None], codes.double() * w_scales.double()[:, None]
    return _with_own_inputs(_product("fp8", run, rounded, values, sizes[2], w, "fp8"), x, w)


def _llm_int8(device: str, sizes: Sizes, *, dtype: str = BF16) -> Subject:
    import torch

    from . import triton_llm_int8

    x, w = _drawn(device, sizes, dtype)
    x[:, 3 :: max(sizes[2] // 4, 1)] = 20.0
    w_scales = w.float().abs().amax(1) / 127
    codes = (w.float() / w_scales[:, None]).round().to(torch.int8)
    loud = (x.abs() >= triton_llm_int8.THRESHOLD).any(0)
    bound = x.float().abs().masked_fill(x.abs() >= triton_llm_int8.THRESHOLD, 0).amax(1, keepdim=True)
    factor = torch.full_like(bound, 127) / bound
    quiet = (x.float() * factor).round().double() * (bound / 127).double()

    def run() -> Tensor:
        return triton_llm_int8.llm_int8(triton_llm_int8.decompose(x), codes, w_scales)

    values = codes.double() * w_scales.double()[:, None]
    made = _product("llm-int8", run, x.double().where(loud, quiet), values, int(loud.sum()) + 16, w, "llm-int8")
    return _with_own_inputs(made, x, w)


def _with_own_inputs(made: Subject, x: Tensor, w: Tensor) -> Subject:
    """The 16-bit product and the rivals take x as it is, not its rounded values."""
    kind = made.problem[0] if made.problem else ""
    return Subject(
        made.name, made.shape, made.run, made.true, made.allowed, lambda: x @ w.T, (kind, x, w)
    )  # fmt: skip


def _hadamard(device: str, sizes: Sizes, bits: int, *, dtype: str = BF16) -> Subject:
    """Codes times scales against the rotated values: half a step, and what sums may move codes and scale."""
    import torch

    from . import triton_hadamard

    m, _, k = sizes
    block, k = 64, k - k % 64
    x, _ = _drawn(device, (m, sizes[1], k), dtype)
    at = torch.arange(block, device=device)
    parity = sum(((at[:, None] & at[None, :]) >> bit) & 1 for bit in range(7)) % 2
    turn = (1 - 2 * parity).double() / math.sqrt(block)
    blocks = x.double().reshape(m, -1, block)
    turned = (blocks @ turn).reshape(m, k)
    most = {8: 127, 4: 7}[bits]
    step = turned.abs().amax(1, keepdim=True) / most
    v = 2.0**-24 if device == "cpu" else 2.0**-23
    sums = (block + 8) * v * blocks.abs().sum(-1).amax(-1)[:, None] / math.sqrt(block)

    def run() -> Tensor:
        codes, scales = triton_hadamard.rotate_quantize(x, block, bits)
        if bits == 4:  # bytes hold pairs of blocks
            pairs = codes.reshape(m, -1, 1, block)
            codes = torch.cat([pairs & 15, pairs >> 4], 2).reshape(m, -1)[:, :k].to(torch.int8) - 8
        return codes.float() * scales[:, None]

    def plain() -> Tensor:
        rotated = (x.reshape(-1, block) @ turn.to(x.dtype)).reshape(m, k).float()
        scales = rotated.abs().amax(1, keepdim=True) / most
        return (rotated / scales).round().to(torch.int8)

    return Subject(
        f"hadamard-int{bits}", f"M {m}, K {k}, blocks of {block}{typed(dtype)}", run, lambda: turned,
        lambda true: 0.5 * step + 3 * sums + 8 * v * true.abs(), plain,
    )  # fmt: skip


def attention(device: str, cache: Cache, kind: str, *, dtype: str = BF16) -> Subject:
    """One step over a cache; the last sequence is short. Truth and bound are in the kernel's basis."""
    import torch

    from . import triton_decode_attention as kernel
    from .triton_codebook import quantile_codebook

    batch, hq, hkv, dim, tokens = cache
    draw = torch.Generator().manual_seed(dim + tokens)
    q, k, v = (
        torch.randn(batch, heads, rows, dim, generator=draw).to(getattr(torch, dtype)).to(device)
        for heads, rows in ((hq, 1), (hkv, tokens), (hkv, tokens))
    )
    q = q[:, :, 0].contiguous()
    lengths = torch.full((batch,), tokens, dtype=torch.int32, device=device)
    lengths[-1] = max(1, tokens // 3)
    if kind == "turbo":
        values = torch.tensor(quantile_codebook(torch.randn(4096, generator=draw).numpy()), device=device).float() * 2.5
        turn = torch.linalg.qr(torch.randn(dim, dim, generator=draw))[0].to(device).contiguous()
        keys, held = (kernel.quantize_turbo(one, values, turn) for one in (k, v))
    else:
        make = {"int8": kernel.quantize_int8, "int4": kernel.quantize_int4, "fp8": kernel.quantize_fp8}[kind]
        keys, held = make(k), make(v)
    exact_k, exact_v = (kernel.dequantized(one, q.dtype).repeat_interleave(hq // hkv, 1) for one in (keys, held))
    real = torch.arange(tokens, device=device) < lengths[:, None, None]
    query = (q if keys.turn is None else (q.float() @ keys.turn.T).to(q.dtype)).double()
    scores = torch.einsum("bhd,bhsd->bhs", query, exact_k) / math.sqrt(dim)
    weights = torch.softmax(scores.masked_fill(~real, -math.inf), -1)
    single = 2.0**-24 if device == "cpu" else 2.0**-23
    unit = UNIT[dtype]
    longest = torch.einsum("bhd,bhsd->bhs", query.abs(), exact_k.abs()).amax(-1) / math.sqrt(dim)
    score = (dim + 8) * single * longest

    def true() -> Tensor:
        found = torch.einsum("bhs,bhsd->bhd", weights, exact_v)
        return found if held.turn is None else found @ held.turn.double()

    def allowed(exact: Tensor) -> Tensor:
        sizes = torch.einsum("bhs,bhsd->bhd", weights, exact_v.abs())
        inner = (unit + 2 * score[..., None] + (tokens + 64) * single) * sizes
        if held.turn is not None:
            inner = inner @ held.turn.double().abs() + 2 * dim * single * sizes.sum(-1, keepdim=True)
        return inner * (1 + unit) + unit * exact.abs() + 2.0**-25

    def plain() -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True)

    return Subject(
        f"decode-attention-{kind}", f"B {batch}, heads {hq}/{hkv}, D {dim}, S {tokens}{typed(dtype)}",
        lambda: kernel.decode_attention(q, keys, held, lengths), true, allowed, plain, ("attention", q, torch.stack([k, v])),
    )  # fmt: skip


def product_at(name: str, device: str, sizes: Sizes) -> Subject:
    """A quantized product of `subjects` at any (M, N, K): w4a16-g64, w4a16-g64-asymmetric, w8a16, w8a16-g64, codebook-nf4, w8a8
    or fp8."""
    if name.startswith("w8a16-g"):
        return _int8_weights(device, sizes, int(name.removeprefix("w8a16-g")))
    if name == "codebook-nf4":
        return _codebook(device, sizes, "nf4")
    if name in ("w8a16", "w8a8", "fp8"):
        return {"w8a16": _int8_weights, "w8a8": _int8, "fp8": _fp8}[name](device, sizes)
    if name.startswith("w4a16-g"):
        group, _, asymmetric = name.removeprefix("w4a16-g").partition("-")
        return _int4(device, sizes, int(group), asymmetric=bool(asymmetric))
    raise ValueError(f"{name!r} is no quantized product of {', '.join(COMPILED)}")
