"""Scheme names and what they stand for: `w4-g64-kv8` <-> Scheme. Pure.

    fp32, bf16, fp16  float weights of that type
    w4-g64, w8-g32  group-wise integer weights: 4 bit asymmetric, 8 bit symmetric
    w4-g128-sym     4 bit symmetric, codes about 8: what vLLM's fast kernels and GPTQ's checkpoints take (W4A16); 2 to 7 bits
    w4-g64-bf16     the same with everything else in 16 bit, lm_head and embeddings too: compressed-tensors, GPTQ's layout
    w4w8-g64        4 or 8 bit, chosen per linear by its sensitivity
    w8a8            int8 weights per channel, int8 activations at run time, one scale per token
    w7a8            the same with 7 bits of weight in int8 (reduce_range): exact on CPUs without VNNI or AMX, where sums of
                    products with 8 bits saturate (kernels/saturation.py)
    w8a8-tensor     w8a8 with one range per activation tensor: what onnxruntime's quantize_dynamic writes
    w8a8-static     the same with that range fixed by calibration
    w8a8-static-npu w8a8-static with such ranges on what every operator writes, and INT8 lm_head and embeddings: for NPUs
    w8a8-bf16       w8a8 with everything else in bfloat16, lm_head and embeddings too: compressed-tensors
    nf4-b64         blocks of 64 weights on the values of a number type, times their max|w|: int, nf (NF4), quantile and
                    dynamic with 3 to 8 bits, or e2m1 (exponent and mantissa); -c centres blocks, -p2 keeps 2 % of inputs,
                    -dq rounds the max|w| themselves (double quantization); -bf16: everything else in bfloat16 (bitsandbytes)
    wfp4            float weights, one format a linear and one real exponent bias a row: 4, 6 or 8 bit (LLM-FP4)
    q8_0, q4_0      GGUF: blocks of 32 with one float16 scale, symmetric; lm_head 8 bit (6.6 where 256 divides its rows)
    q5_0, q4_1, …   the same with 5 bit; _1: with a minimum beside the scale
    q4_k            GGUF's super-blocks of 256, q2_k to q6_k: scales of blocks of 16 or 32 are integers themselves

More of activations (`fp8-block`, `w4a4-fp`, `w8a8-outlier`), and the caches that any of these may have beside (`...-kv8`,
`...-kv4-kivi`, `...-kv2.5-turbo`, `...-kvf8`), are in `low_bit_schemes.py`.

Unless the scheme is a float type, lm_head takes 8 bits in the same groups (g64 with w8a8), and a tied embedding table
shares its codes. With w8a8-static it stays float: OpenVINO, once a graph has INT8 products, unpacks integer weights of
float ones, and INT8 inputs of lm_head cost SmolLM2-135M 0.02 of KL.
"""

from __future__ import annotations

import re
from typing import Literal

from quantadvisor.documents.scheme import Format, Scheme

from . import low_bit_schemes
from .linear_format import LinearFormat

HEAD_GROUP = 64
MIXED_BITS = 7.0
"""Bits a weight before sensitivities are known: 70 to 80 % of SmolLM2-135M's weights come out in 8 bit."""
EVEN = ("w4-g64-sym", "w4-g128-sym")
"""Symmetric 4-bit groups, which every method of integers in groups offers, with -bf16 too."""

PATTERN = re.compile(
    r"(?P<float>fp32|bf16|fp16)|w(?P<bits>[2-8]|4w8)-g(?P<group>\d+)(?P<even>-sym)?(?P<half>-bf16)?|w8a8(?P<range>-tensor|-static-npu|-static|-bf16)?|(?P<reduced>w7a8)|q(?P<blocks>[45]_[01]|8_0)"
    r"|q(?P<super>[2-6])_k|wfp(?P<row>[468])"
    r"|(?P<type>(?:int|nf|quantile|dynamic)(?P<wide>[3-8])|e(?P<e>[1-5])m(?P<m>[0-6]))-b(?P<block>\d+)(?P<centred>-c)?(?P<doubled>-dq)?"
    r"(?:-p(?P<percent>\d+))?(?P<narrow>-bf16)?"
)
SUPER_BITS = {"2": 2.625, "3": 3.4375, "4": 4.5, "5": 5.5, "6": 6.5625}
"""Bits a weight of GGUF's super-blocks of 256, their scales included."""


def scheme(name: str) -> Scheme:
    """The scheme of a name; ValueError when the name is none."""
    if cached := low_bit_schemes.cache(name):
        stem, update = cached
        return scheme(stem).model_copy(update={"name": name, **update})
    if made := low_bit_schemes.activations(name):
        return made
    found = PATTERN.fullmatch(name)
    if not found or (found["even"] and found["bits"] in ("8", "4w8")):  # symmetric by their plain name, at least in part
        raise ValueError(f"scheme {name!r} is unknown; forms are fp32, bf16, w4-g64, w4w8-g64, w8a8 and …-kv8")
    if found["float"]:
        floats: dict[str, Literal["fp32", "bf16", "fp16"]] = {"fp32": "fp32", "bf16": "bf16", "fp16": "fp16"}
        return Scheme(name=name, compute=floats[found["float"]])
    if found["blocks"] or found["super"]:
        return gguf_scheme(name, found["blocks"], found["super"])
    if found["row"]:
        return Scheme(name=name, weights=other_numbers(found))
    if found["type"]:
        if found["narrow"]:
            return Scheme(name=name, compute="bf16", weights=other_numbers(found))
        head = integer(8, "group", HEAD_GROUP)
        return Scheme(name=name, weights=other_numbers(found), embeddings=head, lm_head=head)
    if found["group"]:
        group = int(found["group"])
        bits = MIXED_BITS if found["bits"] == "4w8" else float(found["bits"])
        head = integer(8, "group", group)
        weights = integer(bits, "group", group, symmetric=bits == 8 or bool(found["even"]))
        if found["half"]:
            return Scheme(name=name, compute="bf16", weights=weights)
        return Scheme(name=name, weights=weights, embeddings=head, lm_head=head)
    channel = integer(7 if found["reduced"] else 8, "channel")
    heads = {"-static": None, "-bf16": None, "-static-npu": channel}
    shared = heads.get(found["range"], integer(8, "group", HEAD_GROUP))
    half: Literal["fp32", "bf16"] = "bf16" if found["range"] == "-bf16" else "fp32"
    return Scheme(
        name=name, compute=half, weights=channel, activations=ACTIVATIONS[found["range"]],
        embeddings=shared, lm_head=shared,
    )  # fmt: skip


def gguf_scheme(name: str, blocks: str | None, super_blocks: str | None) -> Scheme:
    """Blocks of 32 with one scale, or super-blocks of 256."""
    if blocks:
        weights, head = integer(float(blocks[0]), "group", 32, symmetric=blocks.endswith("0")), integer(8, "group", 32)
    else:
        weights = integer(SUPER_BITS[super_blocks or "4"], "block", 256, symmetric=super_blocks in ("3", "6"))
        head = integer(SUPER_BITS["6"], "block", 256)
    return Scheme(name=name, weights=weights, embeddings=head, lm_head=head)


def other_numbers(found: re.Match[str]) -> Format:
    """Floats with an exponent bias a row, or blocks on a codebook."""
    if found["row"]:
        return Format(number="float", bits=float(found["row"]), granularity="channel")
    bits = float(found["wide"] or 1 + int(found["e"]) + int(found["m"]))
    return Format(
        number="codebook", bits=bits, granularity="block", group_size=int(found["block"]),
        centred=bool(found["centred"]), kept_percent=float(found["percent"] or 0),
    )  # fmt: skip


def integer(bits: float, granularity: Literal["tensor", "channel", "group", "token", "block"], group_size: int | None = None,
            symmetric: bool = True, dynamic: bool = False) -> Format:  # fmt: skip
    return Format(number="int", bits=bits, granularity=granularity, group_size=group_size, symmetric=symmetric, dynamic=dynamic)


def group_format(format: Format) -> LinearFormat:
    """Of integers in groups."""
    if format.group_size is None:
        raise ValueError(f"format {format} has no groups")
    return LinearFormat(int(format.bits), format.group_size, format.symmetric)


ACTIVATIONS = {
    None: integer(8, "token", dynamic=True),
    "-tensor": integer(8, "tensor", symmetric=False, dynamic=True),
    "-static": integer(8, "tensor", symmetric=False),
    "-static-npu": integer(8, "tensor", symmetric=False),
    "-bf16": integer(8, "token", dynamic=True),
}


def named(*names: str) -> tuple[Scheme, ...]:
    """Several schemes by name."""
    return tuple(scheme(name) for name in names)
