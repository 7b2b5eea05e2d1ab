"""Static W8A8 in ONNX's own words, QuantizeLinear and DequantizeLinear (QDQ): what ONNX Runtime fuses and compilers of NPUs read.

    x ──────────── QuantizeLinear ── DequantizeLinear ── MatMul ── y
    int8 weight [K, N] ───────────── DequantizeLinear ─────┘

One fixed uint8 range for each tensor that linears read, who share its rounding; int8 weights about 0, one scale per output
channel: the grids of OpenVINO's artifact. ONNX Runtime makes each linear a MatMulIntegerToFloat. What linears write stays float,
as there: rounded too, each would be a QLinearMatMul and a DequantizeLinear that takes as long (64 beside 67 ms in 512 tokens of
SmolLM2-135M). An NPU whose compiler asks for integers between all operators gets them from `onnx_integer.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantadvisor.kernels.saturation import most_exact
from quantadvisor.methods.affine import affine_grid

from .onnx_base import Factors, Rewrite, linears
from .onnx_rescale import onnx_linear
from .onnx_weights import channel_weight


def quantize_static_w8a8(base: Path, out: Path, inputs: Iterable[tuple[Sequence[str], float, float]],
                         factors: Factors | None = None) -> None:  # fmt: skip
    """`inputs`: (linears that read one tensor, by Hugging Face names, its least and its largest value). Linears that it does not
    name, lm_head among them, stay float. Weights take 7 bits where this CPU's sums of 8 saturate, as for OpenVINO. `factors`
    are multiplied in first; the ranges are those after them."""
    bits = most_exact().bit_length() + 1
    with Rewrite(base, out, factors) as edit:
        known = linears(edit.model)
        for readers, low, high in inputs:
            nodes = [known[name] for name in dict.fromkeys(onnx_linear(reader, known) for reader in readers)]
            rounded = round_input(edit, nodes, low, high)
            for node in nodes:
                node.input[0], node.input[1] = rounded, dequantized_weight(edit, node, bits)


def round_input(edit: Rewrite, nodes: Sequence[Any], low: float, high: float) -> str:
    """The tensor that `nodes` read, on the 256 levels of the affine grid of [low, high]: its name."""
    import onnx

    source, place = nodes[0].input[0], min(map(edit.nodes.index, nodes))
    scale, zero = affine_grid(np.array(low, np.float32), np.array(high, np.float32), 0, 255)
    grid = [edit.add(f"{source}_scale", np.array(scale)), edit.add(f"{source}_zero_point", np.array(zero, np.uint8))]
    codes, rounded = f"{source}_quantized", f"{source}_dequantized"
    edit.nodes[place:place] = [
        onnx.helper.make_node("QuantizeLinear", [source, *grid], [codes], name=codes),
        onnx.helper.make_node("DequantizeLinear", [codes, *grid], [rounded], name=rounded),
    ]
    return rounded


def dequantized_weight(edit: Rewrite, node: Any, bits: int) -> str:
    """A MatMul's weight from codes [K, N] of so many bits, one scale per column: its name."""
    import onnx

    name = f"{node.input[1]}_dequantized"
    stored = channel_weight(edit, node, bits)
    edit.nodes.insert(edit.nodes.index(node), onnx.helper.make_node("DequantizeLinear", stored, [name], name=name, axis=1))
    return name
