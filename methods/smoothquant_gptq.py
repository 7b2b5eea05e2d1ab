"""SmoothQuant, then GPTQ: outlier channels move into the weights, whose columns then make up for each other's rounding.

arXiv:2211.10438 and arXiv:2210.17323, the field's recipe for W8A8 (llm-compressor: SmoothQuantModifier, then GPTQModifier). The
scales s of `smoothquant.py` are folded in, and the smoothed weights  W' = diag(1/r) W diag(s)  are rounded by `gptq.py` against
the Hessian of the smoothed inputs  H' = diag(1/s) H diag(1/s).  (r: what the rows of v_proj and up_proj, sources themselves,
are divided by.) H is of inputs that are not rounded, as llm-compressor's. So one pass through the model as it is (`stream.py`)
does, and no smoothed copy of it is written. It wants several tokens a row of weights: of fewer it learns their noise by heart
(128 random tokens for rows of 128 left more error than rounding to nearest; 512 left less).

    w8a8, w8a8-bf16   one scale per output channel, max|row| / 127 of W': SmoothQuant's own artifacts, with other codes
    w4a8-g64          symmetric groups of 64 with GPTQ's least-squares grids: ZeroQuant's arithmetic, simulated only
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from . import gptq, layerwise, smoothquant, zeroquant
from .affine import Floats, dequantize_groups, fake_tokens
from .artifact import base_folder, tokens_read
from .fake import Fake, with_weights
from .kept import Arrays, Kept, kept_beside, resumed
from .layerwise import evenly, hessian, loaded
from .linear_format import LinearFormat
from .refusals import COMPRESSED, ONNX, compute_mismatch, config, not_offered
from .rescale import Pair, Scale, mapping_missing, pairs
from .schemes import named
from .stream import Parts, stream
from .training import Say, silent

NAME = "smoothquant_gptq"
TARGET: Target = "activations"
COST = f"SmoothQuant: {smoothquant.COST}; then GPTQ: {gptq.COST}"
RUNTIMES = (*ONNX, *COMPRESSED)
SIMULATED = "w4a8-g64"
SETTINGS = "GPTQ: act-order, damping 0.01, on weights that SmoothQuant scaled"
SMOOTHING = "smoothing"
"""Where the scales lie among what is kept: by the first reader of each pair."""
MIN_MAX = (1.0,)
"""Of the shares of its range that a grid is tried at, the whole alone: SmoothQuant's own grid per channel."""
NOT_MOVED: Scale = np.ones(1, np.float32)

Moves = list[tuple[Pair, Scale]]


def schemes() -> tuple[Scheme, ...]:
    return named("w8a8", "w8a8-bf16", SIMULATED)


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    if scheme.name == SIMULATED:
        return zeroquant.refuse(model_folder, scheme, runtime)
    if refused := not_offered(NAME, scheme, schemes(), runtime, RUNTIMES):
        return refused
    return compute_mismatch(scheme, runtime) or mapping_missing(config(model_folder))


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None, say: Say = silent, samples: int | None = None) -> tuple[str, ...]:  # fmt: skip
    with (
        base_folder(model_folder, runtime, out, base) as source,
        kept_beside(out, model_folder, calibration, f"{SETTINGS} {scheme.name} {samples}") as kept,
    ):
        found = len(set(kept) - {SMOOTHING})
        moves = round_all(model_folder, scheme, calibration, kept, say, samples)
        given = {name: partial(loaded, kept, name) for name in kept if name != SMOOTHING}
        if runtime in COMPRESSED:
            from .formats import compressed

            compressed.write_w8a8(source, out, given, moves)
        else:
            from .formats import onnx

            factors = onnx.rescaled(source, moves, config(model_folder))
            fused = onnx.fused(given, onnx.linear_names(source))
            onnx.quantize_dynamic_w8a8(source, out, factors, per_token=True, given=fused)
    smoothed = f"scales moved at {len(moves)} of {len(pairs(config(model_folder)))} tensors"
    seen = tokens_read(evenly(calibration, samples or layerwise.SAMPLES), calibration)
    return (f"{SETTINGS}; {smoothed}; Hessians from {seen}", *resumed(found))


def fake(model: Any, scheme: Scheme, calibration: NDArray[int64]) -> Fake:
    """Of a model that was loaded from a folder: its own weights and inputs, each rounded as smoothed and scaled back."""
    import torch

    from .grids import symmetric

    kept = dict[str, Arrays]()
    moves = round_all(Path(model.name_or_path), scheme, calibration, kept)
    weights = {name: unmoved(kept, name, moves, scheme) for name in kept if name != SMOOTHING}
    columns = {name: torch.from_numpy(factors(moves, name)[1]) for name in weights}
    made = with_weights(model, weights)
    return made._replace(inputs=lambda name, x: symmetric(x / columns[name], 8) * columns[name])


def round_all(model_folder: Path, scheme: Scheme, calibration: NDArray[int64], kept: Kept, say: Say = silent,
              samples: int | None = None) -> Moves:  # fmt: skip
    """The scales to fold in, and into `kept` the integers of every linear of the decoder as they leave it; what is there already
    is taken, not computed."""
    moves = smoothing(model_folder, scheme, calibration, kept, say)

    def visit(targets: tuple[str, ...], x: Parts, weights: list[Floats]) -> list[Floats]:
        if any(name not in kept for name in targets):
            smoothed = [moved(w, *factors(moves, name)) for name, w in zip(targets, weights, strict=True)]
            columns = factors(moves, targets[0])[1]
            h = hessian(x) / columns / columns[:, None]
            grid = grid_of(scheme, len(h))
            solve = partial(gptq.solve, shrink=MIN_MAX if grid.bits == 8 else gptq.SHRINK)
            layerwise.keep(kept, targets, smoothed, layerwise.solved(solve, targets, np.concatenate(smoothed), h, grid))
        return [unmoved(kept, name, moves, scheme) for name in targets]

    stream(model_folder, evenly(calibration, samples or layerwise.SAMPLES), visit, say)
    return moves


def smoothing(model_folder: Path, scheme: Scheme, calibration: NDArray[int64], kept: Kept, say: Say = silent) -> Moves:
    """SmoothQuant's scales; they are kept, since codes that an interrupted run left are of weights scaled by these very ones."""
    if SMOOTHING not in kept:
        assert scheme.weights is not None
        seen, bits = calibration[: smoothquant.RANGE_SAMPLES["token"]], int(scheme.weights.bits)
        found = smoothquant.search(model_folder, seen, fake_tokens, linear=True, bits=bits, say=say)
        kept[SMOOTHING] = {pair.targets[0]: scale for pair, scale in found.scales}
    scales = kept[SMOOTHING]
    return [(pair, scales[pair.targets[0]]) for pair in pairs(config(model_folder)) if pair.targets[0] in scales]


def factors(moves: Moves, name: str) -> tuple[Scale, Scale]:
    """What the rows [N] of a linear are divided by and its columns [K] multiplied; NOT_MOVED [1] where that is nothing."""
    rows = (scale for pair, scale in moves if pair.source == name)
    columns = (pair.spread(scale) for pair, scale in moves if name in pair.targets)
    return next(rows, NOT_MOVED), next(columns, NOT_MOVED)


def moved(w: Floats, rows: Scale, columns: Scale) -> Floats:
    """w: [N, K] -> the smoothed weights, to the bit those that `rescale.tensor_factors` makes."""
    smoothed: Floats = w / rows[:, None] * columns
    return smoothed


def unmoved(kept: Mapping[str, Arrays], name: str, moves: Moves, scheme: Scheme) -> Floats:
    """What the integers of a linear stand for [N, K], before the scales were moved."""
    integers = loaded(kept, name)
    rows, columns = factors(moves, name)
    value: Floats = dequantize_groups(*integers, grid_of(scheme, integers.codes.shape[1]).group) * rows[:, None] / columns
    return value


def grid_of(scheme: Scheme, width: int) -> LinearFormat:
    """Of rows of so many weights: a channel is one group of them all."""
    assert scheme.weights is not None
    return LinearFormat(int(scheme.weights.bits), scheme.weights.group_size or width, scheme.weights.symmetric)
