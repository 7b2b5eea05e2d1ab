"""GGUF k-bit weights for llama.cpp, rounded by llama.cpp itself: Q2_K to Q8_0.

Q8_0, Q5_0 and Q4_0 are blocks of 32 with one scale each, Q5_1 and Q4_1 have a minimum too; the k-quants are super-blocks
of 256, in whose place llama.cpp takes larger blocks of 32 where 256 does not divide a row (kernels/ggml_types.py): the notes
say how many linears got which. The output layer and a tied embedding table keep 6 to 8 bits, as llama.cpp decides.
"""

from __future__ import annotations

from pathlib import Path

from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from .affine import Floats
from .artifact import base_folder
from .refusals import config, not_offered
from .rescale import pairs
from .schemes import scheme as scheme_named

NAME = "gguf"
TARGET: Target = "weights"
COST = "one pass over the weights in llama.cpp, no calibration"
OFFERED = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k")


def schemes() -> tuple[Scheme, ...]:
    return tuple(scheme_named(name) for name in OFFERED)


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    from .formats import gguf

    if refused := not_offered(NAME, scheme, schemes(), runtime, ("llama.cpp",)):
        return refused
    found = config(model_folder)
    return gguf.refuse(found) or gguf.refuse_rows(found, scheme.name)


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None) -> tuple[str, ...]:  # fmt: skip
    from .formats import gguf

    with base_folder(model_folder, runtime, out, base) as source:
        gguf.quantize(source, out, scheme.name)
    return ("rounded by llama_model_quantize", *gguf.types_note(out, scheme.name))


def rounded(model_folder: Path, scheme: Scheme, calibration: NDArray[int64]) -> dict[str, Floats]:
    """{linear: the weights [N, K] that its blocks stand for}, in the type that it has in the file."""
    from .formats import gguf
    from .observe import load, weight

    model, found = load(model_folder), config(model_folder)
    kinds = gguf.types(found, (name for pair in pairs(found) for name in pair.targets), scheme.name)
    return {name: gguf.round_rows(weight(model, name), kind) for name, kind in kinds.items()}
