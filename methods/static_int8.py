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
from .clipping import Clip, limits
from .refusals import config, not_offered
from .rescale import mapping_missing, pairs
from .schemes import scheme as scheme_named

NAME = "static_int8"
TARGET: Target = "activations"
KEPT_VALUES = 1 << 15


def schemes() -> tuple[Scheme, ...]:
    return (scheme_named("w8a8-static"),)


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    return not_offered(NAME, scheme, schemes(), runtime, ("openvino",)) or mapping_missing(config(model_folder))


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None, clip: Clip = "minmax") -> tuple[str, ...]:  # fmt: skip
    from .formats import openvino

    with base_folder(model_folder, runtime, out, base) as source:
        inputs = [openvino.Input(*each) for each in ranges(model_folder, calibration, clip)]
        openvino.quantize_w8a8(source, out, inputs)
    return (f"static activation ranges: {clip} of {calibration.size} calibration tokens",)


def ranges(model_folder: Path, calibration: NDArray[int64],
           clip: Clip = "minmax") -> list[tuple[tuple[str, ...], float, float]]:  # fmt: skip
    """(linears that read one tensor, a, b of its range) over calibration int64 [samples, length].

    Extremes are those of all tokens; clipping is judged on about KEPT_VALUES values of each batch.
    """
    from .observe import load, observe

    groups = {pair.targets[0]: pair.targets for pair in pairs(config(model_folder))}
    seen: dict[str, list[Floats]] = {name: [] for name in groups}

    def keep(name: str, x: Floats) -> None:
        step = max(1, x.size // KEPT_VALUES)
        seen[name].append(np.array([x.min(), x.max()]) if clip == "minmax" else x[::step].reshape(-1).copy())

    observe(load(model_folder), calibration, dict.fromkeys(groups, keep))
    return [(readers, *limits(np.concatenate([*seen[name], np.zeros(1, np.float32)]), clip)) for name, readers in groups.items()]
