"""OpenVINO's product with compressed weights: u8 in groups of 64; the option is the inference precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from quantadvisor.documents import Device, Scheme

from . import openvino_graph
from .problem import Prepared, Problem, grouped_reference
from .schemes import W8_G64

if TYPE_CHECKING:
    import numpy as np

scheme: Scheme = W8_G64
runtime = "openvino"
options: tuple[str, ...] = openvino_graph.OPTIONS


def refuse(device: Device, shape: Problem) -> str | None:
    return openvino_graph.refuse_group(device, shape)


def arithmetic(option: str, isa: Sequence[str]) -> str:
    return openvino_graph.compressed_arithmetic(option, isa)


def prepare(shape: Problem) -> Prepared:
    return openvino_graph.prepare(shape, openvino_graph.compressed_weight(shape, 8))


def reference(shape: Problem) -> Callable[[], np.ndarray[Any, Any]]:
    return grouped_reference(shape, 8)
