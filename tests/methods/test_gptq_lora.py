"""LoRA beside GPTQ's integers: these are GPTQ's own to the bit, the adapters PEFT's, and both compute as PEFT does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from quantadvisor.methods import adapters, gptq, gptq_lora, training
from quantadvisor.methods.fake import linears
from quantadvisor.methods.fake import with_weights as fake_with
from quantadvisor.methods.formats import bridges
from quantadvisor.methods.formats import gptq as layout
from quantadvisor.methods.formats.onnx_weights import read_integers
from quantadvisor.methods.observe import load
from quantadvisor.methods.schemes import scheme
from quantadvisor.methods.training import Limits

from .conftest import fake_kl, kl, operators, run, torch_logits
from .test_awq import with_weights

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'quantadvisor[train]'")
W4 = scheme("w4-g64")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "STEPS", 40)
    monkeypatch.setattr(adapters, "RATE", 2e-3)


def texts(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 256, (16, 32)).astype(np.int64)


def test_gptqs_weights_stay_and_the_adapters_are_merged_as_peft_merges(llama: Path) -> None:
    student, done = gptq_lora.tuned(llama, W4, texts(1), Limits(600), {})
    own, found = gptq.rounded(llama, W4, texts(1)), adapters.merged(student)
    assert done.steps == 40
    for name, layer in adapters.layers_of(student).items():
        assert layer.base_layer.weight.detach().numpy().tobytes() == own[name].tobytes(), name
    by_peft = linears(student.merge_and_unload())
    assert set(found) == set(own) == set(by_peft)
    for name, w in found.items():
        np.testing.assert_allclose(w, by_peft[name].weight.detach().numpy(), atol=1e-6)
        assert np.abs(w - own[name]).max() > 1e-3


def test_it_wins_quality_back(llama: Path, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over GPTQ alone, on text that it was not trained on."""
    monkeypatch.setattr(adapters, "STEPS", 120)
    model = load(llama)
    plain = fake_kl(fake_with(model, gptq.rounded(llama, W4, texts(2))), llama, tokens)
    assert fake_kl(gptq_lora.fake(model, W4, texts(2)), llama, tokens) < 0.8 * plain


@pytest.mark.parametrize("name", ["w4-g64", "w4-g128"])
def test_the_artifact_keeps_adapters_beside_gptqs_integers(name: str, llama: Path, base: Path, tokens: np.ndarray,
                                                           tmp_path: Path) -> None:  # fmt: skip
    """In ONNX Runtime it computes what PEFT computes on the weights that its integers stand for, with `adapter/` loaded."""
    made = scheme(name)
    assert gptq_lora.refuse(llama, made, "onnxruntime") is None
    notes = gptq_lora.apply(llama, made, "onnxruntime", texts(1), tmp_path / "out", base=base, train_s=600.0)
    assert "act-order" in notes[0] and "40 steps" in notes[1]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    found = operators(tmp_path / "out", tmp_path)
    assert found["MatMulNBits"] == 11 and found["MatMul"] == 20

    gptq.apply(llama, made, "onnxruntime", texts(1), tmp_path / "gptq", base=base)
    (ours, form), (theirs, same) = (read_integers(tmp_path / folder) for folder in ("out", "gptq"))
    assert form == same and set(ours) == set(theirs)
    assert all(a.tobytes() == b.tobytes() for key in ours for a, b in zip(ours[key], theirs[key], strict=True))

    model = load(llama)
    for key, w in gptq.rounded(llama, made, texts(1)).items():
        model.get_submodule(key).weight.data = torch.from_numpy(w)
    with torch.no_grad():
        loaded = peft.PeftModel.from_pretrained(model, tmp_path / "out" / adapters.FOLDER)
        wanted = loaded(input_ids=torch.from_numpy(tokens[3:4])).logits[0].numpy()
    np.testing.assert_allclose(with_weights(llama, gptq_lora.rounded(llama, made, texts(1)), tokens[3]), wanted, atol=1e-4)
    assert kl(wanted, run(tmp_path / "out", tokens[3], chunk=8)) < 0.1 * kl(torch_logits(llama, tokens[3]), wanted)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_transformers_and_peft_load_gptqs_layout_with_the_adapter(llama: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    """By GPTQModel's kernels and PEFT's layer for them, in our runtime `torch` too. Slow: minutes of torch.compile."""
    pytest.importorskip("gptqmodel", reason="gptqmodel is not installed")
    from transformers import AutoModelForCausalLM

    from quantadvisor.profiling.runtimes.torch import open_session

    made, out = scheme("w4-g64-bf16"), tmp_path / "out"
    gptq_lora.apply(llama, made, "torch", texts(1), out, train_s=600.0)
    _, form = layout.read(out)
    assert form == (4, 64, False)
    wanted = with_weights(llama, gptq_lora.rounded(llama, made, texts(1)), tokens[3])
    loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(out), out / adapters.FOLDER)
    assert sum("GPTQ" in type(module).__name__ for module in loaded.modules()) == 14
    with torch.no_grad():
        got = loaded(input_ids=torch.from_numpy(tokens[3:4])).logits[0].float().numpy()
    session = open_session(str(out), (), 1)
    here = np.concatenate(list(session.score(tokens[3], None)))
    lost = kl(torch_logits(llama, tokens[3]), wanted)
    assert kl(wanted, got) < 0.1 * lost and kl(wanted, here) < 0.1 * lost
    seen = session.operators(tokens[3:4], None)["decode"]
    assert seen["quantized_linears"] == 14 and seen["linears"] == 15  # and lm_head
    session.close()


def test_gptqs_layout_is_written_without_the_package_that_transformers_reads_it_by(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantadvisor.methods.refusals.find_spec", lambda _: None)
    assert "through gptqmodel, which is not installed" in str(gptq_lora.refuse(llama, scheme("w4-g64-bf16"), "torch"))
    gptq_lora.apply(llama, scheme("w4-g64-bf16"), "torch", texts(1), tmp_path / "out", train_s=1.0)
    codes, form = layout.read(tmp_path / "out")
    assert (len(codes), form) == (14, (4, 64, False))
    kept = (tmp_path / "out" / adapters.FOLDER / "adapter_model.safetensors").read_bytes()
    bridges.convert(tmp_path / "out", "awq", tmp_path / "awq")
    assert (tmp_path / "awq" / adapters.FOLDER / "adapter_model.safetensors").read_bytes() == kept


def test_an_interrupted_artifact_is_the_same(llama: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for setting, value in (("SAVE_S", 0.0), ("SAVE_SHARE", 1e9), ("SAY_S", 0.0)):
        monkeypatch.setattr(training, setting, value)

    def fail(line: str) -> None:
        if line.startswith("gptq_lora: step 20 of 40"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gptq_lora.apply(llama, W4, "onnxruntime", texts(1), tmp_path / "out", base=base, train_s=600.0, say=fail)
    assert not (tmp_path / "out").exists()
    for name in ("out", "whole"):
        gptq_lora.apply(llama, W4, "onnxruntime", texts(1), tmp_path / name, base=base, train_s=600.0)
    files = {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert all((tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in files)


def test_refusals(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "writes nothing for openvino" in str(gptq_lora.refuse(llama, W4, "openvino"))
    assert "does not offer" in str(gptq_lora.refuse(llama, scheme("w8-g64"), "onnxruntime"))
    assert "…-bf16 is for" in str(gptq_lora.refuse(llama, scheme("w4-g64-bf16"), "onnxruntime"))
    monkeypatch.setattr(adapters, "find_spec", lambda _: None)
    assert "quantadvisor[train]" in str(gptq_lora.refuse(llama, W4, "onnxruntime"))
