"""ONNX Runtime's fp32 MatMul (MLAS), weights prepacked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from quantadvisor.documents import Device, Scheme

from . import onnx_graph
from .problem import Prepared, Problem, float_reference, float_weights
from .schemes import FP32

if TYPE_CHECKING:
    import numpy as np

scheme: Scheme = FP32
runtime = "onnxruntime"
options: tuple[str, ...] = ("",)


def refuse(device: Device, shape: Problem) -> str | None:
    return None


def arithmetic(option: str, isa: Sequence[str]) -> str:
    return "fp32"


def prepare(shape: Problem) -> Prepared:
    from onnx import helper

    def nodes_of(shape: Problem, copy: int) -> tuple[list[Any], dict[str, np.ndarray[Any, Any]]]:
        constants = {f"w{copy}": float_weights(shape, copy, transposed=True)}
        return [helper.make_node("MatMul", ["x", f"w{copy}"], [f"y{copy}"])], constants

    return onnx_graph.prepare(shape, nodes_of)


def reference(shape: Problem) -> Callable[[], np.ndarray[Any, Any]]:
    return float_reference(shape, transposed=True)
