"""LoRA on top of a GPTQ model: GPTQ's integers stay as they are, low-rank adapters beside them are trained.

The integers are those of `gptq.py`; adapters and their training are those of `adapters.py`, as in QLoRA, whose NF4 they replace
by a grid that kernels multiply by fast. Training begins when the integers are there; what GPTQ takes does not count for
`budget.train_s`.

    onnxruntime   MatMulNBits and the adapters' two products beside it
    torch         GPTQ's layout, which transformers loads through gptqmodel, and PEFT the adapters onto it

`adapter/` holds them in PEFT's format in both.
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

from . import adapters, gptq, layerwise
from .affine import Floats, dequantize_groups
from .artifact import base_folder, tokens_read, write_grouped
from .fake import Fake, linears, with_weights
from .kept import Arrays, Kept, kept_beside
from .layerwise import evenly, grid_of, loaded
from .refusals import ONNX, READS, not_offered, nothing_to_write, padding
from .schemes import scheme as named
from .training import ENOUGH, Limits, Trained, silent, used

NAME = "gptq_lora"
TARGET: Target = "weights"
COST = "training: GPTQ, then gradient steps on the adapters within budget.train_s"
RUNTIMES = (*ONNX, "torch")


def schemes() -> tuple[Scheme, ...]:
    return tuple(named(name) for name in ("w4-g64", "w4-g128", "w4-g64-bf16"))


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    offered = not_offered(NAME, scheme, schemes(), runtime, RUNTIMES)
    return offered or adapters.refuse(NAME, model_folder) or gptq.refuse(model_folder, scheme, runtime)


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None, train_s: float = ENOUGH.train_s,
          say: Callable[[str], None] = silent) -> tuple[str, ...]:  # fmt: skip
    from .formats.folders import new_folder

    if (reason := refuse(model_folder, scheme, runtime)) and not reason.startswith(READS):
        nothing_to_write(NAME, reason)
    tokens = evenly(calibration, adapters.SAMPLES)
    settings = f"{gptq.SETTINGS} {adapters.SETTINGS} {scheme.name} {train_s} {used()}"
    with (
        base_folder(model_folder, runtime, out, base) as source,
        kept_beside(out, model_folder, tokens, settings) as kept,
    ):
        student, done = tuned(model_folder, scheme, tokens, Limits(train_s, say), kept)
        beside = adapters.adapters_of(student)
        given = {name: partial(loaded, kept, name) for name in beside}
        with new_folder(out) as whole:
            write_grouped(model_folder, source, scheme, runtime, whole, given, adapters=beside if runtime in ONNX else None)
            adapters.save(student, whole)
    hessians = f"{gptq.SETTINGS}; Hessians from {tokens_read(evenly(tokens, layerwise.SAMPLES), calibration)}"
    trained = f"{done.note(adapters.SETTINGS)}, on {tokens_read(tokens, calibration)}"
    return (hessians, trained, adapters.BESIDE, *padding(model_folder, scheme, runtime))


def rounded(model_folder: Path, scheme: Scheme, calibration: NDArray[int64], limits: Limits = ENOUGH) -> dict[str, Floats]:
    """{linear: weights [N, K] with the adapters merged, W + B A}"""
    kept = dict[str, Arrays]()
    return adapters.merged(tuned(model_folder, scheme, evenly(calibration, adapters.SAMPLES), limits, kept)[0])


def fake(model: Any, scheme: Scheme, calibration: NDArray[int64], limits: Limits = ENOUGH) -> Fake:
    """Of a model that was loaded from a folder."""
    return with_weights(model, rounded(Path(model.name_or_path), scheme, calibration, limits))


def tuned(model_folder: Path, scheme: Scheme, tokens: NDArray[int64], limits: Limits, kept: Kept) -> tuple[Any, Trained]:
    """PEFT's model with trained adapters beside GPTQ's weights; their integers, and the way so far, go into `kept`."""
    from .observe import load

    grid = grid_of(scheme)
    layerwise.round_all(model_folder, evenly(tokens, layerwise.SAMPLES), grid, gptq.solve, kept, limits.say)
    teacher = load(model_folder)
    weights = {name: dequantize_groups(*loaded(kept, name), grid.group) for name in linears(teacher)}
    return adapters.tuned(NAME, teacher, weights, tokens, limits, kept)
