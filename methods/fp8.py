"""FP8 weights and activations (arXiv:2209.05433): 8-bit floats whose relative step, unlike an integer's, follows the value.

    fp8          E4M3, weights per channel, activations per token while the model runs
    fp8-tensor   E4M3, one scale per weight matrix and one per activation tensor while the model runs
    fp8-static   the same with the activations' scale fixed by calibration: the largest value seen
    fp8-block    E4M3, weights in squares of 128, activations in runs of 128 (DeepSeek-V3, arXiv:2412.19437)
    fp8-e5m2     as fp8, with one bit of the mantissa given to the exponent
    fp8-bf16     as fp8, the rest in bfloat16: a compressed-tensors folder, for GPUs from compute capability 8.9 on

S = max|x| / 448 (E5M2: 57344). Values beyond, which only static scales know, are clipped. Simulated on SmolLM2-135M, KL:
fp8 0.026, -block 0.025, -tensor 0.032, -static 0.032, -e5m2 0.097; INT8 per token 0.048, INT8 per tensor 0.54.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from .fake import Fake, Named, channel_peaks
from .refusals import COMPRESSED, config, no_kernel, nothing_to_write
from .rescale import mapping_missing
from .schemes import scheme as named

NAME = "fp8"
TARGET: Target = "activations"
COST = "one pass over the weights; static scales take one forward pass of the calibration samples"
BLOCK = 128
WRITTEN = "fp8-bf16"
CALIBRATION = 32
"""Calibration samples that static scales come from."""
MISSING = {
    "torch": "this CPU multiplies no FP8: torch would widen every operand first",
    "onnxruntime": "the CPU provider converts FP8 but has no FP8 matrix product",
    "onnxruntime-genai": "the CPU provider converts FP8 but has no FP8 matrix product",
    "openvino": "its CPU plugin widens FP8 weights before it multiplies, and has no FP8 matrix product",
    "llama.cpp": "it has no FP8 type",
}


def schemes() -> tuple[Scheme, ...]:
    return tuple(named(f"fp8{kind}") for kind in ("", "-tensor", "-static", "-block", "-e5m2", "-bf16"))


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    if runtime in COMPRESSED:
        return mapping_missing(config(model_folder)) if scheme.name == WRITTEN else f"of FP8, {WRITTEN} is written for {runtime}"
    return no_kernel(NAME, scheme, schemes(), runtime, MISSING)


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None) -> tuple[str, ...]:  # fmt: skip
    if reason := refuse(model_folder, scheme, runtime):
        nothing_to_write(NAME, reason)
    from .artifact import base_folder
    from .formats import compressed

    with base_folder(model_folder, runtime, out, base) as source:
        compressed.quantize_fp8(source, out)
    return ()


def fake(model: Any, scheme: Scheme, calibration: NDArray[int64]) -> Fake:
    from .grids import float8, in_blocks, in_groups

    layout = "e5m2" if scheme.name.endswith("-e5m2") else "e4m3"
    if scheme.name.endswith("-block"):
        return Fake(
            model,
            weight=lambda _, w: in_blocks(w, BLOCK, lambda part: float8(part, layout, (1, 3))),
            inputs=lambda _, x: in_groups(x, BLOCK, lambda part: float8(part, layout)),
        )
    if not scheme.name.endswith(("-tensor", "-static")):
        return Fake(model, weight=lambda _, w: float8(w, layout), inputs=lambda _, x: float8(x, layout))
    inputs: Named = lambda _, x: float8(x, layout, None)  # noqa: E731
    if scheme.name.endswith("-static"):
        peaks = {name: float(bound.max()) for name, bound in channel_peaks(model, calibration[:CALIBRATION]).items()}
        inputs = lambda name, x: float8(x, layout, peak=peaks[name])  # noqa: E731
    return Fake(model, weight=lambda _, w: float8(w, layout, None), inputs=inputs)
