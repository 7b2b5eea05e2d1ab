"""An INT8 key-value cache: one fixed scale per layer, head and channel, from real prefills.

Halves nothing in the weights: it pays where many users or long contexts make the cache the larger stream of memory.
By itself it leaves the weights in fp32. A combination (`w4-g64-kv8`) is the artifact of any method's weights with this on
top: that folder given to `apply` as `base` (advisor/context.py does so).
"""

from __future__ import annotations

from pathlib import Path

from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from .artifact import write_cache
from .refusals import ONNX, not_offered
from .schemes import scheme as named
from .training import Say, silent

NAME = "kv_int8"
TARGET: Target = "kv_cache"
COST = "one forward pass of 32 calibration samples for the scales of keys and values"


def schemes() -> tuple[Scheme, ...]:
    return (named("fp32-kv8"),)


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    return not_offered(NAME, scheme, schemes(), runtime, ONNX)


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None, say: Say = silent) -> tuple[str, ...]:  # fmt: skip
    """`base`: the folder that gets the cache, its weights in whatever format."""
    return write_cache(model_folder, scheme, runtime, calibration, out, base, say)
