"""What an ONNX or an OpenVINO folder stores, read from its graph without its tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from quantadvisor.documents import BadInput
from quantadvisor.kernels.saturation import LARGEST_EXACT, saturates

from .stored_words import GIVE, json_of, most, named

LOW_BIT = {"u2": 2, "i4": 4, "u4": 4, "nf4": 4, "i8": 8, "u8": 8, "f8e4m3": 8, "f8e5m2": 8}
THROUGH = ("Convert", "Subtract", "Multiply", "Reshape", "FakeQuantize", "Transpose", "FakeConvert")
"""What may stand between an OpenVINO weight and its MatMul."""
INTEGER_LINEARS = {"MatMulInteger": 1, "MatMulIntegerToFloat": 1, "QLinearMatMul": 3, "DynamicQuantizeMatMul": 1}
"""ONNX Runtime's products of integers, and which of their inputs is the weight."""


def graph_of(folder: Path) -> Any:
    """The GraphProto of `model.onnx` without its tensors."""
    try:
        import onnx

        return onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    except ImportError:
        raise BadInput(str(folder), "onnx is not installed", "pip install 'quantadvisor[cpu]'") from None
    except Exception as error:  # protobuf's DecodeError, or onnx's own
        raise BadInput(str(folder / "model.onnx"), f"is not an ONNX graph ({type(error).__name__})", GIVE) from None


def saturation_notes(folder: Path) -> tuple[str, ...]:
    """One line where this CPU does not sum exactly what an ONNX folder asks it to multiply (`kernels/saturation.py`)."""
    if not saturates() or not (folder / "model.onnx").is_file() or not (count := beyond_exact(folder)):
        return ()
    return (
        f"{count} linears multiply u8 x s8 with weights beyond {LARGEST_EXACT}: this CPU saturates such sums;"
        " quality measured here is what it gives",
    )


def beyond_exact(folder: Path) -> int:
    """Products of integers in `model.onnx` whose int8 weights go beyond LARGEST_EXACT; one tensor in memory at a time."""
    from onnx import TensorProto, numpy_helper

    graph = graph_of(folder)
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.INT8}
    makers = {name: node for node in graph.node for name in node.output}

    def dequantized(name: str) -> Any | None:
        node = makers.get(name)
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    weights = [node.input[at] for node in graph.node if (at := INTEGER_LINEARS.get(node.op_type)) is not None]
    for node in graph.node:  # what ONNX Runtime makes such products of
        if node.op_type == "MatMul" and dequantized(node.input[0]) and (source := dequantized(node.input[1])):
            weights.append(source.input[0])
    most = {name: np.abs(numpy_helper.to_array(stored[name], str(folder)).astype(np.int16)).max(initial=0)
            for name in set(weights) & set(stored)}  # fmt: skip
    return sum(most.get(name, 0) > LARGEST_EXACT for name in weights)


REORDERED, FLOAT_ZEROS = "g_idx (act-order)", "zero points in float"
OVERRIDABLE = "the weights among the graph's inputs (keep_initializers_as_inputs)"
"""Inputs with which MatMulNBits does not pack its weights for a fast kernel: it dequantizes all of them at each call (PrePack in
onnxruntime/contrib_ops/cpu/quantization/matmul_nbits.cc). A weight that a caller may replace is not packed by any operator."""


def of_onnx(folder: Path) -> dict[str, Any]:
    """From the graph of `model.onnx`, without its tensors."""
    graph = graph_of(folder)
    import onnx

    constant = {tensor.name: tensor.data_type for tensor in graph.initializer}
    given = {value.name for value in graph.input}
    makers = {name: node for node in graph.node for name in node.output}

    def of_weights(name: str) -> bool:
        """Does an input come from a stored tensor, dequantized or turned on its way?"""
        while name not in constant and (node := makers.get(name)) is not None:
            if node.op_type not in ("DequantizeLinear", "Transpose", "Cast", "Identity"):
                return False
            name = node.input[0]
        return name in constant

    linears, quantized, head_quantized = 0, 0, False
    bits: Counter[int] = Counter()
    groups: Counter[int] = Counter()
    levels: set[int] = set()
    unpacked: set[str] = set()
    kinds: Counter[str] = Counter()
    for node in graph.node:
        numbers = {attribute.name: attribute.i for attribute in node.attribute}
        low = False
        if node.op_type == "MatMulNBits":
            low = True
            bits[numbers["bits"]] += 1
            groups[numbers["block_size"]] += 1
            levels.add(numbers.get("accuracy_level", 0))
            zeros, order = [*node.input[3:5], "", ""][:2]
            unpacked |= {REORDERED} if order else set()
            unpacked |= {OVERRIDABLE} if node.input[1] in given else set()
            unpacked |= {FLOAT_ZEROS} if constant.get(zeros, onnx.TensorProto.UINT8) != onnx.TensorProto.UINT8 else set()
        elif node.op_type in INTEGER_LINEARS:
            low = True
            kinds["token" if node.op_type == "MatMulIntegerToFloat" else "tensor"] += 1
        elif node.op_type in ("MatMul", "Gemm", "FusedMatMul") and of_weights(node.input[1]):
            maker = makers.get(node.input[1])
            low = maker is not None and maker.op_type == "DequantizeLinear"
            if low and (source := makers.get(node.input[0])) is not None and source.op_type == "DequantizeLinear":
                kinds["static"] += 1
            elif low:
                bits[8] += 1
        else:
            continue
        linears, quantized = linears + 1, quantized + low
        head_quantized |= low and "lm_head" in node.name
    cache = [value for value in graph.input if value.name.startswith("past_key_values")]
    eight = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    logits = next((value for value in graph.output if value.name == "logits"), None)
    wide = logits.type.tensor_type.shape.dim[-1].dim_value if logits else 0
    kind = kinds.most_common(1)[0][0] if kinds else None
    made = named(bits, most(groups), kind, any(value.type.tensor_type.elem_type in eight for value in cache), head_quantized)
    return {
        "scheme": made, "linears": linears, "stored_quantized": quantized, "accuracy_levels": tuple(sorted(levels)),
        "unpacked": tuple(sorted(unpacked)),
        "layers": len(cache) // 2 or None, "vocabulary": wide or None,
    }  # fmt: skip


def of_openvino(folder: Path) -> dict[str, Any]:
    """From `openvino_model.xml`: each MatMul's second input, followed back to its constant."""
    try:
        root = ElementTree.parse(folder / "openvino_model.xml").getroot()
        layers = {layer.attrib["id"]: layer for layer in root.iter("layer")}
        into = {(edge.attrib["to-layer"], edge.attrib["to-port"]): edge.attrib["from-layer"] for edge in root.iter("edge")}
    except (ElementTree.ParseError, KeyError) as error:
        raise BadInput(str(folder / "openvino_model.xml"), f"is not an OpenVINO graph ({error})", GIVE) from None
    linears, quantized, head_quantized = 0, 0, False
    bits: Counter[int] = Counter()
    groups: Counter[int] = Counter()
    rounded = 0
    for layer in layers.values():
        if layer.attrib.get("type") != "MatMul":
            continue
        weight = follow(layers, into, into.get((layer.attrib["id"], "1")))
        if weight is None:
            continue
        data = weight.find("data")
        shape = [int(size) for size in data.attrib.get("shape", "").split(",") if size.strip()] if data is not None else []
        low = LOW_BIT.get(data.attrib.get("element_type", ""), 0) if data is not None else 0
        linears, quantized = linears + 1, quantized + bool(low)
        if low:
            bits[low] += 1
            groups[shape[-1] if len(shape) == 3 else 0] += 1
            head_quantized |= "lm_head" in layer.attrib.get("name", "")
            source = layers.get(into.get((layer.attrib["id"], "0"), ""))
            rounded += source is not None and source.attrib.get("type") == "FakeQuantize"
    states = sum(layer.attrib.get("type") == "ReadValue" for layer in layers.values())
    made = named(bits, most(groups), "static" if rounded > linears // 2 else None, False, head_quantized)
    config = json_of(folder / "config.json")
    return {
        "scheme": made, "linears": linears, "stored_quantized": quantized,
        "layers": states // 2 or None, "vocabulary": config.get("vocab_size"),
    }  # fmt: skip


def follow(layers: Mapping[str, Any], into: Mapping[tuple[str, str], str], name: str | None) -> Any | None:
    """The constant behind an input, or None where the input is computed."""
    while name is not None:
        layer = layers[name]
        if layer.attrib.get("type") == "Const":
            return layer
        if layer.attrib.get("type") not in THROUGH:
            return None
        name = into.get((name, "0"))
    return None
