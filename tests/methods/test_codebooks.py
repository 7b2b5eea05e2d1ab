"""Number types against the tables of bitsandbytes 0.50.2 and the papers, ml_dtypes, and a loop for the blocks."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from quantadvisor.methods import codebooks

NF4 = [
    -1, -0.69619280, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0, 0.07958030, 0.16093020, 0.24611230,
    0.33791524, 0.44070983, 0.56261700, 0.72295684, 1,
]  # fmt: skip
"""arXiv:2305.14314, appendix E, and bitsandbytes' create_normal_map()."""


def test_nf4_is_the_papers_table() -> None:
    np.testing.assert_allclose(codebooks.normal_floats(4), NF4, atol=2e-7)


def test_dynamic_is_bitsandbytes() -> None:
    np.testing.assert_allclose(codebooks.dynamic(3), [-0.775, -0.325, -0.055, 0, 0.055, 0.325, 0.775, 1])
    half = [0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875]
    np.testing.assert_allclose(codebooks.dynamic(4), [-x for x in half[::-1]] + [0, *half, 1])


@pytest.mark.parametrize("bits", range(3, 9))
def test_sizes_and_ranges(bits: int) -> None:
    for made, size in ((codebooks.integers, 2**bits - 1), (codebooks.quantiles, 2**bits), (codebooks.normal_floats, 2**bits),
                       (codebooks.dynamic, 2**bits)):  # fmt: skip
        values = made(bits)
        assert len(values) == size
        assert (np.diff(values) > 0).all()
        assert (values.max(), values.min() >= -1) == (1, True)


def test_quantiles_are_equally_likely() -> None:
    positive = [0.102541, 0.318604, 0.578277, 1]
    np.testing.assert_allclose(codebooks.quantiles(3), [-x for x in positive[::-1]] + positive, atol=1e-6)
    x = np.random.default_rng(0).standard_normal(200_000) / 2.1538747  # norm.ppf(31 / 32): the largest 4-bit median is at 1
    counts = np.bincount(codebooks.nearest(np.clip(x, -1, 1).astype(np.float32), codebooks.quantiles(4)), minlength=16)
    assert counts[1:15].std() / counts[1:15].mean() < 0.1


def test_floats_are_ocp_e2m1() -> None:
    codes = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    np.testing.assert_array_equal(codebooks.floats(2, 1), np.unique(codes) / 6)


def test_floats_are_e4m3_where_both_have_codes() -> None:
    """E4M3 of OCP gives up its largest value, 480, for NaN."""
    codes = np.arange(256, dtype=np.uint16).astype(np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    ours = codebooks.floats(4, 3) * 480
    np.testing.assert_allclose(ours[np.abs(ours) < 480], np.unique(codes[np.isfinite(codes)]))


def test_three_grids_called_fp4_differ() -> None:
    smallest = codebooks.floats(2, 1)
    assert smallest[smallest > 0].min() == pytest.approx(1 / 12)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("width", [64, 70])
def test_blocks_by_a_loop(centred: bool, width: int) -> None:
    w = (np.random.default_rng(width).standard_normal((4, width)) + 0.3).astype(np.float32)
    book = codebooks.normal_floats(4)
    found = codebooks.quantize_blocks(w, book, 32, centred)
    for n in range(4):
        for at in range(0, width, 32):
            part = w[n, at : at + 32].astype(np.float64)
            middle = part.mean() if centred else 0.0
            bound = np.abs(part - middle).max()
            for value, ours in zip(part, found[n, at : at + 32], strict=True):
                best = min(book, key=lambda code, x=value: abs(code - (x - middle) / bound))
                assert ours == pytest.approx(best * bound + middle, abs=1e-5)


def test_any_codebook_and_an_empty_block() -> None:
    w = np.array([[0, 0, 0, 0, 4, -1, 2.9, 3.1]], np.float32)
    assert codebooks.quantize_blocks(w, np.array([-0.25, 0, 0.75, 1]), 4).tolist() == [[0, 0, 0, 0, 4, -1, 3, 3]]


def test_the_error_of_nf4_on_normal_numbers() -> None:
    """bitsandbytes on torch.manual_seed(0) randn(64, 256): MSE .00789981, .00862066, .01002027 for blocks 32, 64, 256."""
    import torch

    torch.manual_seed(0)
    w = torch.randn(64, 256).numpy()
    for block, expected in ((32, 0.00789981), (64, 0.00862066), (256, 0.01002027)):
        found = np.square(codebooks.quantize_blocks(w, codebooks.normal_floats(4), block) - w).mean()
        assert found == pytest.approx(expected, rel=1e-5)


def test_expected_order_on_normal_numbers() -> None:
    """Mean square errors at 4 bit in blocks of 64: NF4 < quantile, float < int; and small blocks below large ones."""
    w = np.random.default_rng(3).standard_normal((256, 1024)).astype(np.float32)

    def error(book: np.ndarray, block: int = 64) -> float:
        return float(np.square(codebooks.quantize_blocks(w, book, block) - w).mean())

    four = {name: error(book) for name, book in (("nf", codebooks.normal_floats(4)), ("int", codebooks.integers(4)),
                                                 ("e2m1", codebooks.floats(2, 1)))}  # fmt: skip
    assert four["nf"] < four["e2m1"] < four["int"]
    assert error(codebooks.normal_floats(4), 64) < error(codebooks.normal_floats(4), 1024)


@pytest.mark.parametrize("width", [128, 96])
def test_blocks_of_codes_are_the_rounded_weights(width: int) -> None:
    w = np.random.default_rng(0).standard_normal((9, width)).astype(np.float32)
    w[3] = 0
    nf4 = codebooks.normal_floats(4)
    blocks = codebooks.to_blocks(w, nf4, 64)
    assert blocks.codes.shape == w.shape and blocks.bounds.shape == (9, 2)
    np.testing.assert_array_equal(codebooks.from_blocks(blocks, nf4, 64), codebooks.quantize_blocks(w, nf4, 64))
    bnb = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    import torch

    if width % 64 == 0:
        codes, state = bnb.quantize_4bit(torch.from_numpy(w), blocksize=64, quant_type="nf4", compress_statistics=False)
        flat = blocks.codes.reshape(-1)
        np.testing.assert_array_equal(codes.numpy().reshape(-1), flat[::2] << 4 | flat[1::2])
        np.testing.assert_array_equal(state.absmax.numpy(), blocks.bounds.reshape(-1))
        values = bnb.dequantize_4bit(codes, state).numpy()
        np.testing.assert_allclose(values, codebooks.from_blocks(blocks, nf4, 64), atol=1e-6)
