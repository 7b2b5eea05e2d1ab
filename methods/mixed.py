"""4 or 8 bit per linear, by measured sensitivity: what rounding each one costs in KL, then greedy by cost per byte.

To second order, a change dY of a linear's output costs  KL = 1/2 E[(g . dY)^2],  g being the gradient of log p(y) with y
drawn from the model itself: the Fisher information, as SqueezeLLM uses it (arXiv:2306.07629), kept per token instead of
per weight. dY = X (W - W_b)^T is exact for the real inputs X. Starting from 4 bit everywhere, the linear that takes away
most predicted KL per added byte goes to 8 bit, until the predicted sum is at most TARGET_KL. lm_head is always 8 bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from .affine import Floats, dequantize_groups, quantize_groups
from .artifact import base_folder, write_onnx
from .refusals import ONNX, config, not_offered
from .rescale import mapping_missing, pairs
from .schemes import named

NAME = "mixed"
TARGET: Target = "weights"
COST = "gradients of the calibration samples, each linear rounded twice to be judged, then one pass over the weights"
TARGET_KL = 0.015
"""Nats a token, predicted. What is measured lies higher (SmolLM2-135M, rescaled off its grid): 0.42 for 0.29, 0.17 for
0.10, 0.10 for 0.05 and 0.080 for 0.035 in groups of 32, 0.029 for 0.015 in groups of 64. The sum leaves out how one
linear's errors at different tokens add up, what lm_head and rounded activations cost, and that greedy choice favours
linears whose cost came out too low."""
TOKENS = 256
"""Tokens of the first calibration sample that sensitivities are measured on."""


@dataclass(frozen=True)
class Sensitivity:
    """Predicted KL of rounding one linear of the graph to 4 and to 8 bit, and its weights."""

    name: str
    at4: float
    at8: float
    weights: int


def schemes() -> tuple[Scheme, ...]:
    return named("w4w8-g32", "w4w8-g64")


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    if refused := not_offered(NAME, scheme, schemes(), runtime, ONNX):
        return refused
    return mapping_missing(config(model_folder))


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None, accuracy_level: int = 4,
          target: float = TARGET_KL) -> tuple[str, ...]:  # fmt: skip
    assert scheme.weights is not None
    assert scheme.weights.group_size is not None
    from .formats import onnx

    group = scheme.weights.group_size
    with base_folder(model_folder, runtime, out, base) as source:
        names = onnx.linear_names(source)
        measured = sensitivities(model_folder, calibration[:1, :TOKENS], group, names)
        wide = choose(measured, target)
        plan = {name: (8, group, True) if name in wide else (4, group, False) for name in names}
        plan["lm_head"] = (8, group, True)
        notes = write_onnx(
            source, scheme, calibration, out,
            lambda start, end: onnx.quantize_weights(start, end, plan, accuracy_level),
        )  # fmt: skip
    return (note(measured, wide), *notes)


def sensitivities(model_folder: Path, tokens: NDArray[int64], group: int, names: tuple[str, ...]) -> list[Sensitivity]:
    """One per linear of the graph, `lm_head` excepted; q, k and v count as one where the graph fuses them."""
    from .formats.onnx import onnx_linear
    from .observe import load, observe_gradients, weight

    model = load(model_folder)
    found: dict[str, list[float]] = {name: [0.0, 0.0, 0.0] for name in names}

    def measure(name: str, x: Floats, gradient: Floats) -> None:
        w = weight(model, name)
        costs = [predicted_kl(x, w, gradient, group, *form) / len(tokens) for form in ((4, False), (8, True))]
        entry = found[onnx_linear(name, names)]
        found[onnx_linear(name, names)] = [old + new for old, new in zip(entry, (*costs, w.size / len(tokens)), strict=True)]

    targets = [target for pair in pairs(config(model_folder)) for target in pair.targets]
    observe_gradients(model, tokens, dict.fromkeys(targets, measure))
    return [Sensitivity(name, at4, at8, int(size)) for name, (at4, at8, size) in found.items() if size]


def predicted_kl(x: Floats, w: Floats, gradient: Floats, group: int, bits: int, symmetric: bool) -> float:
    """1/2 mean over tokens of (g . dY)^2, in nats, for w: [N, K] rounded to `bits`; x: [T, K], gradient: [T, N]."""
    difference = w - dequantize_groups(*quantize_groups(w, bits, group, symmetric), group)
    along = np.einsum("tn,tn->t", x @ difference.T, gradient)
    return float(np.square(along).mean()) / 2


def choose(measured: list[Sensitivity], target: float) -> set[str]:
    """Names of the linears that go to 8 bit, so that the summed KL is at most `target`; ties by graph order."""
    total = sum(each.at4 for each in measured)
    order = sorted(measured, key=lambda each: -(each.at4 - each.at8) / each.weights)
    wide: set[str] = set()
    for each in order:
        if total <= target:
            break
        total += each.at8 - each.at4
        wide.add(each.name)
    return wide


def note(measured: list[Sensitivity], wide: set[str]) -> str:
    weights = sum(each.weights for each in measured)
    part = sum(each.weights for each in measured if each.name in wide) / weights
    kl = sum(each.at8 if each.name in wide else each.at4 for each in measured)
    counts = f"{len(wide)} of {len(measured)} linears, {part:.0%} of their weights, predicted KL {kl:.3f}"
    return f"8 bit: {counts}: " + " ".join(sorted(name.removeprefix("model.layers.") for name in wide))
