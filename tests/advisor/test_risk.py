"""Fake quantization agrees with the grids that the methods write."""

from pathlib import Path

import numpy as np
import pytest
import torch

from quantadvisor.advisor.risk import (
    REACH,
    Job,
    not_searched,
    round_activations,
    round_weight,
    schemes_at_risk,
    simulate,
)
from quantadvisor.methods.affine import dequantize_groups, fake_activations, fake_tokens, quantize_groups
from quantadvisor.methods.registry import trains
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.quality import quality_of


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


@pytest.fixture(scope="module")
def planted(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, Path, Path]:
    """A model of loud channels; windows, its fp32 log-probabilities of them, and text to calibrate on that is not theirs."""
    from ..methods.conftest import plant_outliers, torch_logits

    scratch = tmp_path_factory.mktemp("planted")
    folder = plant_outliers(llama, scratch / "hf")
    windows = np.random.default_rng(0).integers(3, 256, (2, 32)).astype(np.int64)
    want = np.concatenate([torch_logits(folder, row) for row in windows])
    np.save(scratch / "reference.npy", torch.from_numpy(want).log_softmax(-1).numpy())
    np.save(scratch / "calibration.npy", np.random.default_rng(9).integers(3, 256, (8, 32)).astype(np.int64))
    return folder, windows, scratch / "reference.npy", scratch / "calibration.npy"


def test_methods_are_simulated_by_name_and_earn_their_place(planted: tuple[Path, np.ndarray, Path, Path]) -> None:
    """On planted outliers: SmoothQuant, LLM.int8() and a rotation below W8A8 per tensor, and so is what has a scale for every
    token, ZeroQuant among it; caches by their bits."""
    folder, windows, reference, calibration = planted
    names = [("dynamic_int8", "w8a8-tensor"), ("smoothquant", "w8a8-tensor"), ("llm_int8", "w8a8-outlier"), ("rotation", "w8a8"),
             ("dynamic_int8", "w8a8"), ("zeroquant", "w8a8-g64"),
             ("kivi", "fp32-kv4-kivi"), ("turboquant", "fp32-kv4-turbo"), ("turboquant", "fp32-kv2-turbo"),
             ("kv_int4", "fp32-kv4"), ("kv_int4", "w8-g64-kv4"), ("kv_int4", "q8_0-kv4"),
             ("mixed", "w4w8-g64"), ("kv_int8", "fp32-kv8")]  # fmt: skip
    chosen = schemes_at_risk([(name, scheme(each)) for name, each in names])
    assert "mixed-w4w8-g64" not in chosen
    assert not {"kv_int8-fp32-kv8", "kv_int4-q8_0-kv4"} & set(chosen)
    found = simulate(Job(folder, chosen, calibration), windows, reference)
    kls = {name: float(rows[1].mean()) for name, rows in found.items()}
    assert set(kls) == set(chosen)
    for better in ("smoothquant-w8a8-tensor", "llm_int8-w8a8-outlier", "rotation-w8a8"):
        assert kls[better] < kls["dynamic_int8-w8a8-tensor"] / 2, kls
    for better in ("dynamic_int8-w8a8", "zeroquant-w8a8-g64"):
        assert kls[better] < kls["dynamic_int8-w8a8-tensor"] * 0.6, kls
    assert 0 < kls["kv_int4-fp32-kv4"] != kls["kv_int4-w8-g64-kv4"] > 0
    assert 0 < kls["turboquant-fp32-kv4-turbo"] < kls["turboquant-fp32-kv2-turbo"]
    assert kls["kivi-fp32-kv4-kivi"] == pytest.approx(0, abs=1e-6)  # 32 tokens are its window


def test_llm_qat_earns_its_place_on_planted_outliers(
    planted: tuple[Path, np.ndarray, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the rounding that it starts from, which is what it is without seconds, on text that it did not write."""
    from quantadvisor.methods import llm_qat

    for setting, value in (("STEPS", 60), ("RATES", {4: 3e-4}), ("SAMPLES", 24), ("LENGTH", 32)):
        monkeypatch.setattr(llm_qat, setting, value)
    folder, windows, reference, calibration = planted
    made = {"llm_qat-w4a8-kv8-token": scheme("w4a8-kv8-token")}
    before, after = (
        simulate(Job(folder, made, calibration, train_s=seconds), windows, reference)["llm_qat-w4a8-kv8-token"][1].mean()
        for seconds in (0.0, 600.0)
    )
    assert after < 0.95 * before, (before, after)


def log_p(folder: Path, windows: np.ndarray, weights: dict[str, np.ndarray] | None = None) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, value in (weights or {}).items():
            model.get_submodule(name).weight.copy_(torch.from_numpy(value))
        return torch.log_softmax(model(torch.from_numpy(windows)).logits, -1).reshape(-1, 256).numpy()


def test_methods_that_search_are_simulated_with_their_own_weights(llama: Path, tmp_path: Path) -> None:
    from quantadvisor.methods import gptq

    windows, calibration = (np.random.default_rng(seed).integers(0, 256, (4, 32)) for seed in (0, 1))
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


def test_a_search_that_starts_too_far_from_the_budget_is_not_simulated(llama: Path, tmp_path: Path) -> None:
    windows, calibration = (np.random.default_rng(seed).integers(0, 256, (2, 32)) for seed in (0, 1))
    np.save(tmp_path / "reference.npy", log_p(llama, windows))
    np.save(tmp_path / "calibration.npy", calibration)
    chosen = {f"{name}-w4-g32": scheme("w4-g32") for name in ("gptq", "rtn")}

    def found(kl_budget: float | None) -> dict[str, np.ndarray]:
        return simulate(Job(llama, chosen, tmp_path / "calibration.npy", kl_budget), windows, tmp_path / "reference.npy")

    plain = float(found(1e-9)["rtn-w4-g32"][1].mean())
    near, far = plain / REACH * 1.01, plain / REACH * 0.99
    assert set(found(None)) == set(found(near)) == set(chosen)
    assert set(found(far)) == {"rtn-w4-g32"}
    known = {name: quality_of(rows, "test", simulated=True) for name, rows in found(far).items()}
    reason = not_searched("gptq", scheme("w4-g32"), known, far)
    assert reason is not None
    assert f"{plain:.3g}" in reason
    assert not_searched("gptq", scheme("w4-g32"), known, near) is None
    assert not_searched("rtn", scheme("w4-g32"), known, far) is None
    assert "no search takes off that much" in str(not_searched("awq", scheme("w4-g32-bf16"), known, far))


def test_what_trains_is_simulated_within_its_seconds(llama: Path, tmp_path: Path) -> None:
    """Without any, LKD is the rounding that it starts from."""
    from quantadvisor.methods import fake
    from quantadvisor.methods.fake import forward
    from quantadvisor.methods.observe import load

    windows = np.random.default_rng(0).integers(3, 256, (2, 32))
    np.save(tmp_path / "calibration.npy", windows)
    with torch.no_grad():
        logits = [forward(fake.Fake(load(llama)), row).numpy() for row in windows]
    np.save(tmp_path / "reference.npy", np.concatenate(logits).astype(np.float16))
    made = {"lkd-w4a8-g64": scheme("w4a8-g64"), "zeroquant-w4a8-g64": scheme("w4a8-g64")}
    found = simulate(Job(llama, made, tmp_path / "calibration.npy"), windows, tmp_path / "reference.npy")
    assert trains("lkd")
    assert found["lkd-w4a8-g64"][1].mean() == pytest.approx(found["zeroquant-w4a8-g64"][1].mean(), rel=1e-4)
