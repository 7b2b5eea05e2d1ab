"""4 or 8 bit per linear, by measured sensitivity (the idea of HAWQ, arXiv:1905.03696, with output errors for Hessians).

Sensitivity of a linear at b bits: |X (W - W_b)^T|^2 / |X W^T|^2 over one calibration pass, X its real inputs. Starting
from 4 bit everywhere, the linear that takes away most predicted error per added byte goes to 8 bit, until the sum falls
under TARGET_SHARE of where it began. lm_head is always 8 bit. Deterministic: no draw, ties by graph order.
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
TARGET_SHARE = 0.2
SAMPLES = 1
"""Calibration samples that sensitivities are measured on."""


@dataclass(frozen=True)
class Sensitivity:
    """Relative output error of one linear of the graph at 4 and at 8 bit, and its weights."""

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
          share: float = TARGET_SHARE) -> tuple[str, ...]:  # fmt: skip
    assert scheme.weights is not None
    assert scheme.weights.group_size is not None
    from .formats import onnx

    group = scheme.weights.group_size
    with base_folder(model_folder, runtime, out, base) as source:
        names = onnx.linear_names(source)
        measured = sensitivities(model_folder, calibration[:SAMPLES], group, names)
        wide = choose(measured, share)
        plan = {name: (8, group, True) if name in wide else (4, group, False) for name in names}
        plan["lm_head"] = (8, group, True)
        notes = write_onnx(
            source, scheme, calibration, out,
            lambda start, end: onnx.quantize_weights(start, end, plan, accuracy_level),
        )  # fmt: skip
    return (note(measured, wide, share), *notes)


def sensitivities(model_folder: Path, tokens: NDArray[int64], group: int, names: tuple[str, ...]) -> list[Sensitivity]:
    """One per linear of the graph, `lm_head` excepted; q, k and v count as one where the graph fuses them."""
    from .formats.onnx import onnx_linear
    from .observe import load, observe, weight

    model = load(model_folder)
    groups = {pair.targets[0]: pair.targets for pair in pairs(config(model_folder))}
    sums: dict[str, Floats] = {}
    sizes: dict[str, int] = {}

    def measure(name: str, x: Floats) -> None:
        for target in groups[name]:
            w, key = weight(model, target), onnx_linear(target, names)
            sums[key] = sums.get(key, np.zeros(3, np.float32)) + errors(x, w, group)
            sizes.setdefault(f"{key} {target}", w.size)

    observe(model, tokens, dict.fromkeys(groups, measure))
    total = {name: sum(size for key, size in sizes.items() if key.split()[0] == name) for name in sums}
    return [
        Sensitivity(name, float(sums[name][0] / sums[name][2]), float(sums[name][1] / sums[name][2]), total[name])
        for name in names
        if name in sums
    ]


def errors(x: Floats, w: Floats, group: int) -> Floats:
    """[squared output error at 4 bit, at 8 bit, squared output] of x: [T, K] through w: [N, K]."""
    found = []
    for bits, symmetric in ((4, False), (8, True)):
        difference = w - dequantize_groups(*quantize_groups(w, bits, group, symmetric), group)
        found.append(np.square(x @ difference.T).sum())
    return np.array([*found, np.square(x @ w.T).sum()], np.float32)


def choose(measured: list[Sensitivity], share: float) -> set[str]:
    """Names of the linears that go to 8 bit, so that the summed error is at most `share` of all-4-bit's."""
    total = sum(each.at4 for each in measured)
    wanted = share * total
    order = sorted(measured, key=lambda each: -(each.at4 - each.at8) / each.weights)
    wide: set[str] = set()
    for each in order:
        if total <= wanted:
            break
        total += each.at8 - each.at4
        wide.add(each.name)
    return wide


def note(measured: list[Sensitivity], wide: set[str], share: float) -> str:
    weights = sum(each.weights for each in measured)
    part = sum(each.weights for each in measured if each.name in wide) / weights
    listed = " ".join(sorted(name.removeprefix("model.layers.") for name in wide))
    counts = f"{len(wide)} of {len(measured)} linears, {part:.0%} of their weights"
    return f"8 bit: {counts} (error share {share:g}): {listed}"
