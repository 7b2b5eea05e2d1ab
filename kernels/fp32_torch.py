"""torch's own fp32 product (MKL or oneDNN), as a transformers model on CPU runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from quantadvisor.documents import Device, Scheme

from . import torch_products
from .problem import Prepared, Problem, float_reference
from .schemes import FP32

if TYPE_CHECKING:
    import numpy as np

scheme: Scheme = FP32
runtime = "torch"
options: tuple[str, ...] = ("",)


def refuse(device: Device, shape: Problem) -> str | None:
    return None


def arithmetic(option: str, isa: Sequence[str]) -> str:
    return "fp32"


def prepare(shape: Problem) -> Prepared:
    return torch_products.prepare(shape, "float32")


def reference(shape: Problem) -> Callable[[], np.ndarray[Any, Any]]:
    return float_reference(shape)
