"""ONNX Runtime's MatMulNBits: INT8 weights in groups of 64, activations rounded to INT8 inside (accuracy_level 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from quantadvisor.documents import Device, Scheme

from . import onnx_graph
from .problem import Prepared, Problem, grouped_reference
from .schemes import W8_G64

if TYPE_CHECKING:
    import numpy as np

scheme: Scheme = W8_G64
runtime = "onnxruntime"
options: tuple[str, ...] = ("",)


def refuse(device: Device, shape: Problem) -> str | None:
    return None


def arithmetic(option: str, isa: Sequence[str]) -> str:
    return "int8"


def prepare(shape: Problem) -> Prepared:
    return onnx_graph.prepare(shape, onnx_graph.nbits_nodes(8))


def reference(shape: Problem) -> Callable[[], np.ndarray[Any, Any]]:
    return grouped_reference(shape, 8)
