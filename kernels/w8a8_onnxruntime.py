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
    return onnx_graph.prepare(shape, onnx_graph.dynamic_nodes(stored))


def stored(shape: Problem, copy: int) -> tuple[np.ndarray[Any, Any], ...]:
    """Codes, scales and perhaps zeros as the methods write them: uint8 about 128 where int8 saturates."""
    import numpy as np

    q, scale = channel_weights(shape, copy, transposed=True)
    if not saturates():
        return q, scale
    return q.view(np.uint8) ^ np.uint8(128), scale, np.full(shape.n, 128, np.uint8)


def reference(shape: Problem) -> Callable[[], np.ndarray[Any, Any]]:
    q, scale = channel_weights(shape, shape.copies - 1, transposed=True)
    return product(inputs(shape.m, shape.k), q.T * scale[:, None])
