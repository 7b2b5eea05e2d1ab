"""Double quantization against bitsandbytes' own, code by code, and the paper's memory."""

import numpy as np
import pytest

from quantadvisor.methods import double_quantization
from quantadvisor.methods.double_quantization import bits_a_parameter, doubled, restored, rounded


def scales(shape: tuple[int, ...]) -> np.ndarray:
    return np.abs(np.random.default_rng(0).standard_normal(shape)).astype(np.float32) + np.float32(0.5)


@pytest.mark.parametrize("count", [256, 1024, 300, 7])
def test_codes_are_those_of_bitsandbytes(count: int) -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    import torch

    x = scales((count,))
    found = doubled(x)
    mean = torch.from_numpy(x).mean()
    codes, state = functional.quantize_blockwise(torch.from_numpy(x) - mean, blocksize=256)
    np.testing.assert_allclose(found.offset, mean.numpy(), rtol=1e-6)
    assert (found.codes == codes.numpy()).mean() > 0.99  # the mean's last digit may move a value over an edge
    np.testing.assert_allclose(found.bounds, state.absmax.numpy(), rtol=1e-5)
    theirs = functional.dequantize_blockwise(codes, state).numpy() + mean.numpy()
    np.testing.assert_allclose(restored(found), theirs, atol=1e-2 * np.abs(x - x.mean()).max())


def test_the_papers_memory() -> None:
    """Section 3: from 0.5 to 0.127 bit a parameter, blocks of 64 and 256."""
    assert round(bits_a_parameter(64), 3) == 0.127
    found = doubled(scales((64, 256)))  # of 64 * 256 blocks of 64 weights
    stored = found.codes.size * 8 + found.bounds.size * 32
    assert stored / (64 * 256 * 64) == bits_a_parameter(64)


def test_scales_come_back_near_and_in_shape() -> None:
    x = scales((48, 9))
    assert rounded(x).shape == x.shape
    assert np.abs(rounded(x) - x).max() < 0.02 * np.abs(x - x.mean()).max()
    same = np.full(5, 3.0, np.float32)
    np.testing.assert_array_equal(rounded(same), same)
    assert double_quantization.BLOCK == 256
