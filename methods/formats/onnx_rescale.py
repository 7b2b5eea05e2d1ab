"""Scales chosen on a Hugging Face model, as factors on the tensors of its ONNX folder (fused qkv included)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from quantadvisor.methods.affine import Grouped
from quantadvisor.methods.rescale import Pair, Scale

from .onnx_base import Array, Factors, linears, load_graph


def onnx_linear(name: str, known: Iterable[str]) -> str:
    """`model.layers.0.self_attn.q_proj` -> `model.layers.0.attn.qkv_proj` where the export fused it."""
    plain = name.replace(".self_attn.", ".attn.")
    stem, last = plain.rsplit(".", 1)
    fused = f"{stem}.qkv_proj"
    return fused if last in ("q_proj", "k_proj", "v_proj") and fused in set(known) else plain


def parts_of(names: Iterable[str], known: Iterable[str]) -> dict[str, list[str]]:
    """Linear of the graph -> the Hugging Face linears that it holds, in the order of its rows."""
    known, parts = set(known), dict[str, list[str]]()
    for name in sorted(names, key=lambda name: ("qkv".find(name.rsplit(".", 1)[1][0]), name)):
        parts.setdefault(onnx_linear(name, known), []).append(name)
    return parts


def fused(given: Mapping[str, Callable[[], Grouped]], known: Iterable[str]) -> dict[str, Callable[[], Grouped]]:
    """Integers by Hugging Face names -> by names of the graph: the rows of a fused linear are those of q, k and v."""
    parts = parts_of(given, known)

    def stacked(name: str) -> Grouped:
        return Grouped(*map(np.concatenate, zip(*(given[part]() for part in parts[name]), strict=True)))

    return {name: partial(stacked, name) for name in parts}


def unfused(found: Mapping[str, Grouped], folder: Path) -> dict[str, Grouped]:
    """Integers by names of the graph -> by Hugging Face names: a fused linear's rows cut into q, k and v again."""
    sizes = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
    heads, kv_heads, width = (sizes[key] for key in ("num_attention_heads", "num_key_value_heads", "head_size"))
    ends = np.cumsum([heads * width, kv_heads * width])
    names: dict[str, Grouped] = {}
    for name, whole in found.items():
        stem, last = name.replace(".attn.", ".self_attn.").rsplit(".", 1)
        if last != "qkv_proj":
            names[f"{stem}.{last}"] = whole
            continue
        for part, *arrays in zip("qkv", *(np.split(array, ends) for array in whole), strict=True):
            names[f"{stem}.{part}_proj"] = Grouped(*map(np.ascontiguousarray, arrays))
    return names


def rescaled(base: Path, chosen: Iterable[tuple[Pair, Scale]], config: Mapping[str, Any]) -> Factors:
    """Factors for `Rewrite`: sources divided by their scale, readers multiplied, one reader of a fused linear once."""
    known = linears(load_graph(base))
    factors: dict[str, tuple[Array, ...]] = {}

    def multiply(name: str, factor: Array) -> None:
        factors[name] = (*factors.get(name, ()), factor)

    for pair, scale in chosen:
        if pair.norm:
            multiply(f"{pair.source}.weight", 1 / scale)
        else:
            linear = onnx_linear(pair.source, known)
            columns = _columns(pair, 1 / scale, linear, config)
            multiply(f"{linear}.MatMul.weight", columns[None, :])
            multiply(f"{linear}.Add.bias", columns)
        for linear in dict.fromkeys(onnx_linear(target, known) for target in pair.targets):
            multiply(f"{linear}.MatMul.weight", pair.spread(scale)[:, None])
    return factors


def _columns(pair: Pair, factor: Array, linear: str, config: Mapping[str, Any]) -> Array:
    """Factors on a source's outputs; of a fused qkv, v's columns are the last ones and the others stay."""
    if not linear.endswith(".qkv_proj"):
        return factor
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head = len(factor) // kv_heads
    return np.concatenate([np.ones(head * (heads + kv_heads), np.float32), factor])
