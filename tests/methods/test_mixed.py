"""Predicted KL against the KL that torch measures when the same weights are rounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantadvisor.methods.affine import dequantize_groups, quantize_groups
from quantadvisor.methods.mixed import Sensitivity, choose, note, predicted_kl, sensitivities

from .conftest import kl

LINEARS = [
    f"model.layers.{layer}.{name}"
    for layer in (0, 1)
    for name in ("attn.qkv_proj", "attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
]


def test_the_prediction_meets_what_torch_measures(llama: Path, tokens: np.ndarray) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    measured = sensitivities(llama, tokens, 32, (*LINEARS, "lm_head"))
    assert [each.name for each in measured] == LINEARS
    assert [each.weights for each in measured[:3]] == [64 * 128, 64 * 64, 64 * 128]
    assert all(each.at4 > 20 * each.at8 > 0 for each in measured)

    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    with torch.no_grad():
        exact = model(torch.from_numpy(tokens)).logits.numpy()
        for name, module in model.named_modules():
            if name.endswith("_proj"):
                w = module.weight.numpy()
                module.weight.copy_(torch.from_numpy(dequantize_groups(*quantize_groups(w, 4, 32, False), 32)))
        found = model(torch.from_numpy(tokens)).logits.numpy()
    ratio = kl(exact.reshape(-1, 256), found.reshape(-1, 256)) / sum(each.at4 for each in measured)
    assert 0.4 < ratio < 2.5


def test_the_same_twice(llama: Path, tokens: np.ndarray) -> None:
    one, two = (sensitivities(llama, tokens[:1], 64, (*LINEARS, "lm_head")) for _ in range(2))
    assert one == two


def test_predicted_kl_is_half_the_mean_square_along_the_gradient() -> None:
    x = np.array([[2, 0], [0, 4]], np.float32)
    w = np.array([[7, 0.25]], np.float32)  # step 1: the second weight is rounded to 0
    gradient = np.array([[3], [5]], np.float32)
    assert predicted_kl(x, w, gradient, 2, 4, True) == pytest.approx(0.5 * (0 + (4 * 0.25 * 5) ** 2) / 2)


def test_bytes_go_where_they_count() -> None:
    """KL a byte: b 0.8/10, a 1/100, c 0.1/100; 1.9 in all."""
    measured = [Sensitivity("a", 1, 0, 100), Sensitivity("b", 0.8, 0, 10), Sensitivity("c", 0.1, 0, 100)]
    assert choose(measured, 2) == set()
    assert choose(measured, 1.2) == {"b"}
    assert choose(measured, 0.9) == {"a", "b"}
    assert choose(measured, 0) == {"a", "b", "c"}
    assert note(measured, {"a"}) == "8 bit: 1 of 3 linears, 48% of their weights, predicted KL 0.900: a"
