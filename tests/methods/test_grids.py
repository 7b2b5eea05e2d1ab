"""Grids against ml_dtypes, torch's own casts, and the worked values of the papers."""

import ml_dtypes
import numpy as np
import pytest
import torch

from quantadvisor.methods.affine import fake_tokens
from quantadvisor.methods.grids import between, cast8, float8, in_blocks, in_groups, minifloat, symmetric

X = np.random.default_rng(0).standard_normal((7, 300)).astype(np.float32) * 3
GOLDEN = [0.1, 0.3, 1.1, 3.14159, 17, 18, 19, 300, 0.001, -0.0137]
E4M3 = [0.1015625, 0.3125, 1.125, 3.25, 16, 18, 20, 288, 0.001953125, -0.013671875]
E5M2 = [0.09375, 0.3125, 1, 3, 16, 16, 20, 320, 0.0009765625, -0.013671875]


def test_integers_per_token() -> None:
    np.testing.assert_allclose(symmetric(torch.from_numpy(X), 8).numpy(), fake_tokens(X), atol=1e-6)
    assert symmetric(torch.zeros(2, 3), 4).abs().max() == 0


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_ends_of_a_range_are_exact(bits: int) -> None:
    rounded = between(torch.from_numpy(X), bits, -1)
    assert all(len(row.unique()) <= 2**bits for row in rounded)
    for ours, row in zip(rounded, X, strict=True):
        np.testing.assert_allclose([ours.min(), ours.max()], [row.min(), row.max()], rtol=1e-6)


@pytest.mark.parametrize(("layout", "expected"), [("e4m3", E4M3), ("e5m2", E5M2)])
def test_golden_float8(layout: str, expected: list[float]) -> None:
    assert cast8(torch.tensor(GOLDEN), layout).tolist() == expected
    huge = torch.tensor([1e9, -1e9])
    top = {"e4m3": 448.0, "e5m2": 57344.0}[layout]
    assert cast8(huge, layout).tolist() == [top, -top]


@pytest.mark.parametrize(("layout", "kind", "top"), [("e4m3", "float8_e4m3fn", 448), ("e5m2", "float8_e5m2", 57344)])
def test_scaled_float8_like_ml_dtypes(layout: str, kind: str, top: float) -> None:
    scale = np.abs(X).max(axis=1, keepdims=True) / np.float32(top)
    theirs = (X / scale).astype(getattr(ml_dtypes, kind)).astype(np.float32) * scale
    np.testing.assert_allclose(float8(torch.from_numpy(X), layout).numpy(), theirs, rtol=1e-6)


@pytest.mark.parametrize(
    ("exponent", "mantissa", "grid"),
    [
        (2, 1, [0, 0.5, 1, 1.5, 2, 3, 4, 6]),
        (1, 2, [k * 6 / 7 for k in range(8)]),
        (3, 0, [0, 0.09375, 0.1875, 0.375, 0.75, 1.5, 3, 6]),
    ],
)
def test_minifloats_of_fpq(exponent: int, mantissa: int, grid: list[float]) -> None:
    """Largest value 6; E2M1 is then OCP's grid, E1M2 is uniform."""
    x = torch.linspace(-8, 8, 4001)
    found = minifloat(x, exponent, mantissa, 6.0)
    np.testing.assert_allclose(found[found >= 0].unique().numpy(), grid, atol=1e-5)
    off = np.abs(np.minimum(np.abs(x.numpy()), 6)[:, None] - np.array(grid)).min(1)
    np.testing.assert_allclose(np.abs((found - x.clamp(-6, 6)).numpy()), off, atol=1e-5)


def test_e2m1_like_ml_dtypes() -> None:
    x = np.array([0.1, 0.25, 0.26, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 5.1, 7], np.float32)
    theirs = x.astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    np.testing.assert_allclose(minifloat(torch.from_numpy(x), 2, 1, 6.0).numpy(), theirs, rtol=1e-6)


@pytest.mark.parametrize("size", [128, 64, 7])
def test_groups_and_blocks_cut_where_they_should(size: int) -> None:
    x = torch.from_numpy(X)
    cut = in_groups(x, size, lambda part: symmetric(part, 8))
    for start in range(0, 300, size):
        torch.testing.assert_close(cut[:, start : start + size], symmetric(x[:, start : start + size], 8))
    squares = in_blocks(x, size, lambda part: symmetric(part, 8, (1, 3)))
    for row in range(0, 7, size):
        for start in range(0, 300, size):
            part = x[row : row + size, start : start + size]
            torch.testing.assert_close(squares[row : row + size, start : start + size], symmetric(part, 8, None))
