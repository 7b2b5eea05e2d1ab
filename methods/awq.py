"""AWQ (arXiv:2306.00978): input channels that carry large activations are scaled up before rounding, and clipped ranges.

For the tensor X between a source (a norm, v_proj or up_proj) and the linears that read it,  s_j = mean|X_j|^r / m_j^(1 - r),
brought to  sqrt(max s * min s) = 1, where m_j is the mean of |w_nj| over the largest |w| of its group. r is searched in 0, 1/18,
…, 1, beside no scale at all, by the readers' output error  |X W^T - X (Q(W s) / s)^T|^2  under the rounding that will run
(equations 4 and 5). The paper has m = 1; the weights' means, as AutoAWQ and llm-compressor take them ("duo scaling"), make it
indifferent to how channels were scaled before: the embedded model's were rescaled at random, and its KL is 0.114 where it was
0.155 (w4-g64, 8 samples, two draws); as shipped it is 0.109 and 0.106 (one draw). s is folded into source and readers, which
leaves the function as it is. Then every group is clipped at the share of max|w| that costs least, down to a half; q and k are
not clipped, as in the authors' code. All weights are rounded, none is kept in 16 bit.

Errors come from the Gram matrix of X: |X d^T|^2 = d X^T X d^T, so that no search step multiplies activations. A row of
integers can be scaled afterwards: the scale that a source is divided by goes into the scales of its own groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from . import layerwise
from .affine import Floats, Grouped, dequantize_groups, in_groups, nearest, nearest_groups, quantize_groups
from .artifact import base_folder, tokens_read, write_grouped
from .kept import Arrays, kept_beside, resumed
from .layerwise import SAMPLES, evenly, gram_of, grid_of, loaded
from .linear_format import LinearFormat
from .refusals import config, padding
from .rescale import Pair, Scale, pairs
from .schemes import EVEN, named
from .stream import Parts, stream
from .training import Say, silent

NAME = "awq"
TARGET: Target = "weights"
COST = (
    "one pass of 64 calibration samples or the spec's number, layer by layer; each linear is rounded 20 times "
    "for its scale and 10 for its clips"
)
RATIOS = tuple(step / 18 for step in range(19))
CLIPS = tuple(1 - step / 20 for step in range(10))
ROWS = 4
"""The scale search measures the errors of every fourth output channel: rounding is per row, so they stand for all."""
UNCLIPPED = ("q_proj", "k_proj")
SETTINGS = "AWQ: 20 scales by inputs and weights, clipping down to 0.5 of max|w|"


def schemes() -> tuple[Scheme, ...]:
    half = (f"{name}-bf16" for name in ("w4-g32", "w4-g64", *EVEN))
    return named("w4-g32", "w4-g64", "w4-g128", *EVEN, "w3-g64", *half)


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    return layerwise.refuse(NAME, schemes(), model_folder, scheme, runtime)


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None, say: Say = silent, samples: int | None = None) -> tuple[str, ...]:  # fmt: skip
    tokens, grid = evenly(calibration, samples or SAMPLES), grid_of(scheme)
    known = pairs(config(model_folder))
    with (
        base_folder(model_folder, runtime, out, base) as source,
        kept_beside(out, model_folder, tokens, f"{SETTINGS} {scheme.name}") as kept,
    ):
        found = len(kept)
        search_all(model_folder, tokens, grid, kept, say=say)
        moved = [(pair, scale_of(kept, pair)) for pair in known]
        given = {target: partial(divided, kept, target, known) for pair in known for target in pair.targets}
        write_grouped(model_folder, source, scheme, runtime, out, given, moved)
        chosen = [float(kept[pair.targets[0]]["ratio"][0]) for pair in known]
    spread = f"exponents {min(chosen):.2f} to {max(chosen):.2f}, median {np.median(chosen):.2f}"
    how = f"{SETTINGS}; {spread}; from {tokens_read(tokens, calibration)}"
    return (how, *padding(model_folder, scheme, runtime), *resumed(found))


def rounded(model_folder: Path, scheme: Scheme, calibration: NDArray[int64],
            shares: tuple[float, ...] = CLIPS) -> dict[str, Floats]:  # fmt: skip
    """{linear: weights [N, K] that its integers stand for}, for sources and inputs that no scale was moved into."""
    grid, kept = grid_of(scheme), dict[str, Arrays]()
    search_all(model_folder, calibration, grid, kept, shares)
    return {
        target: dequantize_groups(*loaded(kept, target), grid.group) / pair.spread(scale_of(kept, pair))
        for pair in pairs(config(model_folder))
        for target in pair.targets
    }


def search_all(model_folder: Path, tokens: NDArray[int64], grid: LinearFormat, kept: MutableMapping[str, Arrays],
               shares: tuple[float, ...] = CLIPS, say: Say = silent) -> None:  # fmt: skip
    """Integers of every linear into `kept`, with the scale and exponent of its pair; inputs are those of the fp32 model.
    `shares`: what clipping tries; (1,): no clipping."""
    known = {pair.targets[0]: pair for pair in pairs(config(model_folder))}

    def visit(targets: tuple[str, ...], x: Parts, weights: list[Floats]) -> None:
        if all(name in kept for name in targets):
            return
        pair, (square, loudness) = known[targets[0]], statistics(x)
        ratio, scale = best_scale(pair, loudness, square, np.concatenate(weights)[::ROWS], grid)
        wide = pair.spread(scale)
        for name, w in zip(targets, weights, strict=True):
            clips = (1.0,) if name.endswith(UNCLIPPED) else shares
            integers = clipped(w * wide, square / np.outer(wide, wide), grid, clips)
            kept[name] = integers._asdict() | {"scale": scale, "ratio": np.array([ratio], np.float32)}

    stream(model_folder, tokens, visit, say)


def statistics(x: Parts) -> tuple[Floats, Floats]:
    """x: [T, K] -> (x^T x / T [K, K], mean|x| [K])"""
    sums = list[Floats]()

    def passed() -> Iterator[Floats]:
        for part in x:
            sums.append(np.abs(part).sum(axis=0))
            yield part

    square, count = gram_of(passed())
    return square / np.float32(count), np.sum(sums, axis=0) / np.float32(count)


def scale_of(kept: Mapping[str, Arrays], pair: Pair) -> Scale:
    return kept[pair.targets[0]]["scale"]


def divided(kept: Mapping[str, Arrays], name: str, known: tuple[Pair, ...]) -> Grouped:
    """The integers of a linear, its rows divided by the scale of the pair that it is the source of."""
    integers = loaded(kept, name)
    pair = next((pair for pair in known if pair.source == name), None)
    if pair is None:
        return integers
    return integers._replace(scales=integers.scales / scale_of(kept, pair)[:, None])


def best_scale(pair: Pair, loudness: Floats, gram: Floats, w: Floats, grid: LinearFormat) -> tuple[float, Scale]:
    """loudness: mean|X_j| [K], gram: X^T X / T [K, K], w: [N, K] of all readers -> the exponent and the source's scale."""
    x, m = pair.gather(loudness), pair.gather(heaviness(w, grid.group))
    candidates = [(0.0, np.ones_like(x)), *((ratio, scale_for(x, m, ratio)) for ratio in RATIOS)]
    return min(candidates, key=lambda each: scaled_error(w, pair.spread(each[1]), gram, grid))


def heaviness(w: Floats, group: int) -> Floats:
    """w: [N, K] -> the mean over rows of |w| relative to the largest of its group [K]."""
    size = np.abs(in_groups(w, group))
    size /= size.max(axis=-1, keepdims=True) + 1e-6
    mean: Floats = size.mean(axis=0).reshape(-1)[: w.shape[1]]
    return mean


def scale_for(loudness: Floats, heaviness: Floats, ratio: float) -> Scale:
    """s = loudness^r / heaviness^(1 - r), at least 1e-4, divided by sqrt(max s * min s)."""
    scale = np.maximum(loudness.astype(np.float64) ** ratio / (heaviness.astype(np.float64) ** (1 - ratio) + 1e-4), 1e-4)
    normal: Scale = (scale / np.sqrt(scale.max() * scale.min())).astype(np.float32)
    return normal


def scaled_error(w: Floats, wide: Scale, gram: Floats, grid: LinearFormat) -> float:
    """Sum over rows of d gram d^T with d = Q(w s) / s - w: T times less than |X W^T - X (Q(W s) / s)^T|^2."""
    import torch

    error = torch.from_numpy(nearest(w * wide, *grid) / wide - w)
    return float(torch.vdot((error @ torch.from_numpy(gram)).flatten(), error.flatten()))


def clipped(w: Floats, gram: Floats, grid: LinearFormat, clips: tuple[float, ...]) -> Grouped:
    """w: [N, K] -> integers; every group clipped at the share of its max|w| with the least output error of its own."""
    import torch

    groups = in_groups(w, grid.group)
    blocks = torch.from_numpy(diagonal_blocks(gram, grid.group))
    bound = np.abs(groups).max(axis=-1)
    least = np.full(bound.shape, np.inf, np.float32)
    limit = bound
    for share in clips:
        at = (bound * np.float32(share))[..., None]
        by_group = torch.from_numpy(nearest_groups(np.clip(groups, -at, at), grid.bits, grid.symmetric) - groups).transpose(0, 1)
        cost = (by_group @ blocks).mul_(by_group).sum(-1).T.numpy()
        limit = np.where(cost < least, at[..., 0], limit)
        least = np.minimum(least, cost)
    inside = np.clip(groups, -limit[..., None], limit[..., None]).reshape(len(w), -1)[:, : w.shape[1]]
    return quantize_groups(inside, *grid)


def diagonal_blocks(gram: Floats, size: int) -> Floats:
    """gram: [K, K] -> its blocks on the diagonal [G, size, size], the last filled up with zeros."""
    count = -(-len(gram) // size)
    blocks = np.zeros((count, size, size), np.float32)
    for at in range(count):
        part = gram[at * size : (at + 1) * size, at * size : (at + 1) * size]
        blocks[at, : len(part), : len(part)] = part
    return blocks
