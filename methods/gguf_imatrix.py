"""GGUF weights rounded by llama.cpp with an importance matrix: mean squares of every linear's inputs weigh its errors.

llama.cpp chooses a block's scale so that  sum_k m_k (w_k - q_k)^2  is small, m_k the mean of x_k^2 over calibration
tokens: the diagonal of the Hessian that GPTQ uses whole. Types and artifacts are those of `gguf`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from . import gguf as plain
from .affine import Floats
from .artifact import base_folder, tokens_read
from .kept import Kept, kept_beside, resumed
from .layerwise import SAMPLES, evenly
from .refusals import config, not_offered
from .rescale import mapping_missing, pairs
from .schemes import scheme as scheme_named
from .stream import Parts, stream
from .training import Say, silent

NAME = "gguf_imatrix"
TARGET: Target = "weights"
COST = "one forward pass of the calibration samples for the importance matrix, and one weighted pass over the weights"
OFFERED = ("q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k")


def schemes() -> tuple[Scheme, ...]:
    return tuple(scheme_named(name) for name in OFFERED)


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    if refused := not_offered(NAME, scheme, schemes(), runtime, ("llama.cpp",)):
        return refused
    return mapping_missing(config(model_folder)) or plain.refuse(model_folder, scheme, runtime)


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None, say: Say = silent, samples: int | None = None) -> tuple[str, ...]:  # fmt: skip
    from .formats import gguf

    tokens = evenly(calibration, samples or SAMPLES)
    with base_folder(model_folder, runtime, out, base) as source, kept_beside(out, model_folder, tokens, NAME) as kept:
        known = resumed(len(kept), "tensors")
        found = importances(model_folder, tokens, say, kept)
        names = gguf.tensor_names(config(model_folder), found)
        gguf.quantize(source, out, scheme.name, importance={names[name]: value for name, value in found.items()})
    how = f"rounded by llama_model_quantize, inputs weighed by {tokens_read(tokens, calibration)}"
    return (how, *gguf.types_note(out, scheme.name), *known)


def rounded(model_folder: Path, scheme: Scheme, calibration: NDArray[int64]) -> dict[str, Floats]:
    """{linear: the weights [N, K] that its blocks stand for}, in the type that it has in the file."""
    from .formats import gguf

    found, result = config(model_folder), dict[str, Floats]()

    def visit(targets: tuple[str, ...], x: Parts, weights: list[Floats]) -> None:
        importance, kinds = mean_squares(x), gguf.types(found, targets, scheme.name, weighed=True)
        for name, w in zip(targets, weights, strict=True):
            result[name] = gguf.round_rows(w, kinds[name], importance)

    stream(model_folder, calibration, visit)
    return result


def importances(model_folder: Path, tokens: NDArray[int64], say: Say = silent, kept: Kept | None = None) -> dict[str, Floats]:
    """{linear: mean squares of its inputs [K]}. `kept`: those of each tensor, found here or by an interrupted run."""
    kept = {} if kept is None else kept
    groups = [pair.targets for pair in pairs(config(model_folder))]

    def visit(targets: tuple[str, ...], x: Parts, _: list[Floats]) -> None:
        if targets[0] not in kept:
            kept[targets[0]] = {"squares": mean_squares(x)}

    if not all(targets[0] in kept for targets in groups):
        stream(model_folder, tokens, visit, say)
    return {name: kept[targets[0]]["squares"] for targets in groups for name in targets}


def mean_squares(x: Parts) -> Floats:
    """x: [T, K] -> float32 [K]."""
    counts, sums = zip(*((len(part), np.square(part).sum(axis=0)) for part in x), strict=True)
    squares: Floats = np.sum(sums, axis=0) / np.float32(sum(counts))
    return squares
