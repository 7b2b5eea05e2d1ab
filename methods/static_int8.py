"""Static W8A8 by calibration alone: INT8 weights per channel, and one fixed INT8 range for every activation tensor.

    w8a8-static              the least and the largest value that calibration saw (min-max)
    w8a8-static-percentile   99.99 % of the values: 0.005 % are clipped on each side
    w8a8-static-entropy      the symmetric range of least KL between the histogram and its 8-bit form

On SmolLM2-135M clipping makes it worse: KL 0.72 with min-max (simulated, 4,096 calibration tokens), 1.13 by percentile,
1.31 by entropy: what is cut off is rare, not unimportant. An outlier channel takes the resolution from all others: with min-max
the KL is ten times that of `smoothquant`, which moves such channels into the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from . import ranges as statistics
from .affine import Floats, affine_grid, quantize
from .artifact import base_folder
from .fake import Fake
from .refusals import config, not_offered
from .rescale import mapping_missing, pairs
from .schemes import scheme as scheme_named

NAME = "static_int8"
TARGET: Target = "activations"
HISTOGRAM_SAMPLES = 32
"""Calibration samples that histograms are made of."""
WORDS = {"": "the extremes", "-percentile": f"{statistics.PERCENTILE} %", "-entropy": "the least entropy"}

Range = tuple[tuple[str, ...], float, float]
"""(linears that read one tensor, low, high)"""


def schemes() -> tuple[Scheme, ...]:
    return tuple(scheme_named(f"w8a8-static{kind}") for kind in WORDS)


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    return not_offered(NAME, scheme, schemes(), runtime, ("openvino",)) or mapping_missing(config(model_folder))


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None) -> tuple[str, ...]:  # fmt: skip
    from .formats import openvino
    from .observe import load

    kind = scheme.name.removeprefix("w8a8-static")
    with base_folder(model_folder, runtime, out, base) as source:
        found = ranges(load(model_folder), calibration, kind)
        openvino.quantize_w8a8(source, out, [openvino.Input(*each) for each in found])
    return (f"static activation ranges: {WORDS[kind]} of {calibration.size} calibration tokens",)


def ranges(model: Any, calibration: NDArray[int64], kind: str = "") -> list[Range]:
    """The range of every tensor that linears read, over calibration int64 [samples, length], by one of WORDS."""
    from .observe import observe

    groups = {pair.targets[0]: pair.targets for pair in pairs(model.config.to_dict())}
    low, high = dict.fromkeys(groups, 0.0), dict.fromkeys(groups, 0.0)

    def widen(name: str, x: Floats) -> None:
        low[name] = min(low[name], float(np.min(x)))
        high[name] = max(high[name], float(np.max(x)))

    observe(model, calibration, dict.fromkeys(groups, widen))
    extremes = {name: (low[name], high[name]) for name in groups}
    found = clipped(model, calibration[:HISTOGRAM_SAMPLES], extremes, kind) if kind else extremes
    return [(readers, *found[name]) for name, readers in groups.items()]


def clipped(
    model: Any, calibration: NDArray[int64], extremes: dict[str, tuple[float, float]], kind: str
) -> dict[str, tuple[float, float]]:
    """Narrower ranges by percentile or entropy, never beyond the extremes."""
    from .observe import observe

    counts = {name: np.zeros(statistics.BINS, np.int64) for name in extremes}

    def count(name: str, x: Floats) -> None:
        edge = edge_of(extremes[name])
        counts[name] += np.histogram(x, statistics.BINS, (-edge, edge))[0]

    observe(model, calibration, dict.fromkeys(extremes, count))
    choose = statistics.percentile_range if kind == "-percentile" else statistics.entropy_range
    chosen = {name: choose(counts[name], edge_of(extremes[name])) for name in extremes}
    return {
        name: (max(low, chosen[name][0]), min(high, chosen[name][1])) for name, (low, high) in extremes.items()
    }  # fmt: skip


def edge_of(extremes: tuple[float, float]) -> float:
    return max(-extremes[0], extremes[1]) or 1.0


def fake(model: Any, scheme: Scheme, calibration: NDArray[int64]) -> Fake:
    import torch

    from .grids import symmetric

    found = ranges(model, calibration, scheme.name.removeprefix("w8a8-static"))
    grids = {name: affine_grid(np.float32(low), np.float32(high), 0, 255)  # type: ignore[arg-type]  # scalars broadcast
             for readers, low, high in found for name in readers}  # fmt: skip

    def rounded(name: str, x: Any) -> Any:
        scale, zero = grids[name]
        codes = quantize(x.numpy(), scale, zero, 0, 255)
        return torch.from_numpy((codes - zero).astype(np.float32) * scale)

    return Fake(model, weight=lambda _, w: symmetric(w, 8), inputs=rounded)
