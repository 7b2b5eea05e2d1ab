"""NF4 weights in ONNX Runtime: MatMulBnb4, the 4-bit product in the layout of bitsandbytes, with or without LoRA beside it.

    x ──┬─ MatMulBnb4 (codes of [N, K] in a row, two a byte, the first in the high half; max|w| of every block) ── Add ── y
        └─ MatMul A^T [K, r] ── MatMul B^T [r, N] ───────────────────────────────────────────────────────────────┘

The CPU kernel widens blocks to float32 and multiplies those. Blocks of it may not cross rows: they divide K. lm_head takes 8
bits in groups as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from quantadvisor.methods.affine import Floats
from quantadvisor.methods.codebooks import Blocks

from .onnx_base import Rewrite, linears
from .onnx_rescale import onnx_linear
from .onnx_weights import MICROSOFT, LinearFormat, group_linear, replace

Adapter = tuple[Floats, Floats]
"""A [r, K] and B [N, r], any scale multiplied in: y += x A^T B^T"""
Bring = Callable[[], Blocks]
NF4 = 1
"""MatMulBnb4's quant_type."""


def quantize_nf4(base: Path, out: Path, given: Mapping[str, Bring], block: int, adapters: Mapping[str, Adapter] | None = None,
                 finish: Callable[[Path], None] = lambda _: None, head: LinearFormat = (8, 64, True)) -> None:  # fmt: skip
    """`given`, `adapters`: by Hugging Face names. `finish` may add files to the new folder before it appears."""
    with Rewrite(base, out) as edit:
        known = linears(edit.model)
        parts = grouped(given, known)
        for name, node in known.items():
            if name == "lm_head":
                group_linear(edit, node, head, 4)
            else:
                beside = stacked_adapters([adapters[part] for part in parts[name]]) if adapters else None
                nf4_linear(edit, node, partial(stacked, [given[part] for part in parts[name]]), block, beside)
        finish(edit.work)


def grouped(given: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, list[str]]:
    """Linear of the graph -> the Hugging Face linears that it holds, in the order of its rows."""
    parts: dict[str, list[str]] = {}
    for name in sorted(given, key=lambda name: ("qkv".find(name.rsplit(".", 1)[1][0]), name)):
        parts.setdefault(onnx_linear(name, known), []).append(name)
    return parts


def stacked(parts: list[Bring]) -> Blocks:
    return Blocks(*map(np.concatenate, zip(*(bring() for bring in parts), strict=True)))


def stacked_adapters(parts: list[Adapter]) -> Adapter:
    """Of linears that read one tensor: A on top of each other, B along a diagonal."""
    from scipy.linalg import block_diag

    downs, ups = zip(*parts, strict=True)
    return np.concatenate(downs), block_diag(*ups).astype(np.float32)


def nf4_linear(edit: Rewrite, node: Any, bring: Bring, block: int, adapter: Adapter | None) -> None:
    """MatMul -> MatMulBnb4, and the adapter's two products beside it."""
    import onnx

    make = onnx.helper.make_node
    source, weight, name, out = node.input[0], node.input[1], node.name, node.output[0]
    wide, tall = edit.old[weight].dims
    codes, bounds = bring()
    flat = codes.reshape(-1)
    edit.drop(weight)
    packed = edit.add(f"{weight}_NF4", (flat[::2] << 4 | flat[1::2]).astype(np.uint8))
    scales = edit.add(f"{weight}_absmax", np.ascontiguousarray(bounds.reshape(-1)))
    base = f"{out}_base" if adapter else out
    nodes = [make("MatMulBnb4", [source, packed, scales], [base], name=f"{name}_NF4", domain=MICROSOFT,
                  K=wide, N=tall, block_size=block, quant_type=NF4)]  # fmt: skip
    if adapter:
        down = edit.add(f"{weight}_lora_A", np.ascontiguousarray(adapter[0].T))
        up = edit.add(f"{weight}_lora_B", np.ascontiguousarray(adapter[1].T))
        nodes += [
            make("MatMul", [source, down], [f"{out}_low"], name=f"{name}_lora_A"),
            make("MatMul", [f"{out}_low", up], [f"{out}_lora"], name=f"{name}_lora_B"),
            make("Add", [base, f"{out}_lora"], [out], name=f"{name}_lora_sum"),
        ]
    replace(edit, [node], nodes)
