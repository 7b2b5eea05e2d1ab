"""OpenVINO's float product; the option is the inference precision: `f32`, or `bf16`, which rounds the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from quantadvisor.documents import Device, Scheme

from . import openvino_graph
from .problem import Prepared, Problem, float_reference, float_weights
from .schemes import FP32

if TYPE_CHECKING:
    import numpy as np

scheme: Scheme = FP32
runtime = "openvino"
options: tuple[str, ...] = openvino_graph.OPTIONS


def refuse(device: Device, shape: Problem) -> str | None:
    return openvino_graph.refuse(device, shape)


def arithmetic(option: str, isa: Sequence[str]) -> str:
    return "bf16" if option == "bf16" else "fp32"


def prepare(shape: Problem) -> Prepared:
    return openvino_graph.prepare(shape, lambda copy: openvino_graph.constant(float_weights(shape, copy)))


def reference(shape: Problem) -> Callable[[], np.ndarray[Any, Any]]:
    return float_reference(shape)
