"""The schemes that GPU runtimes serve, as data, and how published tables and exports spell them.

    bf16          nothing quantized
    fp8           W8A8 in FP8 E4M3, one scale a tensor; lm_head in bf16
    fp8-block     the same with a scale for each 128 x 128 of the weights (DeepSeek's checkpoints)
    w8a8-int8     W8A8 in INT8, a scale per output channel and per token (SmoothQuant)
    w4a16, w8a16  weight-only: 4 bit in groups of 128, 8 bit per channel
    nvfp4         W4A4 in FP4 E2M1, an FP8 scale for each 16 weights
    mxfp4         weight-only FP4, a power of two for each 32 weights (gpt-oss)

`...-kv8` has an FP8 cache beside. Experts, attention and MLPs are quantized; lm_head, embedding, routers and norms are not.
"""

from __future__ import annotations

from functools import cache

from quantadvisor.documents import BadInput, Format, Scheme

from .problem import matrix_bytes

FP8_TENSOR = Format(number="float", bits=8, granularity="tensor")
FP8_TOKEN = Format(number="float", bits=8, granularity="token", dynamic=True)
INT8_CHANNEL = Format(number="int", bits=8, granularity="channel")
INT8_TOKEN = Format(number="int", bits=8, granularity="token", dynamic=True)
INT4_GROUP = Format(number="int", bits=4, granularity="group", group_size=128)
FP8_BLOCK = Format(number="float", bits=8, granularity="block", group_size=128)
NVFP4 = Format(number="float", bits=4, granularity="group", group_size=16)
MXFP4 = Format(number="float", bits=4, granularity="group", group_size=32)

FORMATS: dict[str, tuple[Format | None, Format | None]] = {
    "bf16": (None, None),
    "fp8": (FP8_TENSOR, FP8_TENSOR),
    "fp8-block": (FP8_BLOCK, FP8_TOKEN),
    "w8a8-int8": (INT8_CHANNEL, INT8_TOKEN),
    "w8a16": (INT8_CHANNEL, None),
    "w4a16": (INT4_GROUP, None),
    "nvfp4": (NVFP4, NVFP4),
    "mxfp4": (MXFP4, None),
}  # fmt: skip
"""Weights and activations."""

SCALE_BYTES: dict[str, float] = {"fp8": 4, "fp8-block": 4 / 128, "w8a8-int8": 4, "w8a16": 2, "w4a16": 2, "nvfp4": 1, "mxfp4": 1}
"""Of one scale, a group; that of fp8-block is shared by 128 rows."""

ALSO = {
    "": "bf16", "bfloat16": "bf16", "fp16": "bf16", "float16": "bf16", "half": "bf16",
    "fp8_static": "fp8", "fp8_ootb": "fp8", "fp8_per_tensor": "fp8", "fp8_block": "fp8-block",
    "fp4": "nvfp4", "w4a4": "nvfp4", "w4a16_mxfp4": "mxfp4", "fp8_dynamic": "fp8", "w8a8_fp8": "fp8",
    "sq": "w8a8-int8", "int8": "w8a8-int8", "w8a8": "w8a8-int8",
    "int8_wo": "w8a16", "int4": "w4a16", "int4_wo": "w4a16", "awq": "w4a16", "gptq": "w4a16", "w4a16_awq": "w4a16",
}  # fmt: skip

CACHE = "-kv8"


@cache
def gpu_scheme(name: str, where: str = "precision") -> Scheme:
    """The scheme of a name, ours or one of `ALSO`; `-kv8` stores the cache in FP8."""
    stem = name.strip().lower().removesuffix(CACHE)
    known = ALSO.get(stem, stem)
    if known not in FORMATS:
        raise BadInput(where, f"{name!r} is no scheme that is known here", f"give one of {', '.join(FORMATS)}")
    weights, activations = FORMATS[known]
    cache = FP8_TENSOR if name.strip().lower().endswith(CACHE) else None
    return Scheme(
        name=known + (CACHE if cache else ""), compute="bf16", weights=weights, activations=activations, keys=cache, values=cache
    )


def stem_of(scheme: Scheme) -> str:
    return scheme.name.removesuffix(CACHE)


def arithmetic(scheme: Scheme) -> str:
    """The number type of its products: `bf16`, `int8`, `fp8` or `fp4`."""
    if scheme.activations is None:
        return "bf16"
    return f"{'int' if scheme.activations.number == 'int' else 'fp'}{scheme.activations.bits:g}"


def stored_bytes(n: int, k: int, scheme: Scheme, quantized: bool = True) -> float:
    """Bytes of w: [n, k] with its scales, in the scheme or left in 16 bit."""
    if not quantized or scheme.weights is None:
        return 2.0 * n * k
    return matrix_bytes(n, k, scheme.weights, 2, SCALE_BYTES[stem_of(scheme)])


def cache_bits(scheme: Scheme) -> float:
    return scheme.keys.bits if scheme.keys is not None else 16
