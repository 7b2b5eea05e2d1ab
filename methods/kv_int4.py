"""An INT4 key-value cache: one fixed scale per layer, head and channel, for keys and for values, from real prefills.

Half of `kv_int8`'s bytes, two codes in a byte, and a step 18 times as wide: fixed scales must cover whatever comes, and at 4
bits the quiet tokens pay for it (SmolLM2-135M, through ONNX Runtime: KL 0.34, INT8 0.0014). KIVI's ranges of small groups
are tighter (`kivi`), but no runtime here reads them in 4 bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from .artifact import write_cache
from .fake import Fake, Layered, Peaks, cache_peaks
from .refusals import not_offered
from .schemes import scheme as named
from .training import Say, silent

NAME = "kv_int4"
TARGET: Target = "kv_cache"
COST = "one forward pass of 32 calibration samples for the scales of keys and values"
BITS, TOP = 4, 7


def schemes() -> tuple[Scheme, ...]:
    return (named("fp32-kv4"),)


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    return not_offered(NAME, scheme, schemes(), runtime, ("onnxruntime",))


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None, say: Say = silent) -> tuple[str, ...]:  # fmt: skip
    """`base`: the folder that gets the cache, its weights in whatever format."""
    return write_cache(model_folder, scheme, runtime, calibration, out, base, say)


def fake(model: Any, scheme: Scheme, calibration: NDArray[int64]) -> Fake:
    """The artifact's fixed scales; where each token of a head has its own range (`-head`), that. Weights stay as they are."""
    assert scheme.keys is not None
    if scheme.keys.granularity == "token":
        from .grids import between

        each: Layered = lambda _, x: between(x, BITS, -1)  # noqa: E731
        return Fake(model, keys=each, values=each)
    keys, values = cache_peaks(model, calibration, pair_peaks, channel_peaks)
    return Fake(model, keys=on_grid(keys, TOP), values=on_grid(values, TOP))


def channel_peaks(x: Any) -> np.ndarray:
    """x: [1, heads, tokens, head_dim] -> max |x| [heads, head_dim]"""
    found: np.ndarray = x.abs().amax((0, 2)).numpy()
    return found


def pair_peaks(keys: Any) -> np.ndarray:
    """keys: [1, heads, tokens, head_dim] -> the largest norm of each channel's rotary pair [heads, head_dim], which no position
    changes (formats/onnx_cache.py). transformers pairs a channel with that half a head on."""
    first, second = keys.chunk(2, -1)
    return channel_peaks((first.square() + second.square()).sqrt().repeat(1, 1, 1, 2))


def on_grid(peaks: Peaks, top: int) -> Layered:
    """x: [1, heads, tokens, head_dim] on the codes -top - 1 .. top of fixed scales, peak / top."""
    import torch

    scales = {layer: torch.from_numpy(np.where(peak > 0, peak, 1) / np.float32(top))[:, None] for layer, peak in peaks.items()}
    return lambda layer, x: (x / scales[layer]).round().clamp(-top - 1, top) * scales[layer]
