"""QLoRA whose adapters are merged: low-rank updates of the weights, trained through the NF4 rounding that they end in.

The weights become R(W + B A), R rounding to NF4 with double quantization and W those of the unquantized model; every step
multiplies by them (LR-QAT, arXiv:2406.06385; `adapters.py`), so that no second rounding comes after the last one. The artifact
is MatMulBnb4 alone, to the byte as large and as fast as NF4 without adapters.

Merging the adapters of `qlora.py` into NF4 instead loses nearly all that they won, since B A is smaller than NF4's steps: on the
tiny Llama of the tests (three texts, 120 steps) KL is 0.0225 in NF4, 0.0110 to 0.0125 with adapters kept, 0.0210 to 0.0225 with
these merged and rounded again, and 0.0175 to 0.0183 with those trained to be merged.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from . import adapters, kbit, qlora
from .affine import Floats
from .artifact import base_folder, tokens_read
from .fake import Fake, linears, with_weights
from .kept import Kept, kept_beside
from .layerwise import evenly
from .refusals import not_offered, nothing_to_write
from .training import ENOUGH, Limits, Trained, silent, used

NAME = "qlora_merged"
TARGET: Target = "weights"
COST = "training: gradient steps on adapters within budget.train_s, a pass of rounding over the weights in each"
schemes = qlora.schemes


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    offered = not_offered(NAME, scheme, schemes(), runtime, (runtime,))
    return offered or kbit.refuse(model_folder, scheme, runtime) or adapters.refuse(NAME, model_folder)


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None, train_s: float = ENOUGH.train_s,
          say: Callable[[str], None] = silent) -> tuple[str, ...]:  # fmt: skip
    from .formats import onnx
    from .observe import load

    if reason := refuse(model_folder, scheme, runtime):
        nothing_to_write(NAME, reason)
    tokens = evenly(calibration, adapters.SAMPLES)
    with (
        base_folder(model_folder, runtime, out, base) as source,
        kept_beside(out, model_folder, tokens, f"{NAME} {adapters.SETTINGS} {scheme.name} {train_s} {used()}") as kept,
    ):
        whole, done = trained(load(model_folder), scheme, tokens, Limits(train_s, say), kept)
        given = {name: partial(kbit.nf4, w, scheme) for name, w in whole.items()}
        onnx.quantize_nf4(source, out, given, kbit.block_of(scheme))
    return (f"{done.note(adapters.SETTINGS)}, merged, on {tokens_read(tokens, calibration)}", kbit.DOUBLED)


def rounded(model_folder: Path, scheme: Scheme, calibration: NDArray[int64], limits: Limits = ENOUGH) -> dict[str, Floats]:
    """{linear: the weights [N, K] that its codes stand for}"""
    from .observe import load

    whole, _ = trained(load(model_folder), scheme, evenly(calibration, adapters.SAMPLES), limits, {})
    return {name: kbit.on_codebook(w, scheme) for name, w in whole.items()}


def fake(model: Any, scheme: Scheme, calibration: NDArray[int64], limits: Limits = ENOUGH) -> Fake:
    """Of a model that was loaded from a folder."""
    return with_weights(model, rounded(Path(model.name_or_path), scheme, calibration, limits))


def trained(teacher: Any, scheme: Scheme, tokens: NDArray[int64], limits: Limits,
            kept: Kept) -> tuple[dict[str, Floats], Trained]:  # fmt: skip
    """{linear: W + B A [N, K]} before it is rounded, W that of `teacher`."""
    weights = {name: linear.weight.detach().numpy() for name, linear in linears(teacher).items()}
    student, done = adapters.tuned(NAME, teacher, weights, tokens, limits, kept, partial(kbit.on_codebook, scheme=scheme))
    return adapters.merged(student), done
