"""Fake quantization agrees with the grids that the methods write."""

from pathlib import Path

import numpy as np
import pytest
import torch

from quantadvisor.advisor.risk import Job, round_activations, round_weight, simulate
from quantadvisor.methods.affine import dequantize_groups, fake_activations, fake_tokens, quantize_groups
from quantadvisor.methods.schemes import scheme


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


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.15,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("risk") / "hf"
    LlamaForCausalLM(config).float().save_pretrained(folder)
    return folder


def log_p(folder: Path, windows: np.ndarray, weights: dict[str, np.ndarray] | None = None) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, value in (weights or {}).items():
            model.get_submodule(name).weight.copy_(torch.from_numpy(value))
        return torch.log_softmax(model(torch.from_numpy(windows)).logits, -1).reshape(-1, 64).numpy()


def test_methods_that_search_are_simulated_with_their_own_weights(llama: Path, tmp_path: Path) -> None:
    from quantadvisor.methods import gptq

    windows, calibration = (np.random.default_rng(seed).integers(0, 64, (4, 32)) for seed in (0, 1))
    exact = log_p(llama, windows)
    np.save(tmp_path / "reference.npy", exact)
    np.save(tmp_path / "calibration.npy", calibration)
    chosen = {f"{name}-w4-g32": scheme("w4-g32") for name in ("rtn", "gptq", "awq", "rtn")}
    found = simulate(Job(llama, chosen, tmp_path / "calibration.npy"), windows, tmp_path / "reference.npy")
    searched = log_p(llama, windows, gptq.rounded(llama, scheme("w4-g32"), calibration))
    expected = float((np.exp(exact) * (exact - searched)).sum(-1).mean())
    assert found["gptq-w4-g32"][1].mean() == pytest.approx(expected, rel=1e-3)
    means = {name: rows[1].mean() for name, rows in found.items()}
    assert means["gptq-w4-g32"] < means["rtn-w4-g32"] != means["awq-w4-g32"]
