"""An FP8 cache (E4M3): one fixed scale per layer for keys and one for values, calibrated, or 1.0.

`kvf8`: S = max|x| / 448 over calibration, so that nothing is clipped. `kvf8-unit`: S = 1, what servers take where a
checkpoint brings no scales (vLLM's `kv_cache_dtype: fp8`): right as long as keys and values lie between about 2^-6 and
448, since a float's relative precision does not depend on the scale; below, values are subnormal and lose bits.
Simulated on SmolLM2-135M: KL 0.006 either way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from .fake import Fake, Layered, cache_peaks
from .refusals import no_kernel, nothing_to_write
from .schemes import scheme as named

NAME = "kv_fp8"
TARGET: Target = "kv_cache"
COST = "one forward pass of the calibration samples for the scales of keys and values"
LAYOUT = "e4m3"
CALIBRATION = 8
"""Calibration samples that the scales come from: a float's clipping is far away, so few will do."""
MISSING = {
    "torch": "transformers has no FP8 cache",
    "onnxruntime": "the CPU provider's GroupQueryAttention reads no FP8 cache",
    "onnxruntime-genai": "the CPU provider's GroupQueryAttention reads no FP8 cache",
    "openvino": "KV_CACHE_PRECISION takes no FP8 on a CPU",
    "llama.cpp": "it has no FP8 cache type",
    "vllm": "there an FP8 cache is an option of the session, over 16-bit or compressed weights: bf16-kvf8-unit",
    "triton": "there an FP8 cache is an option of the session, over 16-bit or compressed weights: bf16-kvf8-unit",
}


def schemes() -> tuple[Scheme, ...]:
    return (named("fp32-kvf8"), named("fp32-kvf8-unit"))


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    return no_kernel(NAME, scheme, schemes(), runtime, MISSING)


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None) -> NoReturn:  # fmt: skip
    nothing_to_write(NAME, refuse(model_folder, scheme, runtime))


def fake(model: Any, scheme: Scheme, calibration: NDArray[int64]) -> Fake:
    from .grids import LARGEST

    if scheme.name.endswith("-unit"):
        one: Layered = lambda _, x: rounded(x, LARGEST[LAYOUT])  # noqa: E731
        return Fake(model, keys=one, values=one)
    k_peaks, v_peaks = cache_peaks(model, calibration[:CALIBRATION])
    return Fake(model, keys=lambda i, k: rounded(k, k_peaks[i]), values=lambda i, v: rounded(v, v_peaks[i]))


def rounded(x: Any, peak: float) -> Any:
    """x in E4M3 with the scale at which `peak` is the largest value; beyond it is clipped."""
    from .grids import float8

    return float8(x, LAYOUT, peak=peak or 1.0)
