"""The fp32 graph in float16: weights, activations, logits and the key-value cache, as ONNX Runtime's CUDA provider computes fast.

The graph that onnxruntime-genai's builder writes holds no float but its tensors, inputs and outputs; what stands in attributes
is turned too. Its norms sum in float32 inside their kernels. On a CPU, ONNX Runtime casts around products: no way to be fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..affine import refuse_beyond_half
from .onnx_base import Rewrite


def half(base: Path, out: Path) -> None:
    """Every float32 of the folder as float16, tensor by tensor. CandidateFailed for a weight beyond float16's range."""
    import onnx

    with Rewrite(base, out) as edit:
        for name in [name for name, tensor in edit.old.items() if tensor.data_type == onnx.TensorProto.FLOAT]:
            value = edit.tensor(name)
            refuse_beyond_half(name, float(np.abs(value).max(initial=0.0)))
            edit.drop(name)
            edit.add(name, value.astype(np.float16))
        for node in edit.nodes:
            for attribute in node.attribute:
                turn(attribute, cast=node.op_type == "Cast")
        for value in (*edit.model.graph.input, *edit.model.graph.output):
            kind = value.type.tensor_type
            if kind.elem_type == onnx.TensorProto.FLOAT:
                kind.elem_type = onnx.TensorProto.FLOAT16


def turn(attribute: Any, *, cast: bool) -> None:
    """A float32 constant, or what a Cast makes, in float16."""
    import onnx

    if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == onnx.TensorProto.FLOAT:
        attribute.t.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(attribute.t).astype(np.float16)))
    elif cast and attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT:
        attribute.i = onnx.TensorProto.FLOAT16
