"""Fake quantization agrees with the grids that the methods write."""

import numpy as np
import pytest
import torch

from quantadvisor.advisor.risk import round_activations, round_weight
from quantadvisor.methods.affine import dequantize_groups, fake_activations, fake_tokens, quantize_groups


@pytest.mark.parametrize(("bits", "symmetric"), [(4, False), (8, True)])
def test_weights_against_the_methods_own_grid(bits: int, symmetric: bool) -> None:
    w = np.random.default_rng(0).standard_normal((24, 128)).astype(np.float32)
    ours = round_weight(torch.from_numpy(w), bits, 64, symmetric).numpy()
    theirs = dequantize_groups(*quantize_groups(w, bits, 64, symmetric), 64)
    step = np.abs(w).max() / 2 ** (bits - 1)
    assert np.abs(ours - theirs).max() < 1.01 * step
    assert np.mean(np.abs(ours - theirs) < 1e-5) > 0.97


def test_activations_against_the_methods_own_rounding() -> None:
    x = np.random.default_rng(1).standard_normal((16, 64)).astype(np.float32)
    assert round_activations(torch.from_numpy(x), True).numpy() == pytest.approx(fake_tokens(x), abs=2e-2)
    assert round_activations(torch.from_numpy(x), False).numpy() == pytest.approx(fake_activations(x), abs=4e-2)
