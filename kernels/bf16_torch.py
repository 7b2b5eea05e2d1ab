"""torch's own bf16 product (oneDNN): AMX or AVX512-BF16 instructions where the CPU has them, emulated elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from quantadvisor.documents import Device, Scheme

from . import torch_products
from .problem import Prepared, Problem, float_reference
from .schemes import BF16

if TYPE_CHECKING:
    import numpy as np

scheme: Scheme = BF16
runtime = "torch"
options: tuple[str, ...] = ("",)


def refuse(device: Device, shape: Problem) -> str | None:
    return None


def arithmetic(option: str, isa: Sequence[str]) -> str:
    return "bf16"


def prepare(shape: Problem) -> Prepared:
    return torch_products.prepare(shape, "bfloat16")


def reference(shape: Problem) -> Callable[[], np.ndarray[Any, Any]]:
    return float_reference(shape)
