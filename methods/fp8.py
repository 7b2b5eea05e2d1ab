"""FP8 weights and activations (arXiv:2209.05433): 8-bit floats whose relative step, unlike an integer's, follows the value.

    fp8          E4M3, weights per channel, activations per token while the model runs
    fp8-tensor   E4M3, one scale per weight matrix and one per activation tensor while the model runs
    fp8-static   the same with the activations' scale fixed by calibration: the largest value seen
    fp8-block    E4M3, weights in squares of 128, activations in runs of 128 (DeepSeek-V3, arXiv:2412.19437)
    fp8-e5m2     as fp8, with one bit of the mantissa given to the exponent
    ...-bf16     of all but fp8-e5m2, the rest in bfloat16: a compressed-tensors folder, for GPUs from compute capability 8.9 on

vLLM scales activations of fp8-tensor-bf16 per token: finer than its config says, and its only dynamic kind beside runs. It
joins q, k and v, gate and up, and gives a joined weight the largest of their scales per tensor.

S = max|x| / 448 (E5M2: 57344). Values beyond, which only static scales know, are clipped. Simulated on SmolLM2-135M, KL:
fp8 0.026, -block 0.025, -tensor 0.032, -static 0.032, -e5m2 0.097; INT8 per token 0.048, INT8 per tensor 0.54.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from . import static_int8
from .fake import Fake, channel_peaks
from .kept import Kept, kept_beside, resumed
from .refusals import COMPRESSED, config, group_mismatch, no_kernel, nothing_to_write
from .rescale import mapping_missing
from .schemes import scheme as named
from .training import Say, silent

NAME = "fp8"
TARGET: Target = "activations"
COST = "one pass over the weights; static scales take one forward pass of the calibration samples"
BLOCK = 128
WRITTEN = {"fp8-bf16": "channel", "fp8-tensor-bf16": "tensor", "fp8-static-bf16": "static", "fp8-block-bf16": "block"}
"""scheme -> how its folder's weights are scaled (formats/compressed.py)."""
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
    return tuple(
        named(f"fp8{kind}")
        for kind in ("", "-tensor", "-static", "-block", "-e5m2", "-bf16", "-tensor-bf16", "-static-bf16", "-block-bf16")
    )


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    if runtime in COMPRESSED:
        return mapping_missing(config(model_folder)) or folder_missing(model_folder, scheme, runtime)
    return no_kernel(NAME, scheme, schemes(), runtime, MISSING)


def folder_missing(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    """What the runtime lacks of a scheme."""
    if scheme.name == "fp8-e5m2":
        return f"{runtime} multiplies E4M3 only: its FP8 linears have no E5M2"
    if scheme.name not in WRITTEN:
        return f"{scheme.name} is not for {runtime}: it computes the rest in bfloat16, {', '.join(WRITTEN)}"
    if runtime == "triton" and scheme.name != "fp8-bf16":
        return "our triton product scales rows of the weights and tokens: fp8-bf16"
    if scheme.name != "fp8-block-bf16":
        return None
    found = config(model_folder)
    heads = found["num_attention_heads"]
    width = (found.get("num_key_value_heads") or heads) * (found.get("head_dim") or found["hidden_size"] // heads)
    if width % BLOCK:
        return f"squares of {BLOCK} do not divide k_proj and v_proj's {width} rows, which vLLM joins"
    return group_mismatch(model_folder, scheme)


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None, say: Say = silent) -> tuple[str, ...]:  # fmt: skip
    if reason := refuse(model_folder, scheme, runtime):
        nothing_to_write(NAME, reason)
    from .artifact import base_folder, tokens_read
    from .formats import compressed

    tokens, static = calibration[:CALIBRATION], scheme.name == "fp8-static-bf16"
    with base_folder(model_folder, runtime, out, base) as source, kept_beside(out, model_folder, tokens, NAME) as kept:
        known = resumed(len(kept), "tensors")
        peaks = input_peaks(model_folder, tokens, say, kept) if static else {}
        compressed.quantize_fp8(source, out, WRITTEN[scheme.name], peaks)
    return (f"activations' scales: the largest values of {tokens_read(tokens, calibration)}", *known) if static else ()


def input_peaks(model_folder: Path, tokens: NDArray[int64], say: Say = silent, kept: Kept | None = None) -> dict[str, float]:
    """Largest |x| that every linear of the decoder reads over tokens int64 [samples, length], layer by layer. `kept`: as of
    `static_int8.ranges`."""
    from .stream import layer_by_layer

    found = static_int8.ranges(layer_by_layer(model_folder, say), tokens, kept=kept)
    return {name: max(-low, high) or 1.0 for readers, low, high in found for name in readers}


def fake(model: Any, scheme: Scheme, calibration: NDArray[int64]) -> Fake:
    from .grids import float8, in_blocks, in_groups

    kind, layout = scheme.name.removesuffix("-bf16"), "e5m2" if scheme.name.endswith("-e5m2") else "e4m3"
    if kind.endswith("-block"):
        return Fake(
            model,
            weight=lambda _, w: in_blocks(w, BLOCK, lambda part: float8(part, layout, (1, 3))),
            inputs=lambda _, x: in_groups(x, BLOCK, lambda part: float8(part, layout)),
        )
    if kind.endswith("-static"):
        return with_peaks(model, channel_peaks(model, calibration[:CALIBRATION]))
    if kind.endswith("-tensor"):
        return Fake(model, weight=lambda _, w: float8(w, layout, None), inputs=lambda _, x: float8(x, layout, None))
    return Fake(model, weight=lambda _, w: float8(w, layout), inputs=lambda _, x: float8(x, layout))


def with_peaks(model: Any, channels: Mapping[str, Any]) -> Fake:
    """E4M3 with one scale a tensor, the inputs' from the largest values that calibration saw: `channels`, [K] of each linear."""
    from .grids import float8

    peaks = {name: float(bound.max()) for name, bound in channels.items()}
    return Fake(model, weight=lambda _, w: float8(w, "e4m3", None), inputs=lambda name, x: float8(x, "e4m3", peak=peaks[name]))
