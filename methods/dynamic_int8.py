"""W8A8 without data: int8 weights per channel, activations rounded to int8 while the model runs.

`w8a8` gives every token its own scale; `w7a8` is the same with weights of 7 bits, for CPUs without VNNI or AMX. `w8a8-tensor`
is what `onnxruntime.quantization.quantize_dynamic` writes: one range for the whole activation tensor, in which a single
outlier token (the first one of a sequence, usually) takes the resolution from all others. On SmolLM2-135M its KL against
fp32 is 0.41, against 0.032 per token. `w8a8-bf16` is per token, in a compressed-tensors folder whose other tensors are
bfloat16, lm_head among them: vLLM's. `w4a4` is the rounding of `w8a8` with 4 bits in place of 8, which nothing here multiplies:
what a rotation, which rounds just so, is set against.
"""

from __future__ import annotations

from pathlib import Path

from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from .artifact import base_folder
from .refusals import COMPRESSED, ONNX, compute_mismatch, config, experts_left, not_offered, nothing_to_write
from .rescale import mapping_missing
from .schemes import named
from .schemes import scheme as scheme_named

NAME = "dynamic_int8"
TARGET: Target = "activations"
COST = "one pass over the weights, no calibration"
FOUR_BITS = "no runtime here multiplies INT4 activations: it is simulated only"


def schemes() -> tuple[Scheme, ...]:
    return (*named("w8a8", "w7a8", "w8a8-tensor", "w4a4"), scheme_named("w8a8-bf16"))


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    if refused := not_offered(NAME, scheme, schemes(), runtime, (*ONNX, *COMPRESSED)):
        return refused
    if scheme.name == "w4a4":
        return FOUR_BITS
    if refused := compute_mismatch(scheme, runtime):
        return refused
    found = config(model_folder)
    return mapping_missing(found) if runtime in COMPRESSED else experts_left(found, runtime)


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None) -> tuple[str, ...]:  # fmt: skip
    if scheme.name == "w4a4":
        nothing_to_write(NAME, FOUR_BITS)
    assert scheme.weights is not None and scheme.activations is not None
    per_token, bits = scheme.activations.granularity == "token", int(scheme.weights.bits)
    with base_folder(model_folder, runtime, out, base) as source:
        if runtime in COMPRESSED:
            from .formats import compressed

            compressed.quantize_w8a8(source, out)
            return ()
        from .formats import onnx

        onnx.quantize_dynamic_w8a8(source, out, per_token=per_token, bits=bits)
    return ()
