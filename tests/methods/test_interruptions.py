"""Methods that look at calibration samples: stopped at each step that is kept, each goes on to the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from quantadvisor.methods.formats import gguf
from quantadvisor.methods.kept import Folder
from quantadvisor.methods.registry import method
from quantadvisor.methods.schemes import scheme

CASES = {
    ("gguf_imatrix", "q4_0", "llama.cpp"): (8, "8 tensors"),
    ("fp8", "fp8-static-bf16", "vllm"): (8, "8 tensors"),
    ("llm_int8", "w8a8-outlier", "onnxruntime"): (8, "8 tensors"),
    ("kv_fp8", "bf16-kvf8", "vllm"): (4, "4 tensors"),
    ("kv_int8", "fp32-kv8", "onnxruntime"): (4, "4 samples"),
    ("kv_int4", "fp32-kv4", "onnxruntime"): (4, "4 samples"),
    ("static_int8", "w8a8-static-npu", "onnxruntime"): (4, "4 samples"),
    ("smoothquant", "w8a8-static-npu", "onnxruntime"): (12, "4 samples"),
    ("mixed", "w4w8-g32", "onnxruntime"): (14, "14 linears"),
}
"""How often each keeps something of the tiny model and four samples, and what its note says in the end."""


def write_importances(source: Path, out: Path, kind: str, importance: Mapping[str, np.ndarray]) -> None:
    """In the place of llama.cpp's quantizer."""
    out.mkdir()
    for name, value in importance.items():
        np.save(out / f"{name}.npy", value)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_interrupted_at_each_step_and_resumed_gives_the_same_bytes(
    case: tuple[str, str, str], llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every run keeps one thing more and is stopped; the last one finds all of them and only writes. No layer is looked at twice,
    no sample is read twice."""
    name, made, runtime = case
    steps, said = CASES[case]
    given = base if runtime == "onnxruntime" else llama
    monkeypatch.setattr(gguf, "quantize", write_importances)
    monkeypatch.setattr(gguf, "types_note", lambda *_: ())
    settings = llama, scheme(made), runtime, tokens
    whole = method(name).apply(*settings, tmp_path / "whole", base=given)
    store, stored = Folder.__setitem__, []

    def stopped(folder: Folder, key: str, arrays: dict[str, np.ndarray]) -> None:
        store(folder, key, arrays)
        stored.append((key, int(arrays.get("read", np.zeros(1))[0])))
        raise KeyboardInterrupt

    monkeypatch.setattr(Folder, "__setitem__", stopped)
    for _ in range(steps):
        with pytest.raises(KeyboardInterrupt):
            method(name).apply(*settings, tmp_path / "out", base=given)
        assert not (tmp_path / "out").exists()
    heard: list[str] = []
    notes = method(name).apply(*settings, tmp_path / "out", base=given, say=heard.append)  # type: ignore[call-arg]
    assert len(set(stored)) == len(stored) == steps and not heard
    assert f"{said} taken from an interrupted run" in notes
    assert tuple(note for note in notes if "interrupted" not in note) == whole
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "out"}


def test_another_base_begins_anew(
    llama: Path, base: Path, planted_base: Path, tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An integer cache's scales are of the folder that it is put on, not of the model."""
    store, settings = Folder.__setitem__, (llama, scheme("fp32-kv8"), "onnxruntime", tokens, tmp_path / "out")

    def stopped(*given: object) -> None:
        store(*given)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "__setitem__", stopped)
        with pytest.raises(KeyboardInterrupt):
            method("kv_int8").apply(*settings, base=base)
    assert not any("interrupted" in note for note in method("kv_int8").apply(*settings, base=planted_base))
