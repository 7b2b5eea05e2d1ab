"""The frame of GPTQ and OBQ: layer by layer, each group of linears is rounded against what it reads from the rounded
layers before it, by a function of its weights and its Hessian  H = 2 / T X^T X  (X: [T, K], T calibration tokens).

lm_head is not part of it: it takes 8 bits by rounding to nearest, as everywhere here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy import float64, int64
from numpy.typing import NDArray

from quantadvisor.documents.errors import CandidateFailed
from quantadvisor.documents.scheme import Scheme

from . import half_products
from .affine import Floats, Grouped, dequantize_groups
from .artifact import base_folder, tokens_read, write_grouped
from .kept import Arrays, kept_beside, resumed
from .linear_format import LinearFormat
from .refusals import HALF, ONNX, config, group_mismatch, half_mismatch, not_offered, padding, unread_groups, width_missing
from .rescale import mapping_missing
from .schemes import group_format
from .stream import Parts, stream
from .training import Say, silent

SAMPLES = 64
"""Calibration samples that Hessians come from, where the user does not say how many."""
STRIP = 384
"""Columns of a Gram matrix that are computed together."""
RUNTIMES = (*ONNX, "openvino", *HALF)
Square = NDArray[float64]


Solve = Callable[[Floats, Square, LinearFormat], Grouped]
"""(w [N, K], H [K, K], grid) -> integers; raises numpy.linalg.LinAlgError where H cannot be factored."""


def evenly(calibration: NDArray[int64], samples: int) -> NDArray[int64]:
    """At most `samples` of the samples, from all over the text."""
    places = np.linspace(0, len(calibration) - 1, min(samples, len(calibration))).round().astype(int)
    chosen: NDArray[int64] = calibration[places]
    return chosen


def grid_of(scheme: Scheme) -> LinearFormat:
    if scheme.weights is None:
        raise ValueError(f"{scheme.name} leaves weights as they are")
    return group_format(scheme.weights)


def refuse(name: str, schemes: tuple[Scheme, ...], model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    """The checks of every method that goes through the decoder and writes integers in groups."""
    if refused := not_offered(name, scheme, schemes, runtime, RUNTIMES):
        return refused
    if refused := mapping_missing(config(model_folder)):
        return refused
    if refused := half_mismatch(scheme, runtime) or width_missing(scheme, runtime):
        return refused
    return (None if runtime in ONNX else group_mismatch(model_folder, scheme)) or unread_groups(runtime)


def round_all(model_folder: Path, tokens: NDArray[int64], grid: LinearFormat, solve: Solve,
              kept: MutableMapping[str, Arrays], say: Say = silent) -> None:  # fmt: skip
    """Integers of every linear of the decoder into `kept`; what is there already is taken, not computed."""

    def visit(targets: tuple[str, ...], x: Parts, weights: list[Floats]) -> list[Floats]:
        if any(name not in kept for name in targets):
            keep(kept, targets, weights, solved(solve, targets, np.concatenate(weights), hessian(x), grid))
        return [dequantize_groups(*loaded(kept, name), grid.group) for name in targets]

    stream(model_folder, tokens, visit, say)


def keep(kept: MutableMapping[str, Arrays], targets: tuple[str, ...], weights: list[Floats], whole: Grouped) -> None:
    """Integers of the weights of all targets, one above the other, cut into those of each."""
    ends = np.cumsum([len(w) for w in weights])[:-1]
    for name, *parts in zip(targets, *(np.split(each, ends) for each in whole), strict=True):
        kept[name] = Grouped(*parts)._asdict()


def loaded(kept: Mapping[str, Arrays], name: str) -> Grouped:
    arrays = kept[name]
    return Grouped(arrays["codes"], arrays["scales"], arrays["zeros"])


def solved(solve: Solve, targets: tuple[str, ...], w: Floats, h: Square, grid: LinearFormat) -> Grouped:
    try:
        return solve(w, h, grid)
    except np.linalg.LinAlgError:
        raise CandidateFailed(f"the Hessian of {targets[0]} is not positive definite, damped as it is") from None


def hessian(x: Parts) -> Square:
    """x: [T, K] -> 2 / T x^T x, the Hessian of the mean square error of x w^T in any row of w."""
    square, count = gram_of(x)
    return square.astype(float64) * (2 / count)


def gram_of(x: Parts) -> tuple[Floats, int]:
    """x: [T, K] -> (x^T x [K, K], T)"""
    square, count = None, 0
    for part in x:
        square = gram(part) if square is None else np.add(square, gram(part), out=square)
        count += len(part)
    assert square is not None
    return square, count


def gram(x: Floats) -> Floats:
    """x: [T, K] -> x^T x [K, K]; blocks above its diagonal are those below it, and are not computed again.

    The products of the methods are torch's, whose threads the decoder has already: numpy's are a second pool, and wait
    for each other without leaving the core.
    """
    import torch

    inputs = torch.from_numpy(x)
    width = x.shape[1]
    found = torch.empty(width, width)
    with half_products.sums_in_float32():
        for start in range(0, width, STRIP):
            end = start + STRIP
            strip = inputs[:, start:].T @ inputs[:, start:end]
            found[start:, start:end] = strip
            found[start:end, start:] = strip.T
    result: Floats = found.numpy()
    return result


def damped(h: Square, damping: float) -> Square:
    """h + damping * mean(diag h) on the diagonal; all 1 where calibration lit no input: nothing is known of them."""
    h = h.copy()
    diagonal = np.diagonal(h)
    np.fill_diagonal(h, diagonal + (damping * float(diagonal.mean()) if diagonal.any() else 1.0))
    return h


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, base: Path | None,
          solve: Solve, settings: str, say: Say = silent, samples: int | None = None) -> tuple[str, ...]:  # fmt: skip
    """The artifact, resumable linear by linear; `settings` names the method and all that its result depends on. `say` is told
    how far it is. `samples`: as many as the user wants Hessians from."""
    tokens = evenly(calibration, samples or SAMPLES)
    with (
        base_folder(model_folder, runtime, out, base) as source,
        kept_beside(out, model_folder, tokens, f"{settings} {scheme.name}") as kept,
    ):
        found = len(kept)
        round_all(model_folder, tokens, grid_of(scheme), solve, kept, say)
        given = {name: partial(loaded, kept, name) for name in kept}
        write_grouped(model_folder, source, scheme, runtime, out, given)
    how = f"{settings}; Hessians from {tokens_read(tokens, calibration)}"
    return (how, *padding(model_folder, scheme, runtime), *resumed(found))


def rounded(model_folder: Path, scheme: Scheme, tokens: NDArray[int64], solve: Solve) -> dict[str, Floats]:
    """{linear: the weights [N, K] that its integers stand for}."""
    grid, kept = grid_of(scheme), dict[str, Arrays]()
    round_all(model_folder, tokens, grid, solve, kept)
    return {name: dequantize_groups(*loaded(kept, name), grid.group) for name in kept}
