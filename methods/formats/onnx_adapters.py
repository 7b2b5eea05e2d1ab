"""Low-rank adapters beside linears of an ONNX Runtime graph, whatever the linears become.

x ──┬─ MatMul W [K, N], to be replaced by a quantized product ── Add ── y
    └─ MatMul A^T [K, r] ── MatMul B^T [r, N] ────────────────────┘
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from quantadvisor.methods.affine import Floats

from .onnx_base import Rewrite, linears
from .onnx_rescale import parts_of

Adapter = tuple[Floats, Floats]
"""A [r, K] and B [N, r], any scale multiplied in: y += x A^T B^T"""


def put_beside(edit: Rewrite, adapters: Mapping[str, Adapter]) -> None:
    """`adapters`: by Hugging Face names. The linears keep their places among the nodes; their outputs get other names."""
    known = linears(edit.model)
    for name, parts in parts_of(adapters, known).items():
        beside(edit, known[name], *stacked([adapters[part] for part in parts]))


def stacked(parts: list[Adapter]) -> Adapter:
    """Of linears that read one tensor: A on top of each other, B along a diagonal."""
    from scipy.linalg import block_diag

    downs, ups = zip(*parts, strict=True)
    return np.concatenate(downs), block_diag(*ups).astype(np.float32)


def beside(edit: Rewrite, node: Any, down: Floats, up: Floats) -> None:
    import onnx

    make = onnx.helper.make_node
    source, weight, out, name = node.input[0], node.input[1], node.output[0], node.name
    low = edit.add(f"{weight}_lora_A", np.ascontiguousarray(down.T))
    high = edit.add(f"{weight}_lora_B", np.ascontiguousarray(up.T))
    node.output[0] = f"{out}_base"
    after = edit.nodes.index(node) + 1
    edit.nodes[after:after] = [
        make("MatMul", [source, low], [f"{out}_low"], name=f"{name}_lora_A"),
        make("MatMul", [f"{out}_low", high], [f"{out}_lora"], name=f"{name}_lora_B"),
        make("Add", [f"{out}_base", f"{out}_lora"], [out], name=f"{name}_lora_sum"),
    ]
