"""GGUF k-bit weights for llama.cpp, rounded by llama.cpp itself: Q8_0 and Q4_0 (blocks of 32 with one scale each).

The output layer and a tied embedding table keep 6 to 8 bits, as llama.cpp decides.
"""

from __future__ import annotations

from pathlib import Path

from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from .artifact import base_folder
from .refusals import config, not_offered
from .schemes import scheme as scheme_named

NAME = "gguf"
TARGET: Target = "weights"


def schemes() -> tuple[Scheme, ...]:
    return tuple(scheme_named(name) for name in ("q8_0", "q4_0"))


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    from .formats import gguf

    return not_offered(NAME, scheme, schemes(), runtime, ("llama.cpp",)) or gguf.refuse(config(model_folder))


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None) -> tuple[str, ...]:  # fmt: skip
    from .formats import gguf

    with base_folder(model_folder, runtime, out, base) as source:
        gguf.quantize(source, out, scheme.name)
    return ("rounded by llama_model_quantize",)
