"""LLM.int8() in ONNX Runtime: INT8 products over the quiet channels, an fp32 product over the few that hold outliers.

    x ── Mul (0 at outlier channels) ── scale per token, INT8, MatMulIntegerToFloat ─┐
     └── Gather (outlier channels) ──── MatMul with their fp32 rows of W ────────── Add

Linears that read one tensor share the rounding and the gathering. A linear without outlier channels is plain W8A8.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantadvisor.methods.linear_format import HEAD, LinearFormat

from .onnx_base import Rewrite, linears
from .onnx_rescale import onnx_linear
from .onnx_weights import group_linear, token_linear


def quantize_w8a8_outliers(base: Path, out: Path, columns: Mapping[str, NDArray[np.int64]],
                           head: LinearFormat = HEAD) -> None:  # fmt: skip
    """`columns`: outlier channels of every linear, by its Hugging Face name."""
    with Rewrite(base, out) as edit:
        known = linears(edit.model)
        by_node = {onnx_linear(name, known): found for name, found in columns.items()}
        shared: dict[str, tuple[str, str, str]] = {}
        split: dict[str, tuple[str, str]] = {}
        for name, node in known.items():
            if name == "lm_head":
                group_linear(edit, node, head, 4)
            elif len(found := by_node[name]):
                split_linear(edit, node, found, shared, split)
            else:
                token_linear(edit, node, shared)


def split_linear(edit: Rewrite, node: Any, columns: NDArray[np.int64], shared: dict[str, tuple[str, str, str]],
                 split: dict[str, tuple[str, str]]) -> None:  # fmt: skip
    """MatMul -> the two products above, and their sum under the old name. `split`: tensor -> (quiet part, loud part)."""
    import onnx

    make = onnx.helper.make_node
    source, name, out = node.input[0], node.name, node.output[0]
    rows = np.ascontiguousarray(edit.tensor(node.input[1])[columns])
    place = edit.nodes.index(node)
    if source not in split:
        quiet = np.ones(edit.tensor(node.input[1]).shape[0], np.float32)
        quiet[columns] = 0
        mask, index = edit.add(f"{source}_quiet", quiet), edit.add(f"{source}_outliers", columns.astype(np.int64))
        split[source] = (f"{source}_kept", f"{source}_loud")
        edit.nodes[place:place] = [
            make("Mul", [source, mask], [split[source][0]], name=f"{source}_keep"),
            make("Gather", [source, index], [split[source][1]], name=f"{source}_gather", axis=-1),
        ]
    kept, loud = split[source]
    node.input[0], node.output[0] = kept, f"{name}_int8"
    token_linear(edit, node, shared)
    after = 1 + next(i for i, one in enumerate(edit.nodes) if f"{name}_int8" in one.output)
    weight = edit.add(f"{name}_outlier_rows", rows)
    edit.nodes[after:after] = [
        make("MatMul", [loud, weight], [f"{name}_outliers"], name=f"{name}_outlier_product"),
        make("Add", [f"{name}_int8", f"{name}_outliers"], [out], name=f"{name}_sum"),
    ]
