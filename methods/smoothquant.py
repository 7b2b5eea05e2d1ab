"""SmoothQuant (arXiv:2211.10438): move the activations' outlier channels into the weights, then round both to INT8.

For the tensor between a source and the linears that read it,  s_j = max|X_j|^a / max|W_j|^(1 - a)  with the weights'
maximum over all readers; X / s is folded into the source and W * s into the readers. The exponent a is chosen per
tensor, from GRID and from "leave it", by the readers' output error under the very rounding that will run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme
from quantadvisor.kernels.saturation import most_exact

from .affine import Floats, fake_activations, fake_tokens, quantize_channels
from .artifact import base_folder, tokens_read
from .kept import Arrays, Kept, kept_beside, resumed
from .refusals import COMPRESSED, ONNX, compute_mismatch, config, not_offered
from .rescale import Pair, Scale, mapping_missing, pairs
from .schemes import named
from .schemes import scheme as scheme_named
from .static_int8 import INTEGERS, NPU, not_for_npus
from .training import Say, silent

NAME = "smoothquant"
TARGET: Target = "activations"
COST = "one forward pass of the calibration samples, an exponent searched for every tensor, and one pass over the weights"
RUNTIMES = (*ONNX, "openvino", *COMPRESSED)
STATIC = ("onnxruntime", "openvino")
"""Runtimes that get fixed ranges."""
GRID = (0.5, 0.65, 0.8, 0.9)
SEARCH_TOKENS = 128
"""Tokens of the first calibration sample that the search measures errors on."""
SEARCH_ROWS = 4
"""The search measures the errors of every fourth output channel: rounding is per channel, so they stand for all."""
RANGE_SAMPLES = {"token": 16, "tensor": 32}
"""Calibration samples that the search takes channel maxima from, where activations have a scale per token or one in all. Mean
simulated KL on SmolLM2-135M, 2,048 tokens, from 32, 16, 8 and 4 samples of 128 tokens, three draws of each: w8a8 0.0112,
0.0095, 0.0098 and 0.0101, w8a8-tensor 0.055, 0.065, 0.077 and 0.086. The pass is nine tenths of the time. Static ranges come
from all samples: the KL of w8a8-static is 0.046 from 32 samples, 0.041 from 64, 0.032 from 128."""

Round = Callable[[Floats], Floats]


def schemes() -> tuple[Scheme, ...]:
    return (*named("w8a8", "w7a8", "w8a8-tensor"), *map(scheme_named, ("w8a8-static", NPU, "w8a8-bf16")))


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    if refused := not_offered(NAME, scheme, schemes(), runtime, RUNTIMES):
        return refused
    static = scheme.activations is not None and not scheme.activations.dynamic
    if runtime == "openvino" and not static:
        return f"activation ranges in its graphs are fixed: w8a8-static instead of {scheme.name}"
    if static and runtime not in STATIC:
        return f"what it writes for {runtime} rounds activations at run time: w8a8 or w8a8-tensor instead of {scheme.name}"
    return not_for_npus(scheme, runtime) or compute_mismatch(scheme, runtime) or mapping_missing(config(model_folder))


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None, linear: bool = True, say: Say = silent) -> tuple[str, ...]:  # fmt: skip
    """`linear`: also smooth the inputs of o_proj and down_proj, through v_proj and up_proj."""
    from .observe import SEEN, samples_read

    assert scheme.weights is not None and scheme.activations is not None
    static = not scheme.activations.dynamic
    bits = most_exact().bit_length() + 1 if static else int(scheme.weights.bits)
    granularity = scheme.activations.granularity
    per_token = granularity == "token"
    seen = calibration if static else calibration[: RANGE_SAMPLES[granularity]]
    settings = f"{NAME} {scheme.name}, {bits} bits, linear: {linear}"
    with (
        base_folder(model_folder, runtime, out, base) as source,
        kept_beside(out, model_folder, seen, settings) as kept,
    ):
        known = (*resumed(len(kept.keys() - {SEEN}), "tensors"), *resumed(samples_read(kept), "samples"))
        found = search(model_folder, seen, fake_tokens if per_token else fake_activations, linear, bits, say, kept)
        note = f"{found.note}; channel maxima of {tokens_read(seen, calibration)}"
        ranged = (found.note, f"static activation ranges: the extremes of {seen.size} calibration tokens", *known)
        if runtime in COMPRESSED:
            from .formats import compressed

            compressed.quantize_w8a8(source, out, found.scales)
            return (note, *known)
        if runtime not in ONNX:
            from .formats import openvino

            openvino.quantize_w8a8(source, out, [openvino.Input(*each) for each in found.inputs], found.scales)
            return ranged
        from .formats import onnx

        factors = onnx.rescaled(source, found.scales, config(model_folder))
        if scheme.name == NPU:
            onnx.quantize_integer_w8a8(source, out, seen, factors, say, kept)
            return (*ranged, INTEGERS)
        if static:
            onnx.quantize_static_w8a8(source, out, found.inputs, factors)
            return ranged
        onnx.quantize_dynamic_w8a8(source, out, factors, per_token, bits=bits)
        return (note, *known)


class Found(NamedTuple):
    """Scales of the pairs that gain from one; (linears, lowest, highest) of every input after the move; and a note."""

    scales: list[tuple[Pair, Scale]]
    inputs: list[tuple[tuple[str, ...], float, float]]
    note: str


def smoothing(x_bound: Floats, w_bound: Floats, alpha: float) -> Scale:
    """s = max|X|^a / max|W|^(1 - a), each bound clamped at 1e-5."""
    x_bound, w_bound = np.maximum(x_bound, 1e-5), np.maximum(w_bound, 1e-5)
    scale: Scale = np.maximum(x_bound**alpha / w_bound ** (1 - alpha), 1e-5).astype(np.float32)
    return scale


class Seen(NamedTuple):
    """Of a tensor that linears read: the least and the largest value of every channel, zero among them, each [K], and the inputs
    that the search measures errors on [T, K]."""

    low: Floats
    high: Floats
    judged: Floats


def search(model_folder: Path, calibration: NDArray[int64], rounding: Round, linear: bool, bits: int = 8,
           say: Say = silent, kept: Kept | None = None) -> Found:  # fmt: skip
    """The scale of every pair, by the output error of its readers with weights of so many bits; `inputs` covers the pairs'
    readers. `kept`: what is found of each, and what an interrupted run had found."""
    from .observe import gather, weight
    from .stream import layer_by_layer

    kept = {} if kept is None else kept
    model = layer_by_layer(model_folder, say)
    every = {pair.targets[0]: pair for pair in pairs(config(model_folder))}
    movable = {pair.targets[0] for pair in pairs(config(model_folder), linear)}
    judged = min(SEARCH_TOKENS, calibration.shape[1])

    def widen(before: Seen | None, x: Floats) -> Seen:
        zero = np.zeros(1, np.float32)
        low, high, sample = before or (zero, zero, x[:judged].copy())
        return Seen(np.minimum(low, x.min(axis=0)), np.maximum(high, x.max(axis=0)), sample)

    def choose(name: str, seen: Seen) -> Arrays:
        found: Arrays = {"low": seen.low, "high": seen.high}
        if name not in movable:
            return found
        weights = [weight(model, target) for target in every[name].targets]
        bounds = np.maximum(-seen.low, seen.high), np.max([np.abs(w).max(axis=0) for w in weights], axis=0)
        alpha, scale = best(every[name], seen.judged, bounds, [w[::SEARCH_ROWS] for w in weights], rounding, bits)
        return found if scale is None else found | {"alpha": np.array([alpha]), "scale": scale}

    gather(model, calibration, every, widen, choose, kept)
    found = {name: kept[name] for name in every}
    scales = [(pair, found[name]["scale"]) for name, pair in every.items() if "scale" in found[name]]
    inputs = []
    for name, pair in every.items():
        wide = pair.spread(found[name]["scale"]) if "scale" in found[name] else np.float32(1)
        inputs.append((pair.targets, float((found[name]["low"] / wide).min()), float((found[name]["high"] / wide).max())))
    alphas = [float(found[name]["alpha"][0]) if "alpha" in found[name] else None for name in every if name in movable]
    return Found(scales, inputs, summary(alphas))


def best(pair: Pair, x: Floats, bounds: tuple[Floats, Floats], weights: list[Floats],
         rounding: Round, bits: int = 8) -> tuple[float | None, Scale | None]:  # fmt: skip
    """(exponent, scale) of least output error; (None, None) when no scale beats leaving the tensor as it is.

    `bounds`: max|X_j| and max|W_j|, each [K]. `weights`: rows [N, K] of the readers that the error is measured on.
    """
    x_bound, w_bound = map(pair.gather, bounds)
    exact = [x @ w.T for w in weights]
    least = output_error(x, weights, exact, rounding, bits)
    found: tuple[float | None, Scale | None] = (None, None)
    for alpha in GRID:
        scale = smoothing(x_bound, w_bound, alpha)
        wide = pair.spread(scale)
        error = output_error(x / wide, [w * wide for w in weights], exact, rounding, bits)
        if error < least:
            least, found = error, (alpha, scale)
    return found


def output_error(x: Floats, weights: list[Floats], exact: list[Floats], rounding: Round, bits: int) -> float:
    """Sum over readers of |Q(x) Q(w)^T - exact|^2 / |exact|^2; weights rounded per channel. A reader that
    writes zeros whatever it reads has no say."""
    rounded, total = rounding(x), 0.0
    for w, y in zip(weights, exact, strict=True):
        codes, scale = quantize_channels(w, 2 ** (bits - 1) - 1)
        if size := float(np.square(y).sum()):
            total += float(np.square(rounded @ (codes * scale[:, None]).T - y).sum()) / size
    return total


def summary(alphas: list[float | None]) -> str:
    counts = {str(alpha or "left alone"): alphas.count(alpha) for alpha in (*GRID, None)}
    return "SmoothQuant exponents, tensors each: " + ", ".join(f"{key}: {n}" for key, n in counts.items() if n)
