"""Scheme names and what they stand for: `w4-g64-kv8` <-> Scheme. Pure.

    fp32, bf16      float weights of that type
    w4-g64, w8-g32  group-wise integer weights: 4 bit asymmetric, 8 bit symmetric
    w4w8-g64        4 or 8 bit, chosen per linear by its sensitivity
    w8a8            int8 weights per channel, int8 activations at run time, one scale per token
    w8a8-tensor     the same with one range per activation tensor: what onnxruntime's quantize_dynamic writes
    w8a8-static     the same with that range fixed by calibration
    w8a8-bf16       w8a8 with everything else in bfloat16, lm_head and embeddings too: compressed-tensors
    q8_0, q4_0      GGUF: blocks of 32 with one float16 scale, symmetric; lm_head 8 bit (6.6 where 256 divides its rows)
    ...-kv8         any of these with an INT8 cache, one fixed scale per channel (with q8_0, q4_0: Q8_0 blocks)

More of activations (`fp8-block`, `w4a4-fp`, `w8a8-outlier`) and of caches (`...-kv4-kivi`, `...-kv2.5-turbo`, `...-kvf8`) is in
`low_bit_schemes.py`.

Unless the scheme is a float type, lm_head takes 8 bits in the same groups (g64 with w8a8), and a tied embedding table
shares its codes. With w8a8-static it stays float: OpenVINO, once a graph has INT8 products, unpacks integer weights of
float ones, and INT8 inputs of lm_head cost SmolLM2-135M 0.02 of KL.
"""

from __future__ import annotations

import re
from typing import Literal

from quantadvisor.documents.scheme import Format, Scheme

from . import low_bit_schemes

CACHE = "-kv8"
HEAD_GROUP = 64
MIXED_BITS = 7.0
"""Bits a weight before sensitivities are known: 70 to 80 % of SmolLM2-135M's weights come out in 8 bit."""

PATTERN = re.compile(
    r"(?P<float>fp32|bf16)|w(?P<bits>[2-8]|4w8)-g(?P<group>\d+)|w8a8(?P<range>-tensor|-static|-bf16)?|q(?P<blocks>[48])_0"
)


def scheme(name: str) -> Scheme:
    """The scheme of a name; ValueError when the name is none."""
    if rarer := low_bit_schemes.cache(name):
        stem, update = rarer
        return scheme(stem).model_copy(update={"name": name, **update})
    stem = name.removesuffix(CACHE)
    if stem == name and (made := low_bit_schemes.activations(name)):
        return made
    found = PATTERN.fullmatch(stem)
    if not found:
        raise ValueError(f"scheme {name!r} is unknown; forms are fp32, bf16, w4-g64, w4w8-g64, w8a8 and …-kv8")
    cache = integer(8, "channel") if name != stem else None
    if found["float"]:
        compute: Literal["fp32", "bf16"] = "bf16" if found["float"] == "bf16" else "fp32"
        return Scheme(name=name, compute=compute, keys=cache, values=cache)
    if found["blocks"]:
        weights, head = integer(float(found["blocks"]), "group", 32), integer(8, "group", 32)
        blocks = head if cache else None
        return Scheme(name=name, weights=weights, embeddings=head, lm_head=head, keys=blocks, values=blocks)
    if found["group"]:
        group = int(found["group"])
        bits = MIXED_BITS if found["bits"] == "4w8" else float(found["bits"])
        head = integer(8, "group", group)
        weights = integer(bits, "group", group, symmetric=bits == 8)
        return Scheme(name=name, weights=weights, embeddings=head, lm_head=head, keys=cache, values=cache)
    channel = integer(8, "channel")
    shared = None if found["range"] in ("-static", "-bf16") else integer(8, "group", HEAD_GROUP)
    half: Literal["fp32", "bf16"] = "bf16" if found["range"] == "-bf16" else "fp32"
    return Scheme(
        name=name, compute=half, weights=channel, activations=ACTIVATIONS[found["range"]],
        embeddings=shared, lm_head=shared, keys=cache, values=cache,
    )  # fmt: skip


def integer(bits: float, granularity: Literal["tensor", "channel", "group", "token"], group_size: int | None = None,
            symmetric: bool = True, dynamic: bool = False) -> Format:  # fmt: skip
    return Format(number="int", bits=bits, granularity=granularity, group_size=group_size, symmetric=symmetric, dynamic=dynamic)


ACTIVATIONS = {
    None: integer(8, "token", dynamic=True),
    "-tensor": integer(8, "tensor", symmetric=False, dynamic=True),
    "-static": integer(8, "tensor", symmetric=False),
    "-bf16": integer(8, "token", dynamic=True),
}


def named(*names: str) -> tuple[Scheme, ...]:
    """Several schemes by name, each followed by its variant with an INT8 cache."""
    return tuple(scheme(stem + suffix) for suffix in ("", CACHE) for stem in names)
