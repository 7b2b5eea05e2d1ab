"""LLM-FP4's weights (arXiv:2310.16836): per linear the float format, per row the largest value, that cost least.

k bits are a sign, E exponent and M mantissa bits with a real exponent bias b a row, so that the largest value m is free:
b = 2^E - log2(m) + log2(2 - 2^-M) - 1.  A weight is clipped at m and rounded to steps of  v = 2^(max(floor(log2|w| + b),
1) - M - b)  (equations 3 to 7). The bias that would hold max|w| is searched as m = f max|w|.

Rows do not share an error, so each row's f is found by itself, for every format; then the format with the least sum is
taken. This finds the joint optimum at once that Algorithm 1 approaches in three rounds of one choice at a time, which it
needs because it chooses for activations too. (The authors' code multiplies b by the factors 0.01 to 1.2 instead: a b
below 0 then moves the wrong way.) No runtime here has floats with a real bias a row: quality is simulated.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.errors import CandidateFailed
from quantadvisor.documents.scheme import Scheme

from .affine import Floats
from .layerwise import gram_of
from .refusals import not_offered
from .schemes import scheme as scheme_named
from .stream import Parts, stream

NAME = "fpq"
TARGET: Target = "weights"
COST = "one forward pass of the calibration samples; each linear is rounded 17 times for every format"
FORMATS = {4: ((3, 0), (2, 1), (1, 2)), 6: ((4, 1), (3, 2), (2, 3), (1, 4)), 8: ((5, 2), (4, 3), (3, 4), (2, 5), (1, 6))}
"""bits -> (exponent bits, mantissa bits): E3M0, E2M1 and E1M2, and the 6- and 8-bit sets."""
EXPONENT = 0x7F800000
"""The bits of a float32's exponent."""
FACTORS = tuple(float(f) for f in np.linspace(1.2, 0.4, 17))
NO_KERNEL = "no runtime here computes floats with a real exponent bias a row; its quality can be simulated"


def schemes() -> tuple[Scheme, ...]:
    return tuple(scheme_named(f"wfp{bits}") for bits in FORMATS)


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    return not_offered(NAME, scheme, schemes(), runtime, (runtime,)) or f"{runtime}: {NO_KERNEL}"


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None) -> tuple[str, ...]:  # fmt: skip
    raise CandidateFailed(f"{runtime}: {NO_KERNEL}")


def rounded(model_folder: Path, scheme: Scheme, calibration: NDArray[int64]) -> dict[str, Floats]:
    """{linear: the weights [N, K] that its codes stand for}, each chosen against the fp32 model's inputs."""
    assert scheme.weights is not None
    bits, result = int(scheme.weights.bits), dict[str, Floats]()

    def visit(targets: tuple[str, ...], x: Parts, weights: list[Floats]) -> None:
        square, count = gram_of(x)
        gram = square / np.float32(count)
        for name, w in zip(targets, weights, strict=True):
            result[name], _ = search(w, gram, bits)

    stream(model_folder, calibration, visit)
    return result


def search(w: Floats, gram: Floats, bits: int) -> tuple[Floats, tuple[int, int]]:
    """w: [N, K], gram: X^T X / T [K, K] -> (rounded w, format) of least output error sum_n d_n gram d_n^T."""
    found = [(*best_rows(w, gram, *form), form) for form in FORMATS[bits]]
    rounded_w, _, form = min(found, key=lambda each: each[1])
    return rounded_w, form


def best_rows(w: Floats, gram: Floats, exponent_bits: int, mantissa_bits: int) -> tuple[Floats, float]:
    """(w with every row at its best largest value, the sum of the rows' output errors)."""
    bound = np.abs(w).max(axis=1)
    best, least = np.zeros_like(w), np.full(len(w), np.inf, np.float32)
    for factor in FACTORS:
        candidate = round_floats(w, bound * np.float32(factor), exponent_bits, mantissa_bits)
        error = candidate - w
        cost = np.einsum("nk,nk->n", error @ gram, error)
        better = cost < least
        best[better], least[better] = candidate[better], cost[better]
    return best, float(least.sum())


def round_floats(w: Floats, largest: Floats, exponent_bits: int, mantissa_bits: int) -> Floats:
    """w: [N, K], largest: [N] -> w on the floats of that format whose largest value is `largest`, row by row.

    Rows are taken times 2^b, so that a step is 2^(max(floor(log2|w|), 1) - M); the power of two is float32's own exponent.
    """
    m = np.where(largest > 0, largest, 1).astype(np.float64)[:, None]
    scale = np.exp2(bias_of(m, exponent_bits, mantissa_bits)).astype(np.float32)
    bound = m.astype(np.float32)
    scaled = np.clip(w, -bound, bound) * scale
    power = (scaled.view(np.int32) & EXPONENT).view(np.float32)
    step = np.maximum(power, np.float32(2)) * np.float32(2.0**-mantissa_bits)
    rounded_w: Floats = np.rint(scaled / step) * step / scale
    return rounded_w


def bias_of(largest: NDArray[np.float64], exponent_bits: int, mantissa_bits: int) -> NDArray[np.float64]:
    """b with which the largest code is worth `largest`."""
    bias: NDArray[np.float64] = 2.0**exponent_bits - np.log2(largest) + np.log2(2 - 2.0**-mantissa_bits) - 1
    return bias
