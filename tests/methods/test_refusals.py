"""What keeps a method from writing is said before anything is computed, what keeps others from reading it after that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantadvisor.documents.errors import CandidateFailed
from quantadvisor.methods import adapters, gptq_lora, llm_qat, mixed, qlora, refusals
from quantadvisor.methods.artifact import format_of
from quantadvisor.methods.observe import load
from quantadvisor.methods.refusals import READS
from quantadvisor.methods.registry import method
from quantadvisor.methods.schemes import scheme


def test_what_the_whole_model_takes(llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama)
    assert refusals.fp32_bytes(llama) == 4 * sum(value.numel() for value in model.parameters())


def test_free_memory_is_less_than_the_machine_has() -> None:
    psutil = pytest.importorskip("psutil")
    assert 0 < refusals.free_memory() <= psutil.virtual_memory().total


@pytest.mark.parametrize("holds", [1, 2, 5])
def test_a_model_that_does_not_fit_is_refused(holds: int, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte too few, and just enough."""
    method, name = {1: (mixed, "w4w8-g32"), 2: (qlora, "nf4-b64-dq"), 5: (llm_qat, "w8a8")}[holds]
    needed = holds * refusals.fp32_bytes(llama)
    monkeypatch.setattr(refusals, "free_memory", lambda: needed)
    assert method.refuse(llama, scheme(name), "onnxruntime") is None
    monkeypatch.setattr(refusals, "free_memory", lambda: needed - 1)
    refused = str(method.refuse(llama, scheme(name), "onnxruntime"))
    assert refused.startswith(f"{method.NAME} holds") and "whole model in float32" in refused


def test_loading_it_fails_with_the_same_line(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "free_memory", lambda: 1000)
    with pytest.raises(CandidateFailed, match=r"holds the whole model in float32, .* GB of memory are free"):
        load(llama)


@pytest.mark.parametrize(("runtime", "called"), [("onnxruntime", "ONNX"), ("openvino", "OpenVINO")])
def test_an_export_says_it_before_it_writes(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, called: str
) -> None:
    monkeypatch.setattr(refusals, "free_memory", lambda: 1000)
    with pytest.raises(CandidateFailed, match=f"^the export to {called} holds the whole model in float32"):
        format_of(runtime).export_base(llama, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_experts_that_an_export_would_leave_are_refused(runtime: str, llama: Path, tmp_path: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "qwen3_moe", "num_experts": 128}))
    for name, wanted in (("rtn", "w4-g64"), ("dynamic_int8", "w8a8")):
        if (name, runtime) != ("dynamic_int8", "openvino"):
            assert method(name).refuse(llama, scheme(wanted), runtime) is None
            assert "num_experts = 128" in str(method(name).refuse(tmp_path, scheme(wanted), runtime))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("rtn", "w4-g64-bf16"), ("gptq", "w4-g64-bf16"), ("awq", "w4-g64-bf16"), ("kbit", "nf4-b64-bf16"),
     ("llm_int8", "w8a8-outlier-fp16")],
)  # fmt: skip
def test_what_could_not_be_loaded_hides_nothing_that_could_not_be_written(
    name: str, wanted: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the package that reads a folder, an architecture without a map is refused all the same."""
    monkeypatch.setattr(refusals, "find_spec", lambda _: None)
    assert str(method(name).refuse(llama, scheme(wanted), "torch")).startswith(READS)
    config = json.loads((llama / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    assert not str(method(name).refuse(tmp_path, scheme(wanted), "torch")).startswith(READS)


def test_training_without_peft_is_refused_before_anything_is_said_of_readers(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (refusals, adapters):
        monkeypatch.setattr(module, "find_spec", lambda _: None)
    assert "peft is not installed" in str(gptq_lora.refuse(llama, scheme("w4-g64-bf16"), "torch"))
