"""Static W8A8 by calibration alone: INT8 weights per channel, and one fixed INT8 range for every activation tensor.

The range is the least and the largest value that calibration saw (min-max), so an outlier channel takes the resolution
from all others: on SmolLM2-135M the KL is ten times that of `smoothquant`, which moves such channels into the weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from .affine import Floats
from .artifact import base_folder
from .refusals import config, not_offered
from .rescale import mapping_missing, pairs
from .schemes import scheme as scheme_named

NAME = "static_int8"
TARGET: Target = "activations"


def schemes() -> tuple[Scheme, ...]:
    return (scheme_named("w8a8-static"),)


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    return not_offered(NAME, scheme, schemes(), runtime, ("openvino",)) or mapping_missing(config(model_folder))


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None) -> tuple[str, ...]:  # fmt: skip
    from .formats import openvino

    with base_folder(model_folder, runtime, out, base) as source:
        inputs = [openvino.Input(*each) for each in ranges(model_folder, calibration)]
        openvino.quantize_w8a8(source, out, inputs)
    return (f"static activation ranges: the extremes of {calibration.size} calibration tokens",)


def ranges(model_folder: Path, calibration: NDArray[int64]) -> list[tuple[tuple[str, ...], float, float]]:
    """(linears that read one tensor, its least value, its largest) over calibration int64 [samples, length]."""
    from .observe import load, observe

    groups = {pair.targets[0]: pair.targets for pair in pairs(config(model_folder))}
    low, high = dict.fromkeys(groups, 0.0), dict.fromkeys(groups, 0.0)

    def widen(name: str, x: Floats) -> None:
        low[name] = min(low[name], float(np.min(x)))
        high[name] = max(high[name], float(np.max(x)))

    observe(load(model_folder), calibration, dict.fromkeys(groups, widen))
    return [(readers, low[name], high[name]) for name, readers in groups.items()]
