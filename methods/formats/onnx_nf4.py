"""NF4 weights in ONNX Runtime: MatMulBnb4, the 4-bit product in the layout of bitsandbytes: codes of [N, K] in a row, two a byte,
the first in the high half, and max|w| of every block.

The CPU kernel widens blocks to float32 and multiplies those. Blocks of it may not cross rows: they divide K. lm_head takes 8
bits in groups as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from quantadvisor.methods.codebooks import Blocks
from quantadvisor.methods.linear_format import HEAD, LinearFormat

from .onnx_adapters import Adapter, put_beside
from .onnx_base import Rewrite, linears
from .onnx_rescale import parts_of
from .onnx_weights import MICROSOFT, group_linear, replace

Bring = Callable[[], Blocks]
NF4 = 1
"""MatMulBnb4's quant_type."""


def quantize_nf4(base: Path, out: Path, given: Mapping[str, Bring], block: int, adapters: Mapping[str, Adapter] | None = None,
                 head: LinearFormat = HEAD) -> None:  # fmt: skip
    """`given`, `adapters`: by Hugging Face names."""
    with Rewrite(base, out) as edit:
        known = linears(edit.model)
        put_beside(edit, adapters or {})
        for name, parts in parts_of(given, known).items():
            nf4_linear(edit, known[name], partial(stacked, [given[part] for part in parts]), block)
        group_linear(edit, known["lm_head"], head, 4)


def stacked(parts: list[Bring]) -> Blocks:
    return Blocks(*map(np.concatenate, zip(*(bring() for bring in parts), strict=True)))


def nf4_linear(edit: Rewrite, node: Any, bring: Bring, block: int) -> None:
    """MatMul -> MatMulBnb4"""
    import onnx

    weight = node.input[1]
    wide, tall = edit.old[weight].dims
    codes, bounds = bring()
    flat = codes.reshape(-1)
    edit.drop(weight)
    packed = edit.add(f"{weight}_NF4", (flat[::2] << 4 | flat[1::2]).astype(np.uint8))
    scales = edit.add(f"{weight}_absmax", np.ascontiguousarray(bounds.reshape(-1)))
    replace(edit, [node], [onnx.helper.make_node(
        "MatMulBnb4", [node.input[0], packed, scales], list(node.output), name=f"{node.name}_NF4", domain=MICROSOFT,
        K=wide, N=tall, block_size=block, quant_type=NF4,
    )])  # fmt: skip
