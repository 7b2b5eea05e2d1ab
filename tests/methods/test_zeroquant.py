"""ZeroQuant's two grids against the numpy arithmetic that artifacts are written with."""

from pathlib import Path

import numpy as np
import pytest
import torch

from quantadvisor.methods import zeroquant
from quantadvisor.methods.affine import dequantize_groups, fake_tokens, quantize_groups
from quantadvisor.methods.schemes import scheme

from .conftest import fake_kl


@pytest.mark.parametrize(("name", "bits"), [("w8a8-g64", 8), ("w4a8-g64", 4)])
@pytest.mark.parametrize("width", [128, 100])
def test_groups_of_weights_and_tokens_of_activations(name: str, bits: int, width: int) -> None:
    draw = np.random.default_rng(width)
    w, x = (draw.standard_normal((24, width)).astype(np.float32) for _ in range(2))
    made = zeroquant.fake(None, scheme(name), x)
    assert made.weight and made.inputs
    theirs = dequantize_groups(*quantize_groups(w, bits, 64, True), 64)
    np.testing.assert_allclose(made.weight("", torch.from_numpy(w)).numpy(), theirs, atol=1e-5)
    np.testing.assert_allclose(made.inputs("", torch.from_numpy(x)).numpy(), fake_tokens(x), atol=1e-5)


def test_eight_bits_below_four(llama: Path, tokens: np.ndarray) -> None:
    from quantadvisor.methods.observe import load

    eight, four = (fake_kl(zeroquant.fake(load(llama), scheme(f"w{b}a8-g64"), tokens), llama, tokens[:2]) for b in (8, 4))
    assert 0 < eight < four / 5


def test_refusals(llama: Path) -> None:
    assert "accuracy level 4" in str(zeroquant.refuse(llama, scheme("w4a8-g64"), "onnxruntime"))
    assert "does not offer" in str(zeroquant.refuse(llama, scheme("w8a8"), "onnxruntime"))
