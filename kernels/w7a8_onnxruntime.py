"""ONNX Runtime's DynamicQuantizeMatMul with INT8 weights of 7 bits: the product that is exact where 8 bits saturate, and fast.

Activations have one range per call: hence the scheme `w7a8-tensor`. Where 8 bits do not saturate it is the product of
`w8a8_onnxruntime.py` with less in each weight, and refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from quantadvisor.documents import Device, Scheme

from . import onnx_graph
from .problem import Prepared, Problem, exact_weights, inputs, product
from .saturation import saturates
from .schemes import W7A8_TENSOR

if TYPE_CHECKING:
    import numpy as np

scheme: Scheme = W7A8_TENSOR
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


def prepare(shape: Problem) -> Prepared:
    return onnx_graph.prepare(shape, onnx_graph.dynamic_nodes(partial(exact_weights, transposed=True)))


def reference(shape: Problem) -> Callable[[], np.ndarray[Any, Any]]:
    q, scale = exact_weights(shape, shape.copies - 1, transposed=True)
    return product(inputs(shape.m, shape.k), q.T * scale[:, None])
