"""llama.cpp's bfloat16 product: what its unquantized models run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from quantadvisor.documents import Device, Scheme

from . import ggml_graph
from .problem import Prepared, Problem
from .schemes import BF16

if TYPE_CHECKING:
    import numpy as np

scheme: Scheme = BF16
runtime = "llama.cpp"
options: tuple[str, ...] = ("",)

TYPE = "bf16"


def refuse(device: Device, shape: Problem) -> str | None:
    return None


def arithmetic(option: str, isa: Sequence[str]) -> str:
    return "bf16"


def prepare(shape: Problem) -> Prepared:
    return ggml_graph.prepare(shape, TYPE)


def reference(shape: Problem) -> Callable[[], np.ndarray[Any, Any]]:
    return ggml_graph.reference(shape, TYPE)
