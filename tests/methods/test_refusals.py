"""A method that holds the whole model says so before it takes the memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantadvisor.documents.errors import CandidateFailed
from quantadvisor.methods import llm_qat, mixed, qlora, refusals
from quantadvisor.methods.artifact import format_of
from quantadvisor.methods.observe import load
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
