"""TurboQuant's distortions in the proving table: a rotation makes all vectors alike, so that no model is needed to see them.

Vectors of heavy tails, as wide as SmolLM2's heads, each rounded under TURNS random rotations. MSE: E |x~ - x|^2 / |x|^2 of the
mse form. Product: E <x~, x> / |x|^2, which is 1 where inner products are unbiased. Intervals: three standard errors of the
mean over rotations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from quantadvisor.documents import Interval

PAPER = {1: 0.36, 2: 0.117, 3: 0.03, 4: 0.009}
"""MSE by bits (arXiv:2504.19874), which so rounds 0.3634, 0.1175, 0.0345 and 0.0095 (Max 1960, table I)."""
NEAR = 0.2
"""Of the paper's figure, which has one digit at 3 and 4 bits."""
WIDTH, VECTORS, TURNS = 64, 400, 30


class Distortion(NamedTuple):
    """`product`: of the mse form; `unbiased`: of the prod form."""

    bits: int
    mse: Interval
    product: Interval
    unbiased: Interval


def distortions() -> list[Distortion]:
    """At 1 to 4 bits."""
    import torch

    from quantadvisor.kernels.turbo_tables import rotation
    from quantadvisor.methods.turboquant import least_squares, projection, unbiased_product

    x = torch.from_numpy(np.random.default_rng(0).standard_t(2, (VECTORS, WIDTH)).astype(np.float32))
    x /= x.norm(dim=1, keepdim=True)
    found = []
    for bits in PAPER:
        seen = []
        for seed in range(TURNS):
            near = least_squares(x, bits, rotation(WIDTH, seed))
            other = unbiased_product(x, bits, rotation(WIDTH, seed), projection(WIDTH, TURNS + seed))
            seen.append([float(each.sum(1).mean()) for each in ((near - x).square(), near * x, other * x)])
        found.append(Distortion(bits, *map(of_mean, np.array(seen).T)))
    return found


def of_mean(values: np.ndarray) -> Interval:
    mean, error = float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
    return Interval(mean=mean, low=mean - 3 * error, high=mean + 3 * error)


def section(found: Sequence[Distortion]) -> str:
    """Markdown: each against the paper; where it is not so, that is said."""
    lines = ["| bits | MSE | the paper's | <x~, x>, mse form | <x~, x>, prod form |", "|---:|---:|---:|---:|---:|"]
    for one in found:
        near = "" if abs(one.mse.mean / PAPER[one.bits] - 1) < NEAR else " **not so**"
        even = "" if one.unbiased.low <= 1 <= one.unbiased.high else " **biased**"
        cells = f"{spread(one.mse)}{near} | {PAPER[one.bits]:g} | {spread(one.product)} | {spread(one.unbiased)}{even}"
        lines.append(f"| {one.bits} | {cells} |")
    return "\n".join(lines) + "\n"


def spread(one: Interval) -> str:
    return f"{one.mean:.4f} [{one.low:.4f}, {one.high:.4f}]"
