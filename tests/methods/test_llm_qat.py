"""LLM-QAT: its own texts against transformers' generate, its grids against numpy, and plain rounding of the same scheme."""

from pathlib import Path

import numpy as np
import pytest
import torch

from quantadvisor.methods import llm_qat, training
from quantadvisor.methods.affine import fake_tokens, quantize_channels
from quantadvisor.methods.kept import Arrays
from quantadvisor.methods.observe import load
from quantadvisor.methods.schemes import scheme
from quantadvisor.methods.training import Limits

from .conftest import fake_kl, kl, operators, run, torch_logits


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting, value in (("STEPS", 60), ("RATES", {4: 3e-4, 8: 5e-5}), ("SAMPLES", 24), ("LENGTH", 32)):
        monkeypatch.setattr(llm_qat, setting, value)


def test_texts_start_greedily_as_generate_does(llama: Path) -> None:
    model = load(llama)
    found = llm_qat.written_by(model, 6, 12)
    assert found.shape == (6, 12) and found.dtype == np.int64
    assert len(set(found[:, 0])) > 1
    for row, greedy in zip(found, (3, 4, 5, 3, 4, 5), strict=True):
        start = torch.from_numpy(row[None, :1])
        theirs = model.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=greedy - 1, do_sample=False,
                                pad_token_id=0, eos_token_id=None)  # fmt: skip
        assert theirs[0].tolist() == row[:greedy].tolist()
    assert np.array_equal(found, llm_qat.written_by(model, 6, 12))


def test_what_follows_is_drawn_from_the_model(llama: Path) -> None:
    """The sixth tokens of many texts have the mean log-likelihood that the model's own distributions give: its entropy."""
    model = load(llama)
    found = llm_qat.written_by(model, 600, 6)
    with torch.no_grad():
        log_p = torch.log_softmax(model(torch.from_numpy(found)).logits[:, 4], -1)
    surprise = -log_p.gather(1, torch.from_numpy(found[:, 5:])).mean()
    entropy = -(log_p.exp() * log_p).sum(-1)
    assert float(surprise) == pytest.approx(float(entropy.mean()), rel=0.05)
    assert float(-log_p.amax(-1).mean()) < 0.8 * float(entropy.mean())  # greedy text would be seen


@pytest.mark.parametrize(("name", "bits"), [("w8a8-kv8-token", (8, 8)), ("w4a8-kv8-token", (4, 8)), ("w4a8-kv4-token", (4, 4))])
def test_grids(name: str, bits: tuple[int, int]) -> None:
    """Against integers in numpy; a token's keys share one scale over all heads."""
    draw = np.random.default_rng(0)
    of_weights, of_inputs, of_cache = llm_qat.roundings(scheme(name))
    assert of_cache
    w, x = (draw.standard_normal((12, 40)).astype(np.float32) for _ in range(2))
    if bits[0] == 8:
        codes, scales = quantize_channels(w)
        np.testing.assert_allclose(of_weights(torch.from_numpy(w)).numpy(), codes * scales[:, None], atol=1e-6)
    assert all(len(set(row)) <= 2 ** bits[0] - 1 for row in of_weights(torch.from_numpy(w)).numpy().round(6).tolist())
    np.testing.assert_allclose(of_inputs(torch.from_numpy(x)).numpy(), fake_tokens(x), atol=1e-6)
    keys = draw.standard_normal((2, 3, 5, 8)).astype(np.float32)
    top = 2 ** (bits[1] - 1) - 1
    step = np.abs(keys).max(axis=(1, 3), keepdims=True) / top
    np.testing.assert_allclose(of_cache(torch.from_numpy(keys)).numpy(), np.rint(keys / step) * step, atol=1e-6)


@pytest.mark.parametrize("name", ["w4a8-kv8-token", "w4a8-kv4-token"])
def test_below_plain_rounding(name: str, llama: Path, tokens: np.ndarray) -> None:
    """On text that is not its own."""
    model, made = load(llama), scheme(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plain = fake_kl(llm_qat.untrained(model, made), llama, tokens)
    fake = llm_qat.fake(model, made, tokens)
    assert fake_kl(fake, llama, tokens) < 0.85 * plain
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_an_interruption_changes_no_byte(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for setting, value in (("SAVE_S", 0.0), ("SAVE_SHARE", 1e9), ("SAY_S", 0.0)):
        monkeypatch.setattr(training, setting, value)
    monkeypatch.setattr(llm_qat, "STEPS", 20)
    made, kept, said = scheme("w4a8-kv4-token"), dict[str, Arrays](), []

    def fail(line: str) -> None:
        said.append(line)
        if line.startswith("llm_qat: step 11 of 20"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        llm_qat.trained(load(llama), made, Limits(600, fail), kept)
    assert said[0] == "llm_qat: the model writes 24 texts"
    resumed, _ = llm_qat.trained(load(llama), made, Limits(600), kept)
    whole, done = llm_qat.trained(load(llama), made, Limits(600), {})
    assert done.steps == 20
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_artifact_runs_int8_products(llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    made = scheme("w8a8")
    assert llm_qat.refuse(llama, made, "onnxruntime") is None
    notes = llm_qat.apply(llama, made, "onnxruntime", tokens, tmp_path / "out", base=base, train_s=600.0)
    assert "60 steps" in notes[0]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert kl(torch_logits(llama, tokens[3]), run(tmp_path / "out", tokens[3], chunk=8)) < 0.05
    found = operators(tmp_path / "out", tmp_path)
    assert (found["MatMulIntegerToFloat"], found["MatMulNBits"]) == (10, 1)


def test_refusals(llama: Path) -> None:
    for runtime in ("torch", "onnxruntime", "openvino", "llama.cpp"):
        assert "one scale a token" in str(llm_qat.refuse(llama, scheme("w4a8-kv4-token"), runtime))
    assert "does not offer" in str(llm_qat.refuse(llama, scheme("w8a8-kv8"), "onnxruntime"))
    assert "writes for" in str(llm_qat.refuse(llama, scheme("w8a8"), "openvino"))
