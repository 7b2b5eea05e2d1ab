"""QLoRA (arXiv:2305.14314): NF4 weights with double quantization stay as they are, low-rank adapters beside them are trained.

W in NF4 (blocks of 64, scales rounded in blocks of 256); adapters and their training are those of `adapters.py`. Simulated on
SmolLM2-135M, 14 steps take the KL (1,024 tokens) from 0.45 to 0.29.

The artifact keeps both: MatMulBnb4 and the adapters' two products in ONNX Runtime. `adapter/` in it holds them in PEFT's
format, for the base model in NF4. Merged into these weights they would have to be rounded again, and lose what they won; those
of `qlora_merged.py` are trained to be merged.
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

from . import adapters, kbit
from .affine import Floats
from .artifact import base_folder, tokens_read
from .fake import Fake, linears, with_weights
from .kept import Kept, kept_beside
from .layerwise import evenly
from .refusals import not_offered, nothing_to_write
from .schemes import scheme as named
from .training import ENOUGH, Limits, Trained, silent, used

NAME = "qlora"
TARGET: Target = "weights"
COST = "training: one pass over the weights, then gradient steps on the adapters within budget.train_s"


def schemes() -> tuple[Scheme, ...]:
    return (named("nf4-b64-dq"),)


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    offered = not_offered(NAME, scheme, schemes(), runtime, (runtime,)) or kbit.refuse(model_folder, scheme, runtime)
    return offered or adapters.refuse(NAME, model_folder)


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None, train_s: float = ENOUGH.train_s,
          say: Callable[[str], None] = silent) -> tuple[str, ...]:  # fmt: skip
    from .formats import onnx
    from .formats.folders import new_folder
    from .observe import load

    if reason := refuse(model_folder, scheme, runtime):
        nothing_to_write(NAME, reason)
    tokens, model = evenly(calibration, adapters.SAMPLES), load(model_folder)
    given = {name: partial(kbit.nf4, linear.weight.detach().numpy(), scheme) for name, linear in linears(model).items()}
    with (
        base_folder(model_folder, runtime, out, base) as source,
        kept_beside(out, model_folder, tokens, f"{adapters.SETTINGS} {scheme.name} {train_s} {used()}") as kept,
    ):
        student, done = tuned(model, scheme, tokens, Limits(train_s, say), kept)
        with new_folder(out) as whole:
            onnx.quantize_nf4(source, whole, given, kbit.block_of(scheme), adapters.adapters_of(student))
            adapters.save(student, whole)
    return (f"{done.note(adapters.SETTINGS)}, on {tokens_read(tokens, calibration)}", adapters.BESIDE, kbit.DOUBLED)


def rounded(model_folder: Path, scheme: Scheme, calibration: NDArray[int64], limits: Limits = ENOUGH) -> dict[str, Floats]:
    """{linear: weights [N, K] with the adapters merged, W + B A}"""
    from .observe import load

    return adapters.merged(tuned(load(model_folder), scheme, evenly(calibration, adapters.SAMPLES), limits, {})[0])


def fake(model: Any, scheme: Scheme, calibration: NDArray[int64], limits: Limits = ENOUGH) -> Fake:
    """Of a model that was loaded from a folder."""
    return with_weights(model, rounded(Path(model.name_or_path), scheme, calibration, limits))


def tuned(teacher: Any, scheme: Scheme, tokens: NDArray[int64], limits: Limits, kept: Kept) -> tuple[Any, Trained]:
    """PEFT's model with trained adapters; its base is a copy of `teacher` in NF4."""
    weights = {name: kbit.on_codebook(linear.weight.detach().numpy(), scheme) for name, linear in linears(teacher).items()}
    return adapters.tuned(NAME, teacher, weights, tokens, limits, kept)
