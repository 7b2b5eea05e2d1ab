"""LLM-FP4's grids by their golden numbers and ml_dtypes; the search against three rounds of one choice at a time."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from quantadvisor.documents.errors import CandidateFailed
from quantadvisor.methods import fpq
from quantadvisor.methods.observe import load, weight
from quantadvisor.methods.schemes import scheme


def values_of(exponent_bits: int, mantissa_bits: int, largest: float) -> list[float]:
    """All values from 0 up that rounding a fine ramp gives."""
    ramp = np.linspace(0, largest, 20001, dtype=np.float32)[None]
    return np.unique(fpq.round_floats(ramp, np.array([largest], np.float32), exponent_bits, mantissa_bits)).tolist()


@pytest.mark.parametrize(
    ("form", "bias", "values"),
    [
        ((2, 1), 1, [0, 0.5, 1, 1.5, 2, 3, 4, 6]),
        ((1, 2), -0.7776076, [6 * k / 7 for k in range(8)]),
        ((3, 0), 4.4150375, [0, 0.09375, 0.1875, 0.375, 0.75, 1.5, 3, 6]),
    ],
)
def test_golden_grids(form: tuple[int, int], bias: float, values: list[float]) -> None:
    assert float(fpq.bias_of(np.array(6.0), *form)) == pytest.approx(bias, abs=1e-7)
    np.testing.assert_allclose(values_of(*form, 6.0), values, atol=1e-6)


def test_e2m1_is_ocps_where_the_bias_is_an_integer() -> None:
    x = np.random.default_rng(0).uniform(-6, 6, (1, 4000)).astype(np.float32)
    ours = fpq.round_floats(x, np.array([6], np.float32), 2, 1)
    np.testing.assert_array_equal(ours, x.astype(ml_dtypes.float4_e2m1fn).astype(np.float32))


def test_rows_have_ranges_of_their_own_and_are_clipped() -> None:
    w = np.array([[6, 7, -9], [0.6, 0.7, -0.9]], np.float32)
    found = fpq.round_floats(w, np.array([6, 0.6], np.float32), 2, 1)
    np.testing.assert_allclose(found, [[6, 6, -6], [0.6, 0.6, -0.6]], rtol=1e-6)
    assert not fpq.round_floats(np.zeros((1, 3), np.float32), np.zeros(1, np.float32), 2, 1).any()


def in_three_rounds(w: np.ndarray, x: np.ndarray, bits: int) -> float:
    """Algorithm 1 for weights: in each round first the rows' largest values under the format, then the format under them."""
    factors = np.ones(len(w))
    form = fpq.FORMATS[bits][0]

    def rows(f: np.ndarray, form: tuple[int, int]) -> np.ndarray:
        rounded = fpq.round_floats(w, (np.abs(w).max(axis=1) * f).astype(np.float32), *form)
        return ((x @ (rounded - w).T) ** 2).mean(axis=0)

    for _ in range(3):
        tried = np.stack([rows(np.full(len(w), f), form) for f in fpq.FACTORS])
        factors = np.array(fpq.FACTORS)[tried.argmin(axis=0)]
        form = min(fpq.FORMATS[bits], key=lambda each: rows(factors, each).sum())
    return float(rows(factors, form).sum())


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("seed", range(3))
def test_the_joint_search_is_never_worse_than_three_rounds(bits: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal((100, 48)) @ random.standard_normal((48, 48))
    w = (random.standard_t(3 + seed, (10, 48)) * 0.1).astype(np.float32)
    found, form = fpq.search(w, (x.T @ x / len(x)).astype(np.float32), bits)
    ours = float(((x @ (found - w).T) ** 2).mean(axis=0).sum())
    assert form in fpq.FORMATS[bits]
    assert ours <= in_three_rounds(w, x, bits) * 1.001
    plain = fpq.round_floats(w, np.abs(w).max(axis=1), *fpq.FORMATS[bits][1])
    assert ours < float(((x @ (plain - w).T) ** 2).mean(axis=0).sum())


def test_rounded_stays_near_and_more_bits_nearer(llama: Path, tokens: np.ndarray) -> None:
    model = load(llama)
    errors = []
    for bits in (4, 6, 8):
        found = fpq.rounded(llama, scheme(f"wfp{bits}"), tokens[:2])
        assert len(found) == 14
        errors.append(np.mean([np.square(value - weight(model, name)).mean() for name, value in found.items()]))
    assert errors[0] > 4 * errors[1] > 16 * errors[2] > 0


def test_refusals(llama: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    assert "real exponent bias" in str(fpq.refuse(llama, scheme("wfp4"), "onnxruntime"))
    assert "does not offer" in str(fpq.refuse(llama, scheme("w4-g64"), "openvino"))
    with pytest.raises(CandidateFailed, match="bias"):
        fpq.apply(llama, scheme("wfp4"), "openvino", tokens, tmp_path / "out")
