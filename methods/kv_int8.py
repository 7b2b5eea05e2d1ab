"""An INT8 key-value cache: one fixed scale per layer, head and channel, from real prefills.

Halves nothing in the weights: it pays where many users or long contexts make the cache the larger stream of memory.
By itself it leaves the weights in fp32; `rtn`, `mixed`, `dynamic_int8` and `smoothquant` offer it on top of theirs as
`...-kv8`, and `apply` here takes any such scheme that needs no search.
"""

from __future__ import annotations

from pathlib import Path

from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from . import dynamic_int8, rtn
from .artifact import base_folder, write_onnx
from .refusals import ONNX, not_offered
from .schemes import scheme as named

NAME = "kv_int8"
TARGET: Target = "kv_cache"
COST = "one forward pass of 32 calibration samples for the scales of keys and values"


def schemes() -> tuple[Scheme, ...]:
    return (named("fp32-kv8"),)


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    combined = (*schemes(), *rtn.schemes(), *dynamic_int8.schemes())
    if refused := not_offered(NAME, scheme, [each for each in combined if each.quantizes_cache], runtime, ONNX):
        return refused
    grouped = scheme.weights is not None and scheme.activations is None
    return rtn.refuse(model_folder, scheme, runtime) if grouped else None


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None) -> tuple[str, ...]:  # fmt: skip
    if scheme.activations is not None:
        return dynamic_int8.apply(model_folder, scheme, runtime, calibration, out, base=base)
    if scheme.weights is not None:
        return rtn.apply(model_folder, scheme, runtime, calibration, out, base=base)
    from .formats import onnx

    with base_folder(model_folder, runtime, out, base) as source:
        return write_onnx(source, scheme, calibration, out, onnx.link_folder)
