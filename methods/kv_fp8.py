"""An FP8 cache (E4M3): one fixed scale per layer for keys and one for values, calibrated, or 1.0.

`kvf8`: S = max|x| / 448 over calibration, so that nothing is clipped. `kvf8-unit`: S = 1, what servers take where a
checkpoint brings no scales (vLLM's `kv_cache_dtype: fp8`): right as long as keys and values lie between about 2^-6 and
448, since a float's relative precision does not depend on the scale; below, values are subnormal and lose bits.
Simulated on SmolLM2-135M: KL 0.006 either way.

`bf16-kvf8` is written for vLLM: a bfloat16 folder with both scales of every layer, rounded up to powers of two, which its
attention applies on a CPU too (v1/attention/backends/cpu_attn.py); its config alone makes the cache FP8. SmolLM2-135M there,
1,024 tokens in chunks of 16: KL 0.0210, with scales max|x| / 448 0.0247, with scales of 1 0.0205. Scales pay where keys or
values are beyond what 1 reaches.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from .affine import refuse_not_finite
from .artifact import base_folder, tokens_read
from .fake import Fake, Layered, Peaks, cache_peaks, largest, seen_cache
from .grids import LARGEST
from .kept import Kept, kept_beside, resumed
from .refusals import config, no_kernel, nothing_to_write
from .rescale import mapping_missing
from .schemes import scheme as named
from .training import Say, silent

NAME = "kv_fp8"
TARGET: Target = "kv_cache"
COST = "one forward pass of the calibration samples for the scales of keys and values"
LAYOUT = "e4m3"
WRITTEN = "bf16-kvf8"
CALIBRATION = 8
"""Calibration samples that the scales come from: a float's clipping is far away, so few will do."""
MISSING = {
    "torch": "transformers has no FP8 cache",
    "onnxruntime": "the CPU provider's GroupQueryAttention reads no FP8 cache",
    "onnxruntime-genai": "the CPU provider's GroupQueryAttention reads no FP8 cache",
    "openvino": "KV_CACHE_PRECISION takes no FP8 on a CPU",
    "llama.cpp": "it has no FP8 cache type",
    "vllm": "there an FP8 cache is in the folder, bf16-kvf8, or an option of the session, over any weights: bf16-kvf8-unit",
    "triton": "there an FP8 cache is an option of the session, over 16-bit or compressed weights: bf16-kvf8-unit",
}


def schemes() -> tuple[Scheme, ...]:
    return (named("fp32-kvf8"), named("fp32-kvf8-unit"), named(WRITTEN))


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    if (scheme.name, runtime) == (WRITTEN, "vllm"):
        return mapping_missing(config(model_folder))
    return no_kernel(NAME, scheme, schemes(), runtime, MISSING)


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None, say: Say = silent) -> tuple[str, ...]:  # fmt: skip
    if reason := refuse(model_folder, scheme, runtime):
        nothing_to_write(NAME, reason)
    from .formats import compressed

    tokens = calibration[:CALIBRATION]
    with base_folder(model_folder, runtime, out, base) as source, kept_beside(out, model_folder, tokens, NAME) as kept:
        known = resumed(len(kept), "tensors")
        found = peaks(model_folder, tokens, say, kept)
        compressed.scale_cache(source, out, *({layer: scale_of(peak) for layer, peak in side.items()} for side in found))
    return (f"FP8 cache: a scale of keys and one of values for every layer, from {tokens_read(tokens, calibration)}", *known)


def scale_of(peak: float) -> float:
    """The least power of two that clips nothing up to `peak`: a product with it is exact, and up to twice as much has room."""
    return float(2.0 ** math.ceil(math.log2(peak / LARGEST[LAYOUT])))


def peaks(model_folder: Path, tokens: NDArray[int64], say: Say = silent, kept: Kept | None = None) -> tuple[Peaks, Peaks]:
    """Largest |key| and |value| of every layer over tokens int64 [samples, length], layer by layer; 1 where all are zero.
    `kept`: what is found of each, and what an interrupted run had found."""
    import torch

    from .stream import layer_by_layer

    kept = {} if kept is None else kept
    layers = range(config(model_folder)["num_hidden_layers"])
    keys, values = ({layer: f"{side}.{layer}" for layer in layers} for side in ("keys", "values"))

    def watch(names: dict[int, str]) -> Layered:
        def see(layer: int, x: Any) -> Any:
            if names[layer] not in kept:
                refuse_not_finite(peak := largest(x), name=names[layer])
                kept[names[layer]] = {"peak": np.array([peak or 1.0])}
            return x

        return see

    if not all(name in kept for name in (*keys.values(), *values.values())):
        model = layer_by_layer(model_folder, say)
        with torch.no_grad():
            model.model(
                input_ids=torch.from_numpy(tokens), past_key_values=seen_cache(watch(keys), watch(values)), use_cache=True
            )

    def of(names: dict[int, str]) -> Peaks:
        return {layer: float(kept[name]["peak"][0]) for layer, name in names.items()}

    return of(keys), of(values)


def fake(model: Any, scheme: Scheme, calibration: NDArray[int64]) -> Fake:
    if scheme.name.endswith("-unit"):
        one: Layered = lambda _, x: rounded(x, LARGEST[LAYOUT])  # noqa: E731
        return Fake(model, keys=one, values=one)
    k_peaks, v_peaks = cache_peaks(model, calibration[:CALIBRATION])
    return Fake(model, keys=lambda i, k: rounded(k, k_peaks[i]), values=lambda i, v: rounded(v, v_peaks[i]))


def rounded(x: Any, peak: float) -> Any:
    """x in E4M3 with the scale at which `peak` is the largest value; beyond it is clipped."""
    from .grids import float8

    return float8(x, LAYOUT, peak=peak or 1.0)
