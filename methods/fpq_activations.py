"""LLM-FP4 / FPQ (arXiv:2310.16836) with activations: 4- and 8-bit floats whose exponent bias is real and searched.

Activations differ most between channels, but a product can scale only by output channel and by token. So each channel's
bias is that of the tensor plus an integer in 0..2^E - 1 (the pre-shifted exponent bias), and 2^shift moves into the
exponents of the weights: b'_j = clamp(round(b_j), round(b_t), round(b_t) + 2^E - 1) - round(b_t) + b_t, b_t = min_j b_j.
Weights have one real bias per output channel.

For each linear the format (how many of the bits are exponent) and the factor on the largest values are searched, weights
and activations in turn, for the least squared error of the layer's output on calibration tokens (Algorithm 1). Here
FACTORS are tried on the largest value itself, once each for weights and for activations, from ROWS of the outputs.

Simulated on SmolLM2-135M, KL with formats searched: W4A4 min-max 5.9, with shifts 2.5, with factors too 2.7; W4A8 0.92, 1.2,
1.4. The shifts are what helps at 4 bits. At 8 they hurt: a rounded bias clips up to 0.7 of a channel's largest value, and
the few huge values that attention rests on must not be clipped where everything else is fine. Three rounds of weights and
activations in turn, each under the other's rounding, with factors up to 1.4, left W4A4 a KL of 4.6 where one leaves 2.3: every
layer's error is less, by outputs that shrink, and that adds up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from .fake import Fake, linears
from .refusals import no_kernel, nothing_to_write
from .schemes import scheme as named

NAME = "fpq_activations"
TARGET: Target = "activations"
COST = "one forward pass of the calibration samples; formats and shifts of every linear searched on 64 tokens of them"
FORMATS = {4: ((3, 0), (2, 1), (1, 2)), 8: ((5, 2), (4, 3), (3, 4), (2, 5), (1, 6))}
"""Bits -> (exponent, mantissa) of the formats that are searched; a sign takes the last bit."""
FACTORS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
TOKENS, ROWS = 64, 96
"""Tokens of the calibration, and output channels, that a search measures errors on; bounds are of all tokens."""
GOLDEN = 0.6180339887498949
REASON = "a real exponent bias per channel is no operand of any kernel here; OCP's fixed-bias FP4 would be another format"
MISSING = dict.fromkeys(("torch", "onnxruntime", "onnxruntime-genai", "openvino", "llama.cpp"), REASON)


class Choice(NamedTuple):
    """One linear's formats and bounds: weights' largest values [N, 1], the activation tensor's, and shifts [K]."""

    weight_format: tuple[int, int]
    weight_bound: Any
    input_format: tuple[int, int]
    input_bound: float
    shifts: Any


def schemes() -> tuple[Scheme, ...]:
    return tuple(named(name) for name in ("w4a4-fp", "w4a8-fp", "w4a4-fp-minmax", "w4a8-fp-minmax"))


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    return no_kernel(NAME, scheme, schemes(), runtime, MISSING)


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None) -> NoReturn:  # fmt: skip
    nothing_to_write(NAME, refuse(model_folder, scheme, runtime))


def fake(model: Any, scheme: Scheme, calibration: NDArray[int64]) -> Fake:
    import torch

    assert scheme.weights is not None
    assert scheme.activations is not None

    def run() -> None:
        for sample in calibration:
            model(torch.from_numpy(sample)[None], use_cache=False, logits_to_keep=1)

    bits, plain = (int(scheme.weights.bits), int(scheme.activations.bits)), scheme.name.endswith("-minmax")
    return searched(model, bits, run, factors=(1.0,) if plain else FACTORS, shifted=not plain)


def searched(model: Any, bits: tuple[int, int], run: Callable[[], None], factors: tuple[float, ...] = FACTORS,
             shifted: bool = True) -> Fake:  # fmt: skip
    """The fake of any torch model, with every linear's formats and bounds searched on what it reads while `run` runs.

    `bits`: of weights, of activations. `factors` (1,) and `shifted` False: min-max, no shifts.
    """
    from .grids import minifloat

    layers = linears(model)
    seen, peaks = observed(layers, run)
    found: Mapping[str, Choice] = {
        name: search(layer.weight.data, seen[name], peaks[name], bits, factors, shifted) for name, layer in layers.items()
    }
    return Fake(
        model,
        weight=lambda name, w: minifloat(w, *found[name].weight_format, found[name].weight_bound),
        inputs=lambda name, x: shifted_float(x, found[name].input_format, found[name].input_bound, found[name].shifts),
    )


def places(tokens: int) -> NDArray[int64]:
    """TOKENS of so many, in order, or all: those where multiples of the golden ratio lie lowest between integers. They are evenly
    spread at no even step, which could fall on the same place of every sample; of more tokens, some are the same."""
    heights = (np.arange(tokens) + 0.5) * GOLDEN % 1
    return np.sort(np.argsort(heights, kind="stable")[:TOKENS])


def observed(layers: Mapping[str, Any], run: Callable[[], None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(inputs [T, K] at the `places` of all forward passes together, largest values [K] of all) of every linear."""
    import torch

    seen: dict[str, Any] = {}
    counts = dict.fromkeys(layers, 0)
    peaks: dict[str, Any] = {}

    def watch(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def hook(_: Any, args: tuple[Any, ...]) -> None:
            rows = args[0].detach().flatten(0, -2)
            bound = rows.abs().amax(0)
            peaks[name] = torch.maximum(peaks[name], bound) if name in peaks else bound
            start = counts[name]
            counts[name] += len(rows)
            had, now = places(start), places(counts[name])
            new = rows[now[now >= start] - start]
            seen[name] = torch.cat([seen[name][np.isin(had, now)], new]) if name in seen else new

        return hook

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return seen, peaks


def search(w: Any, x: Any, peaks: Any, bits: tuple[int, int], factors: tuple[float, ...], shifted: bool) -> Choice:
    """The best choice for w: [N, K] with inputs x: [T, K] whose channels reach `peaks`: weights first, then activations."""
    import torch

    from .grids import minifloat

    part = w[:: max(1, len(w) // ROWS)]
    exact = x @ part.T
    best = (float("inf"), FORMATS[bits[0]][0], 1.0)
    for layout in FORMATS[bits[0]]:
        for factor in factors:
            rounded = minifloat(part, *layout, part.abs().amax(1, keepdim=True) * factor)
            best = min(best, (float((x @ rounded.T - exact).square().sum()), layout, factor))
    _, w_layout, w_factor = best
    rounded = minifloat(part, *w_layout, part.abs().amax(1, keepdim=True) * w_factor)
    best = (float("inf"), FORMATS[bits[1]][0], 1.0)
    for layout in FORMATS[bits[1]]:
        for factor in factors:
            bound = float(peaks.max()) * factor
            shifts = shifts_of(peaks * factor, layout) if shifted else torch.zeros(len(peaks))
            y = shifted_float(x, layout, bound, shifts) @ rounded.T
            best = min(best, (float((y - exact).square().sum()), layout, factor))
    _, a_layout, a_factor = best
    shifts = shifts_of(peaks * a_factor, a_layout) if shifted else torch.zeros(len(peaks))
    return Choice(w_layout, w.abs().amax(1, keepdim=True) * w_factor, a_layout, float(peaks.max()) * a_factor, shifts)


def shifts_of(peaks: Any, layout: tuple[int, int]) -> Any:
    """Integers 0..2^E - 1 by which each channel's exponent bias is above the tensor's; peaks: largest values [K]."""
    from .grids import LEAST, exponent_bias

    biases = exponent_bias(peaks.clamp(min=LEAST), *layout).round()
    return (biases - biases.min()).clamp(0, 2 ** layout[0] - 1)


def shifted_float(x: Any, layout: tuple[int, int], largest: float, shifts: Any) -> Any:
    """x: [..., K] on the grid whose largest value is `largest`, in channel j over 2^shift_j."""
    import torch

    from .grids import minifloat

    factor = torch.exp2(shifts)
    return minifloat(x * factor, *layout, largest) / factor
