"""ONNX Runtime's DynamicQuantizeMatMul with INT8 weights of 7 bits: the product that is exact where 8 bits saturate, and fast.

Where they do not, it is the product of `w8a8_onnxruntime.py` with less in each weight, and refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from quantadvisor.documents import Device, Scheme

from . import onnx_graph
from .problem import Prepared, Problem, channel_weights, inputs, product
from .saturation import most_exact, saturates
from .schemes import W7A8

if TYPE_CHECKING:
    import numpy as np

scheme: Scheme = W7A8
runtime = "onnxruntime"
options: tuple[str, ...] = ("",)


def refuse(device: Device, shape: Problem) -> str | None:
    return (
        None
        if saturates()
        else "needs a CPU without VNNI and AMX: this one multiplies 8 bits exactly and as fast (w8a8_onnxruntime)"
    )


def arithmetic(option: str, isa: Sequence[str]) -> str:
    return "int8"


def weights(shape: Problem, copy: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """q: int8 [K, N] of 7 bits; scale: float32 [N]."""
    import numpy as np

    q, scale = channel_weights(shape, copy, transposed=True)
    return np.clip(q, -most_exact(), most_exact()), scale


def prepare(shape: Problem) -> Prepared:
    from onnx import helper

    def node_of(shape: Problem, copy: int) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
        q, scale = weights(shape, copy)
        constants = {f"w{copy}": q, f"s{copy}": scale}
        node = helper.make_node("DynamicQuantizeMatMul", ["x", *constants], [f"y{copy}"], domain="com.microsoft")
        return node, constants

    return onnx_graph.prepare(shape, node_of)


def reference(shape: Problem) -> Callable[[], np.ndarray[Any, Any]]:
    q, scale = weights(shape, shape.copies - 1)
    return product(inputs(shape.m, shape.k), q.T * scale[:, None])
