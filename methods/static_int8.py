"""Static W8A8 by calibration alone: INT8 weights per channel, and one fixed INT8 range for every activation tensor.

    w8a8-static              the least and the largest value that calibration saw (min-max)
    w8a8-static-percentile   99.99 % of the values: 0.005 % are clipped on each side
    w8a8-static-entropy      the symmetric range of least KL between the histogram and its 8-bit form
    w8a8-static-mse          the range with the least mean square rounding error
    w8a8-static-npu          min-max for what every operator writes too: integers between all of them, as NPUs take a graph

OpenVINO and ONNX Runtime get the same ranges and integers: as FakeQuantize, and as QuantizeLinear and DequantizeLinear (QDQ).

On SmolLM2-135M (simulated, 1,024 evaluation tokens) the KL is 0.72 with min-max from 8 samples, and 0.52 by least squares
from 32. Massive activations, one value in a million and a hundred times the others, decide it: judged on a sample without
them, least squares cut 3,475 to 6 and left a KL of 8.1. An outlier channel takes the resolution from all others: with
min-max the KL is ten times that of `smoothquant`, which moves such channels into the weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import gcd
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from .affine import Floats, affine_grid, quantize
from .artifact import base_folder
from .clipping import Clip, limits
from .fake import Fake
from .kept import Arrays, Kept, kept_beside, resumed
from .refusals import config, not_offered
from .rescale import mapping_missing, pairs
from .schemes import scheme as scheme_named
from .training import Say, silent

NAME = "static_int8"
TARGET: Target = "activations"
RUNTIMES = ("openvino", "onnxruntime")
NPU = "w8a8-static-npu"
COST = "one forward pass of the calibration samples for the ranges, and one pass over the weights"
CLIPPED_SAMPLES = 32
"""Calibration samples on which clipping is judged, on about KEPT_VALUES values of each tensor and batch of eight."""
KEPT_VALUES = 1 << 13
WORDS: dict[Clip, str] = {
    "minmax": "the extremes", "percentile": "99.99 %", "entropy": "the least divergence", "mse": "the least mean square error",
}  # fmt: skip
INTEGERS = "integers between all operators but attention; the residual stream and the weights of norms in 16 bit"

LOUDEST = 1 << 10
"""Of each batch: kept whole."""


class Sample(NamedTuple):
    """`values` float32 [n], and how many each stands for, int64 [n]."""

    values: Floats
    counts: NDArray[int64]


class Seen(NamedTuple):
    """Of a tensor that linears read: its least and its largest value, zero among them, and what clipping is judged on."""

    low: float
    high: float
    parts: list[Sample]


Range = tuple[tuple[str, ...], float, float]
"""(linears that read one tensor, low, high)"""


def schemes() -> tuple[Scheme, ...]:
    clipped = (scheme_named("w8a8-static" if clip == "minmax" else f"w8a8-static-{clip}") for clip in WORDS)
    return (*clipped, scheme_named(NPU))


def clip_of(scheme: Scheme) -> Clip:
    return next((clip for clip in WORDS if scheme.name.endswith(f"-{clip}")), "minmax")


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    refused = not_offered(NAME, scheme, schemes(), runtime, RUNTIMES) or not_for_npus(scheme, runtime)
    return refused or mapping_missing(config(model_folder))


def not_for_npus(scheme: Scheme, runtime: str) -> str | None:
    """Why a runtime gets no integers between operators; None where it does, or the scheme has none."""
    if scheme.name != NPU or runtime == "onnxruntime":
        return None
    return f"{scheme.name} is written as QDQ, for an NPU, and read by onnxruntime: {runtime} reads no such graph"


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None, say: Say = silent) -> tuple[str, ...]:  # fmt: skip
    from .observe import samples_read
    from .stream import layer_by_layer

    clip = clip_of(scheme)
    note = f"static activation ranges: {WORDS[clip]} of {calibration.size} calibration tokens"
    with (
        base_folder(model_folder, runtime, out, base) as source,
        kept_beside(out, model_folder, calibration, f"{NAME} {scheme.name}") as kept,
    ):
        if scheme.name == NPU:
            from .formats import onnx

            known = resumed(samples_read(kept), "samples")
            onnx.quantize_integer_w8a8(source, out, calibration, say=say, kept=kept)
            return (INTEGERS, note, *known)
        known = resumed(len(kept), "tensors")
        found = ranges(layer_by_layer(model_folder, say), calibration, clip, kept)
        if runtime == "openvino":
            from .formats import openvino

            openvino.quantize_w8a8(source, out, [openvino.Input(*each) for each in found])
        else:
            from .formats import onnx

            onnx.quantize_static_w8a8(source, out, found)
    return (note, *known)


def ranges(model: Any, calibration: NDArray[int64], clip: Clip = "minmax", kept: Kept | None = None) -> list[Range]:
    """The range of every tensor that linears read, over calibration int64 [samples, length]; clipped ranges never go
    beyond the extremes. `kept`: what is found of each, and what an interrupted run had found."""
    from .observe import SAMPLES, gather

    kept = {} if kept is None else kept
    groups = {pair.targets[0]: pair.targets for pair in pairs(model.config.to_dict())}
    sampled = 0 if clip == "minmax" else CLIPPED_SAMPLES // SAMPLES

    def widen(before: Seen | None, x: Floats) -> Seen:
        low, high, parts = before or Seen(0.0, 0.0, [])
        if len(parts) < sampled:
            parts.append(sample_of(x))
        return Seen(min(low, float(np.min(x))), max(high, float(np.max(x))), parts)

    def settle(_: str, seen: Seen) -> Arrays:
        low, high, parts = seen
        if parts:
            x, counts = map(np.concatenate, zip(*parts, strict=True))
            a, b = limits(x, clip, counts=counts)
            low, high = max(low, a), min(high, b)
        return {"range": np.array([low, high])}

    gather(model, calibration, groups, widen, settle, kept)
    found = {name: kept[name]["range"] for name in groups}
    return [(readers, float(found[name][0]), float(found[name][1])) for name, readers in groups.items()]


def sample_of(x: Floats) -> Sample:
    """x: [tokens, K] -> its LOUDEST values, and each `step`th of the rest, which stands for all between. On a language model
    a handful of values are a hundred times the others and matter most: a sample that misses them is of another tensor."""
    flat = x.reshape(-1)
    loud = np.argpartition(np.abs(flat), -LOUDEST)[-LOUDEST:] if flat.size > LOUDEST else np.arange(flat.size)
    rest = np.delete(flat, loud)
    step = stride(flat.size, x.shape[-1])
    quiet = rest[::step]
    counts = np.full(quiet.size, step)
    if quiet.size:
        counts[-1] = rest.size - step * (quiet.size - 1)
    return Sample(np.concatenate([flat[loud], quiet]), np.concatenate([np.ones(loud.size, np.int64), counts]))


def stride(size: int, channels: int) -> int:
    """Between the values that are kept; it shares no factor with `channels`, else the same few are met again and again."""
    step = max(1, size // KEPT_VALUES)
    while gcd(step, channels) > 1:
        step += 1
    return step


def fake(model: Any, scheme: Scheme, calibration: NDArray[int64]) -> Fake:
    return on_ranges(model, ranges(model, calibration, clip_of(scheme)))


def on_ranges(model: Any, found: Iterable[Range]) -> Fake:
    """Every linear with INT8 weights per channel and INT8 inputs in its range."""
    import torch

    from .grids import symmetric

    grids = {name: affine_grid(np.float32(low), np.float32(high), 0, 255)  # type: ignore[arg-type]  # scalars broadcast
             for readers, low, high in found for name in readers}  # fmt: skip

    def rounded(name: str, x: Any) -> Any:
        scale, zero = grids[name]
        codes = quantize(x.numpy(), scale, zero, 0, 255)
        return torch.from_numpy((codes - zero).astype(np.float32) * scale)

    return Fake(model, weight=lambda _, w: symmetric(w, 8), inputs=rounded)
