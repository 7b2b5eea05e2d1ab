"""LLM.int8() (arXiv:2208.07339): input channels with an outlier stay in float, the rest is multiplied in vector-wise INT8.

Outlier columns J = {j : max_i |x_ij| >= 6}.  Y = Q(x_~J) Q(W_~J)^T + x_J W_J^T, with one scale per token for x (the
largest of its values that are no outliers, / 127) and one per row for W (max|w| / 127). The weights are stored as INT8
only; those of outlier columns are read back from it, as bitsandbytes does.

The artifact fixes J by calibration, since a graph cannot have a shape that depends on its data: every channel that reached
the threshold there. A channel that becomes one later only widens its token's scale. Its columns of W stay in fp32.
Simulated on SmolLM2-135M: KL 0.032, plain W8A8 per token 0.048, per tensor 0.54, SmoothQuant 0.007.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from . import refusals
from .affine import Floats
from .artifact import base_folder, tokens_read
from .fake import Fake
from .kept import Arrays, Kept, kept_beside, resumed
from .refusals import ONNX, config, not_bitsandbytes, not_offered, unread_bitsandbytes
from .rescale import mapping_missing, pairs
from .schemes import scheme as named
from .training import Say, silent

NAME = "llm_int8"
TARGET: Target = "activations"
COST = "one forward pass of 8 calibration samples for the outlier channels, and one pass over the weights"
THRESHOLD = 6.0
BITSANDBYTES = "w8a8-outlier-fp16"
"""Its folders, which transformers and the triton runtime read; outliers are found in the very rows."""
SAMPLES = 8
"""Calibration samples that the artifact's outlier channels are found in."""


def schemes() -> tuple[Scheme, ...]:
    return (named("w8a8-outlier"), named(BITSANDBYTES))


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    refused = not_offered(NAME, scheme, schemes(), runtime, (*ONNX, *refusals.BITSANDBYTES))
    theirs = runtime in refusals.BITSANDBYTES or scheme.name == BITSANDBYTES
    if not refused and theirs:
        refused = not_bitsandbytes(scheme, runtime, (BITSANDBYTES,))
    return refused or mapping_missing(config(model_folder)) or (unread_bitsandbytes(runtime) if theirs else None)


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None, say: Say = silent) -> tuple[str, ...]:  # fmt: skip
    if scheme.name == BITSANDBYTES:
        from .formats import bitsandbytes

        names = [name for pair in pairs(config(model_folder)) for name in pair.targets]
        bitsandbytes.write(base or model_folder, out, names, "int8")
        return (f"outlier channels (|x| >= {THRESHOLD:g}) are found while it runs",)
    from .formats import onnx

    tokens = calibration[:SAMPLES]
    with (
        base_folder(model_folder, runtime, out, base) as source,
        kept_beside(out, model_folder, tokens, f"{NAME} {scheme.name}") as kept,
    ):
        known = resumed(len(kept), "tensors")
        found = outlier_channels(model_folder, tokens, say, kept)
        onnx.quantize_w8a8_outliers(source, out, found)
    return (note(found, tokens_read(tokens, calibration)), *known)


def outlier_channels(
    model_folder: Path, tokens: NDArray[int64], say: Say = silent, kept: Kept | None = None
) -> dict[str, NDArray[int64]]:
    """Channels that reach the threshold, ascending, by every linear that reads them. `kept`: those of each tensor, found here or
    by an interrupted run."""
    from .observe import gather
    from .stream import layer_by_layer

    kept = {} if kept is None else kept
    groups = {pair.targets[0]: pair.targets for pair in pairs(config(model_folder))}

    def widen(before: Floats | None, x: Floats) -> Floats:
        bound: Floats = np.abs(x).max(axis=0)
        return bound if before is None else np.maximum(before, bound)

    def loud(_: str, peaks: Floats) -> Arrays:
        return {"channels": np.flatnonzero(peaks >= THRESHOLD)}

    gather(layer_by_layer(model_folder, say), tokens, groups, widen, loud, kept)
    return {reader: kept[name]["channels"] for name, readers in groups.items() for reader in readers}


def note(found: dict[str, NDArray[int64]], read: str) -> str:
    counts = [len(columns) for columns in found.values()]
    return (
        f"outlier channels (|x| >= {THRESHOLD:g} in {read}): {np.mean(counts):.1f} a linear on average,"
        f" {max(counts)} at most, none in {counts.count(0)} of {len(counts)}"
    )


def fake(model: Any, scheme: Scheme, calibration: NDArray[int64]) -> Fake:
    """Outlier columns as the paper finds them: in the very rows that are multiplied."""
    from .grids import symmetric

    return Fake(model, weight=lambda _, w: symmetric(w, 8), inputs=lambda _, x: rounded(x))


def vector_wise(x: Any, threshold: float = THRESHOLD) -> tuple[Any, Any, Any]:
    """x: [T, K] -> (codes in -127..127 [T, K], largest non-outlier [T, 1], outlier columns, bool [K]).

    A token's scale leaves out its own outliers, not the whole columns; the codes of outlier columns are zero.
    """
    from .grids import LEAST

    outliers = x.abs() >= threshold if threshold else x.isnan()
    columns = outliers.any(0)
    bound = x.abs().masked_fill(outliers, 0.0).amax(-1, keepdim=True)
    codes = (x * (127 / bound.clamp(min=LEAST))).round().masked_fill(columns, 0.0)
    return codes, bound, columns


def rounded(x: Any) -> Any:
    """x: [..., K] with everything but the outlier columns on its INT8 grid."""
    rows = x.flatten(0, -2)
    codes, bound, columns = vector_wise(rows)
    return rows.where(columns, codes * (bound / 127)).reshape(x.shape)
