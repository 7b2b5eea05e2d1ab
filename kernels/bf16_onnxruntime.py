"""Not available: the CPU provider of ONNX Runtime has no bfloat16 MatMul. Listed so that the report says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from quantadvisor.documents import Device, Scheme

from .problem import Prepared, Problem, float_reference
from .schemes import BF16

if TYPE_CHECKING:
    import numpy as np

scheme: Scheme = BF16
runtime = "onnxruntime"
options: tuple[str, ...] = ("",)

REASON = "not available: ONNX Runtime's CPU provider implements MatMul in bfloat16 on no x86 CPU"


def refuse(device: Device, shape: Problem) -> str | None:
    return REASON


def arithmetic(option: str, isa: Sequence[str]) -> str:
    return "bf16"


def prepare(shape: Problem) -> Prepared:
    raise NotImplementedError(REASON)


def reference(shape: Problem) -> Callable[[], np.ndarray[Any, Any]]:
    return float_reference(shape)
