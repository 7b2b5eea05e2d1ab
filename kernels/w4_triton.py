"""Not available on a CPU: INT4 weights with 16-bit activations on NVIDIA GPUs. Listed so that the report says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from quantadvisor.documents import Device, Scheme

from .problem import Prepared, Problem, grouped_reference
from .schemes import W4_G64

if TYPE_CHECKING:
    import numpy as np

scheme: Scheme = W4_G64
runtime = "triton"
options: tuple[str, ...] = ("",)


def refuse(device: Device, shape: Problem) -> str | None:
    if not device.gpus:
        return "not available: needs an NVIDIA GPU, and this machine has none"
    return "not available on a CPU: advisor kernels --device cuda:0 times it"


def arithmetic(option: str, isa: Sequence[str]) -> str:
    return "bf16"


def prepare(shape: Problem) -> Prepared:
    raise NotImplementedError("timed on a GPU alone: advisor/gpu_home.py")


def reference(shape: Problem) -> Callable[[], np.ndarray[Any, Any]]:
    return grouped_reference(shape, 4)
