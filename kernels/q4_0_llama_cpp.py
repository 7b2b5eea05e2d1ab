"""llama.cpp's Q4_0 product: blocks of 32 weights with one scale; activations are rounded to Q8_0 in blocks of 32 too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from quantadvisor.documents import Device, Scheme

from . import ggml_graph
from .problem import Prepared, Problem
from .schemes import W4_BLOCKS

if TYPE_CHECKING:
    import numpy as np

scheme: Scheme = W4_BLOCKS
runtime = "llama.cpp"
options: tuple[str, ...] = ggml_graph.OPTIONS

TYPE = "q4_0"
BLOCK = 32


def refuse(device: Device, shape: Problem) -> str | None:
    return ggml_graph.refuse_rows(shape, BLOCK)


def arithmetic(option: str, isa: Sequence[str]) -> str:
    return "int8"


def prepare(shape: Problem) -> Prepared:
    return ggml_graph.prepare(shape, TYPE)


def reference(shape: Problem) -> Callable[[], np.ndarray[Any, Any]]:
    return ggml_graph.reference(shape, TYPE)
