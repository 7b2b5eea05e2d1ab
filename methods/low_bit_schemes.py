"""Names of schemes that round activations or the cache in rarer ways, and what they stand for. Pure.

    fp8, fp8-e5m2         8-bit float weights per channel, activations per token (methods/fp8.py; -tensor, -static, -block)
    fp8-bf16              fp8 with everything else in bfloat16: compressed-tensors (also -tensor-bf16, -static-bf16, -block-bf16)
    w8a8-outlier          INT8 but for the channels that hold outliers (LLM.int8())
    w8a8-outlier-fp16     the same with everything else in float16: bitsandbytes
    w4a8-g64, w8a8-g64    integer weights in groups, INT8 activations per token (ZeroQuant)
    w4a4, w4a8            integer weights per channel, integer activations per token (rotations)
    w4a4-fp, w4a8-fp      floats with a real exponent bias (FPQ); -fp-minmax: of the largest value, without shifts
    w8a8-static-entropy, -percentile, -mse    ranges of calibration that leave out its extremes

    ...-kv8, -kv4                         integers, one fixed scale per channel (with GGUF's weights: blocks of Q8_0, Q4_0)
    ...-kv8-kivi, -kv4-kivi, -kv2-kivi    keys in groups of 32 tokens of a channel, values of 32 channels of a token (KIVI)
    ...-kv8-token, -kv4-token             symmetric, one scale for all heads of a token (LLM-QAT)
    ...-kv8-head, -kv4-head               one scale for each head of a token, at 4 bits with a zero point (the triton runtime)
    ...-kvf8, -kvf8-unit                  E4M3, one calibrated scale per layer, or 1.0
    ...-kv2.5-turbo, -kv3-turbo-prod      a norm and codes per vector (TurboQuant), -prod: keys in the unbiased form

The output layer stays float, but for w8a8-outlier, which is written with an 8-bit one.
"""

from __future__ import annotations

import re
from typing import Literal

from quantadvisor.documents.scheme import Format, Scheme

Kind = Literal["int", "float", "codebook"]
Granularity = Literal["tensor", "channel", "group", "token", "block"]

FLOAT8 = re.compile(r"fp8(?:(?P<kind>-tensor|-static|-block)?(?P<half>-bf16)?|-e5m2)")
INTEGER = re.compile(
    r"w(?P<w>[48])a(?P<a>[48])(?P<kind>-outlier(?:-fp16)?|-fp(?:-minmax)?|-g(?P<group>\d+)|-static-entropy|-static-percentile|-static-mse)?"
)
CACHE = re.compile(
    r"(?P<stem>.+)-kv(?:(?P<kivi>[248])-kivi|(?P<token>[48])-token|(?P<head>[48])-head|(?P<fp8>f8)(?:-unit)?|(?P<fixed>[48])|(?P<turbo>[1-4]|[1-3]\.5)-turbo(?P<prod>-prod)?)"
)
GGUF = re.compile(r"q\d_[01k]$")
BLOCK = 128
CACHE_GROUP = 32


def activations(name: str) -> Scheme | None:
    """The scheme of a name without a cache; None where it is none of these."""
    if found := FLOAT8.fullmatch(name):
        return float8(name, found["kind"], "bf16" if found["half"] else "fp32")
    found = INTEGER.fullmatch(name)
    if found is None or (found["kind"] is None and (found["w"], found["a"]) == ("8", "8")):
        return None
    w_bits, a_bits, kind = float(found["w"]), float(found["a"]), found["kind"] or ""
    if kind.startswith("-fp"):
        weights = form("float", w_bits, "channel")
        return Scheme(name=name, weights=weights, activations=form("float", a_bits, "channel"))
    weights = form("int", w_bits, "group", int(found["group"])) if found["group"] else form("int", w_bits, "channel")
    if kind.startswith("-static"):
        if (w_bits, a_bits) != (8, 8):
            return None
        return Scheme(name=name, weights=weights, activations=form("int", 8, "tensor", symmetric=False))
    head = form("int", 8, "group", 64) if kind == "-outlier" else None
    tokens = form("int", a_bits, "token", dynamic=True)
    half: Literal["fp32", "fp16"] = "fp16" if kind == "-outlier-fp16" else "fp32"
    return Scheme(name=name, compute=half, weights=weights, activations=tokens, embeddings=head, lm_head=head)


def float8(name: str, kind: str | None, half: Literal["fp32", "bf16"]) -> Scheme:
    one: Granularity = "tensor" if kind in ("-tensor", "-static") else "channel"
    weights = form("float", 8, "block", BLOCK) if kind == "-block" else form("float", 8, one)
    inputs: dict[str | None, Format] = {
        "-tensor": form("float", 8, "tensor", dynamic=True),
        "-static": form("float", 8, "tensor"),
        "-block": form("float", 8, "group", BLOCK, dynamic=True),
    }
    tokens = form("float", 8, "token", dynamic=True)
    return Scheme(name=name, compute=half, weights=weights, activations=inputs.get(kind) or tokens)


def cache(name: str) -> tuple[str, dict[str, Format]] | None:
    """(name without the cache, formats of keys and values); None where the name ends in none of these."""
    found = CACHE.fullmatch(name)
    if not found:
        return None
    if found["kivi"]:
        bits = float(found["kivi"])
        keys = form("int", bits, "channel", CACHE_GROUP, symmetric=False, dynamic=True)
        values = form("int", bits, "token", CACHE_GROUP, symmetric=False, dynamic=True)
    elif found["token"]:
        keys = values = form("int", float(found["token"]), "token", dynamic=True)
    elif found["head"]:
        bits = float(found["head"])
        keys = values = form("int", bits, "token", symmetric=bits == 8, dynamic=True)
    elif found["fixed"]:
        bits = float(found["fixed"])
        keys = values = form("int", bits, "group", CACHE_GROUP) if GGUF.match(found["stem"]) else form("int", bits, "channel")
    elif found["fp8"]:
        keys = values = form("float", 8, "tensor")
    else:
        keys = values = form("codebook", float(found["turbo"]), "token", dynamic=True)
    return found["stem"], {"keys": keys, "values": values}


def form(number: Kind, bits: float, granularity: Granularity, group_size: int | None = None,
         symmetric: bool = True, dynamic: bool = False) -> Format:  # fmt: skip
    return Format(number=number, bits=bits, granularity=granularity, group_size=group_size, symmetric=symmetric, dynamic=dynamic)
