"""Adapters trained to be merged: what is written is what was trained, and re-rounding others' loses what they won."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from quantadvisor.methods import adapters, kbit, qlora, qlora_merged, training
from quantadvisor.methods.fake import with_weights as fake_with
from quantadvisor.methods.observe import load
from quantadvisor.methods.schemes import scheme
from quantadvisor.methods.training import Limits

from .conftest import fake_kl, kl, operators, run, torch_logits
from .test_awq import with_weights

pytest.importorskip("peft", reason="peft is not installed: pip install 'quantadvisor[train]'")
NF4 = scheme("nf4-b64-dq")
RATE = adapters.RATE


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "STEPS", 40)
    monkeypatch.setattr(adapters, "RATE", 2e-3)


def texts(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 256, (16, 32)).astype(np.int64)


def test_it_wins_quality_back_where_rounding_merged_adapters_again_loses_it(
    llama: Path, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On text that none was trained on, the mean of three draws of texts: adapters kept, the same merged into NF4 and rounded
    again, and trained to be merged; at the method's own rate."""
    monkeypatch.setattr(adapters, "STEPS", 120)
    monkeypatch.setattr(adapters, "RATE", RATE)
    model, judged = load(llama), texts(9)

    def off(weights: Mapping[str, np.ndarray]) -> float:
        return fake_kl(fake_with(model, weights), llama, judged)

    lost: dict[str, list[float]] = {"kept": [], "rounded again": [], "merged": []}
    for draw in (2, 3, 4):
        kept = qlora.rounded(llama, NF4, texts(draw))
        lost["kept"].append(off(kept))
        lost["rounded again"].append(off({name: kbit.on_codebook(w, NF4) for name, w in kept.items()}))
        lost["merged"].append(off(qlora_merged.rounded(llama, NF4, texts(draw))))
    share = {name: np.mean(each) / off(kbit.rounded(llama, NF4, tokens)) for name, each in lost.items()}
    assert share["kept"] < 0.8
    assert share["rounded again"] > 0.95
    assert share["merged"] < 0.8


def test_what_is_trained_is_what_the_merged_weights_compute(llama: Path, tokens: np.ndarray) -> None:
    """The student's own logits while its sums are rounded, against a plain model with PEFT's merge of them in NF4."""
    model = load(llama)
    student, done = adapters.tuned(
        "x", model, {name: w.numpy() for name, w in plain_weights(model).items()}, texts(1), Limits(600), {}, rounding=rounding
    )
    assert done.steps == 40
    with torch.no_grad(), adapters.rounded_sums(student, rounding):
        trained = student(input_ids=torch.from_numpy(tokens[:1])).logits[0].numpy()
    merged = {name: rounding(w.numpy()) for name, w in plain_weights(student.merge_and_unload()).items()}
    np.testing.assert_allclose(with_weights(llama, merged, tokens[0]), trained, atol=1e-4)


def rounding(w: np.ndarray) -> np.ndarray:
    return kbit.on_codebook(w, NF4)


def plain_weights(model: object) -> dict[str, torch.Tensor]:
    from quantadvisor.methods.fake import linears

    return {name: linear.weight.detach().clone() for name, linear in linears(model).items()}


def test_the_artifact_is_nf4_alone(llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    """As large as NF4 without adapters, with the same operators; in ONNX Runtime it computes what was simulated."""
    assert qlora_merged.refuse(llama, NF4, "onnxruntime") is None
    notes = qlora_merged.apply(llama, NF4, "onnxruntime", texts(1), tmp_path / "out", base=base, train_s=600.0)
    assert "40 steps, merged" in notes[0]
    kbit.apply(llama, NF4, "onnxruntime", texts(1), tmp_path / "nf4", base=base)
    sizes = [{path.name: path.stat().st_size for path in (tmp_path / name).iterdir()} for name in ("out", "nf4")]
    assert sizes[0] == sizes[1]
    assert operators(tmp_path / "out", tmp_path) == operators(tmp_path / "nf4", tmp_path)
    merged = with_weights(llama, qlora_merged.rounded(llama, NF4, texts(1)), tokens[3])
    assert kl(merged, run(tmp_path / "out", tokens[3], chunk=8)) < 0.05 * kl(torch_logits(llama, tokens[3]), merged)


def test_an_interrupted_artifact_is_the_same(llama: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for setting, value in (("SAVE_S", 0.0), ("SAVE_SHARE", 1e9), ("SAY_S", 0.0)):
        monkeypatch.setattr(training, setting, value)
    monkeypatch.setattr(adapters, "STEPS", 10)

    def fail(line: str) -> None:
        if line.startswith("qlora_merged: step 5 of 10"):
            raise KeyboardInterrupt

    settings = llama, NF4, "onnxruntime", texts(1)
    with pytest.raises(KeyboardInterrupt):
        qlora_merged.apply(*settings, tmp_path / "out", base=base, train_s=600.0, say=fail)
    assert [path.name for path in tmp_path.iterdir() if ".kept-" not in path.name] == []
    for name in ("out", "whole"):
        qlora_merged.apply(*settings, tmp_path / name, base=base, train_s=600.0)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


def test_refusals(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "codebook" in str(qlora_merged.refuse(llama, NF4, "openvino"))
    assert "qlora_merged does not offer" in str(qlora_merged.refuse(llama, scheme("nf4-b64"), "onnxruntime"))
    monkeypatch.setattr(adapters, "find_spec", lambda _: None)
    assert "quantadvisor[train]" in str(qlora_merged.refuse(llama, NF4, "onnxruntime"))
