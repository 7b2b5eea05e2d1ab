"""ONNX Runtime's DynamicQuantizeMatMul: INT8 weights per channel; activations rounded to one UINT8 range per call.

That range covers all tokens of a call (per tensor), which is coarser than per token: hence the scheme `w8a8-tensor`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from quantadvisor.documents import Device, Scheme

from . import onnx_graph
from .problem import Prepared, Problem, channel_weights, inputs, product
from .saturation import saturates
from .schemes import W8A8_TENSOR

if TYPE_CHECKING:
    import numpy as np

scheme: Scheme = W8A8_TENSOR
runtime = "onnxruntime"
options: tuple[str, ...] = ("",)


def refuse(device: Device, shape: Problem) -> str | None:
    return None


def arithmetic(option: str, isa: Sequence[str]) -> str:
    return "int8"


def prepare(shape: Problem) -> Prepared:
    import numpy as np
    from onnx import helper

    def node_of(shape: Problem, copy: int) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
        q, scale = channel_weights(shape, copy, transposed=True)
        constants = {f"w{copy}": q, f"s{copy}": scale}
        if saturates():  # as the methods write them there: uint8 about 128
            constants |= {f"w{copy}": q.view(np.uint8) ^ np.uint8(128), f"z{copy}": np.full(shape.n, 128, np.uint8)}
        node = helper.make_node("DynamicQuantizeMatMul", ["x", *constants], [f"y{copy}"], domain="com.microsoft")
        return node, constants

    return onnx_graph.prepare(shape, node_of)


def reference(shape: Problem) -> Callable[[], np.ndarray[Any, Any]]:
    q, scale = channel_weights(shape, shape.copies - 1, transposed=True)
    return product(inputs(shape.m, shape.k), q.T * scale[:, None])
