"""Fake quantization agrees with the grids that the methods write."""

from pathlib import Path

import numpy as np
import pytest
import torch

from quantadvisor.advisor.risk import Job, round_activations, round_weight, schemes_at_risk, simulate
from quantadvisor.methods.affine import dequantize_groups, fake_activations, fake_tokens, quantize_groups
from quantadvisor.methods.schemes import scheme


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ..methods.conftest import write_llama

    return write_llama(tmp_path_factory.mktemp("llama") / "hf")


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


@pytest.mark.parametrize("chunk", [1, 7, 32])
def test_a_cache_that_rounds_nothing_changes_nothing(chunk: int, llama: Path) -> None:
    from quantadvisor.methods.fake import Fake, forward
    from quantadvisor.methods.observe import load

    model, row = load(llama), np.arange(3, 35)
    whole = forward(Fake(model), row)
    pieces = forward(Fake(model, keys=lambda _, k: k, values=lambda _, v: v, chunk=chunk), row)
    torch.testing.assert_close(pieces, whole, atol=1e-4, rtol=1e-4)


def test_later_chunks_read_the_rounded_cache(llama: Path) -> None:
    """With keys and values forgotten (zeros) attention gives nothing: each row is as if its block had no attention."""
    from quantadvisor.methods.fake import Fake, applied
    from quantadvisor.methods.observe import load

    model, row = load(llama), np.arange(3, 35)
    with applied(Fake(model, keys=lambda _, k: k * 0, values=lambda _, v: v * 0, chunk=8)) as logits:
        forgotten = logits(row)
    with applied(Fake(model, weight=lambda name, w: w * 0 if "o_proj" in name else w)) as logits:
        torch.testing.assert_close(forgotten, logits(row), atol=1e-4, rtol=1e-4)
    with applied(Fake(model)) as logits:
        assert (logits(row) - forgotten).abs().max() > 0.1


def test_methods_are_simulated_by_name_and_earn_their_place(llama: Path, tmp_path: Path) -> None:
    """On planted outliers: SmoothQuant, LLM.int8() and a rotation below W8A8 per tensor; caches by their bits."""
    from ..methods.conftest import plant_outliers, torch_logits

    folder = plant_outliers(llama, tmp_path / "planted")
    windows = np.random.default_rng(0).integers(3, 256, (2, 32)).astype(np.int64)
    want = np.concatenate([torch_logits(folder, row) for row in windows])
    np.save(tmp_path / "reference.npy", torch.from_numpy(want).log_softmax(-1).numpy())
    names = [("dynamic_int8", "w8a8-tensor"), ("smoothquant", "w8a8-tensor"), ("llm_int8", "w8a8-outlier"), ("rotation", "w8a8"),
             ("kivi", "fp32-kv4-kivi"), ("turboquant", "fp32-kv4-turbo"), ("turboquant", "fp32-kv2-turbo"),
             ("mixed", "w4w8-g64"), ("kv_int8", "fp32-kv8")]  # fmt: skip
    chosen = schemes_at_risk([(name, scheme(each)) for name, each in names])
    assert "mixed-w4w8-g64" not in chosen
    assert "kv_int8-fp32-kv8" not in chosen
    np.save(tmp_path / "calibration.npy", windows)
    job = Job(folder, chosen, tmp_path / "calibration.npy")
    found = simulate(job, windows, tmp_path / "reference.npy")
    kls = {name: float(rows[1].mean()) for name, rows in found.items()}
    assert set(kls) == set(chosen)
    for better in ("smoothquant-w8a8-tensor", "llm_int8-w8a8-outlier", "rotation-w8a8"):
        assert kls[better] < kls["dynamic_int8-w8a8-tensor"] / 2, kls
    assert 0 < kls["turboquant-fp32-kv4-turbo"] < kls["turboquant-fp32-kv2-turbo"]
    assert kls["kivi-fp32-kv4-kivi"] == pytest.approx(0, abs=1e-6)  # 32 tokens are its window
