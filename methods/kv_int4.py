"""An INT4 key-value cache: one fixed scale per layer, head and channel, for keys and for values, from real prefills.

Half of `kv_int8`'s bytes, two codes in a byte, and a step 18 times as wide: fixed scales must cover whatever comes, and at 4
bits the quiet tokens pay for it (SmolLM2-135M, through ONNX Runtime: KL 0.34, INT8 0.0014). KIVI's ranges of small groups
are tighter (`kivi`), but no runtime here reads them in 4 bits.
"""

from __future__ import annotations

from pathlib import Path

from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from .artifact import base_folder, write_cache
from .refusals import not_offered
from .schemes import scheme as named

NAME = "kv_int4"
TARGET: Target = "kv_cache"
COST = "one forward pass of 32 calibration samples for the scales of keys and values"


def schemes() -> tuple[Scheme, ...]:
    return (named("fp32-kv4"),)


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    return not_offered(NAME, scheme, schemes(), runtime, ("onnxruntime",))


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None) -> tuple[str, ...]:  # fmt: skip
    """`base`: the folder that gets the cache, its weights in whatever format."""
    with base_folder(model_folder, runtime, out, base) as source:
        return write_cache(source, scheme, calibration, out)
