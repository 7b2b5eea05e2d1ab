"""QLoRA's base against bitsandbytes, its merge against PEFT's, and what the adapters win back."""

from pathlib import Path

import numpy as np
import pytest
import torch

from quantadvisor.methods import adapters, kbit, qlora, training
from quantadvisor.methods.fake import linears
from quantadvisor.methods.kept import Arrays
from quantadvisor.methods.observe import load
from quantadvisor.methods.schemes import scheme
from quantadvisor.methods.training import Limits

from .conftest import fake_kl, kl, operators, run, torch_logits
from .test_awq import with_weights

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'quantadvisor[train]'")
NF4 = scheme("nf4-b64-dq")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "STEPS", 40)
    monkeypatch.setattr(adapters, "RATE", 5e-3)


def texts(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 256, (16, 32)).astype(np.int64)


def test_the_base_is_bitsandbytes_nf4_with_double_quantization(llama: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    model = load(llama)
    student, _ = qlora.tuned(model, NF4, texts(1), Limits(0), {})
    off = []
    for name, linear in linears(model).items():
        codes, state = functional.quantize_4bit(linear.weight.data, blocksize=64, quant_type="nf4", compress_statistics=True)
        theirs = functional.dequantize_4bit(codes, state)
        ours = student.base_model.model.get_submodule(name).base_layer.weight
        off.append(((ours.data - theirs).abs() / theirs.abs().max()).reshape(-1, 64).amax(1))
    apart = torch.cat(off)
    assert apart.max() < 0.01
    assert (apart > 1e-5).float().mean() < 0.01  # a scale in the middle between two of 256 values falls to either


def test_untrained_adapters_add_nothing(llama: Path, tokens: np.ndarray) -> None:
    student, _ = qlora.tuned(load(llama), NF4, tokens, Limits(0), {})
    with torch.no_grad():
        found = student(input_ids=torch.from_numpy(tokens[:1])).logits[0].numpy()
    np.testing.assert_allclose(found, with_weights(llama, kbit.rounded(llama, NF4, tokens), tokens[0]), atol=1e-4)


def test_merged_as_peft_merges(llama: Path) -> None:
    """And every adapter has moved."""
    found = qlora.rounded(llama, NF4, texts(1))
    student, done = qlora.tuned(load(llama), NF4, texts(1), Limits(600), {})
    assert done.steps == 40
    merged = linears(student.merge_and_unload())
    base = kbit.rounded(llama, NF4, texts(1))
    assert set(found) == set(merged) == set(base)
    for name, w in found.items():
        np.testing.assert_allclose(w, merged[name].weight.detach().numpy(), atol=1e-6)
        assert np.abs(w - base[name]).max() > 1e-3


def test_it_wins_quality_back(llama: Path, tokens: np.ndarray) -> None:
    """On text that it was not trained on."""
    from quantadvisor.methods.fake import with_weights as fake_with

    model = load(llama)
    plain = fake_kl(fake_with(model, kbit.rounded(llama, NF4, tokens)), llama, tokens)
    assert fake_kl(qlora.fake(model, NF4, texts(2)), llama, tokens) < 0.8 * plain


def test_an_interruption_changes_no_byte(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for setting, value in (("SAVE_S", 0.0), ("SAVE_SHARE", 1e9), ("SAY_S", 0.0)):
        monkeypatch.setattr(training, setting, value)
    kept: dict[str, Arrays] = {}

    def fail(line: str) -> None:
        if line.startswith("qlora: step 20 of 40"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qlora.tuned(load(llama), NF4, texts(1), Limits(600, fail), kept)
    resumed = adapters.adapters_of(qlora.tuned(load(llama), NF4, texts(1), Limits(600), kept)[0])
    whole = adapters.adapters_of(qlora.tuned(load(llama), NF4, texts(1), Limits(600), {})[0])
    for name, pair in whole.items():
        assert all(a.tobytes() == b.tobytes() for a, b in zip(pair, resumed[name], strict=True)), name


def test_the_artifact_keeps_adapters_beside_nf4(llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    """In ONNX Runtime it is the merged model; `adapter/` is that adapter, as PEFT loads it."""
    assert qlora.refuse(llama, NF4, "onnxruntime") is None
    notes = qlora.apply(llama, NF4, "onnxruntime", texts(1), tmp_path / "out", base=base, train_s=600.0)
    assert "40 steps" in notes[0]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    merged = with_weights(llama, qlora.rounded(llama, NF4, texts(1)), tokens[3])
    assert kl(merged, run(tmp_path / "out", tokens[3], chunk=8)) < 0.05 * kl(torch_logits(llama, tokens[3]), merged)
    found = operators(tmp_path / "out", tmp_path)
    assert (found["MatMulBnb4"], found["MatMulNBits"]) == (10, 1)

    from peft import PeftModel

    plain = load(llama)
    for name, w in kbit.rounded(llama, NF4, tokens).items():
        plain.get_submodule(name).weight.data = torch.from_numpy(w)
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(plain, tmp_path / "out" / adapters.FOLDER)
        np.testing.assert_allclose(loaded(input_ids=torch.from_numpy(tokens[3:4])).logits[0].numpy(), merged, atol=1e-4)


def test_refusals(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "codebook" in str(qlora.refuse(llama, NF4, "openvino"))
    assert "does not offer" in str(qlora.refuse(llama, scheme("nf4-b64"), "onnxruntime"))
    monkeypatch.setattr(adapters, "find_spec", lambda _: None)
    assert "quantadvisor[train]" in str(qlora.refuse(llama, NF4, "onnxruntime"))
