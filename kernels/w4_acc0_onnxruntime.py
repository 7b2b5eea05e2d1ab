"""ONNX Runtime's MatMulNBits as exported without accuracy_level: INT4 weights expanded to fp32 before the product.

No candidate runs it: it is timed as a trap. Option `acc0`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from quantadvisor.documents import Device, Scheme

from . import onnx_graph
from .problem import Prepared, Problem, grouped_reference
from .schemes import W4_G64

if TYPE_CHECKING:
    import numpy as np

scheme: Scheme = W4_G64
runtime = "onnxruntime"
options: tuple[str, ...] = ("acc0",)


def refuse(device: Device, shape: Problem) -> str | None:
    return None


def arithmetic(option: str, isa: Sequence[str]) -> str:
    return "fp32"


def prepare(shape: Problem) -> Prepared:
    return onnx_graph.prepare(shape, onnx_graph.nbits_nodes(4, accuracy_level=0))


def reference(shape: Problem) -> Callable[[], np.ndarray[Any, Any]]:
    return grouped_reference(shape, 4)
