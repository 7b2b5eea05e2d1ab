"""Results kept on disk: they outlive an interruption, and nothing else."""

from pathlib import Path

import numpy as np
import pytest

from quantadvisor.methods.kept import Folder, kept_beside, key

TOKENS = np.arange(6).reshape(2, 3)


def model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_arrays_come_back(tmp_path: Path) -> None:
    kept = Folder(tmp_path)
    kept["model.layers.0.q_proj"] = {"codes": np.arange(6, dtype=np.uint8).reshape(2, 3).T, "scales": np.ones(2, np.float32)}
    found = kept["model.layers.0.q_proj"]
    assert found["codes"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert (list(kept), len(kept), "other" in kept) == (["model.layers.0.q_proj"], 1, False)
    del kept["model.layers.0.q_proj"]
    with pytest.raises(KeyError):
        kept["model.layers.0.q_proj"]


def test_kept_after_an_interruption_removed_after_success(tmp_path: Path) -> None:
    folder, out = model(tmp_path / "hf"), tmp_path / "work" / "out"
    with pytest.raises(KeyboardInterrupt), kept_beside(out, folder, TOKENS, "a") as kept:
        kept["x"] = {"codes": np.ones(1)}
        raise KeyboardInterrupt
    with kept_beside(out, folder, TOKENS, "a") as kept:
        assert list(kept) == ["x"]
    assert list((tmp_path / "work").iterdir()) == []


def test_other_inputs_do_not_find_them(tmp_path: Path) -> None:
    folder, out = model(tmp_path / "hf"), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), kept_beside(out, folder, TOKENS, "a") as kept:
        kept["x"] = {"codes": np.ones(1)}
        raise KeyboardInterrupt
    with kept_beside(out, folder, TOKENS + 1, "a") as kept:
        assert len(kept) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def test_the_key_knows_what_results_depend_on(tmp_path: Path) -> None:
    folder = model(tmp_path / "hf")
    first = key(folder, TOKENS, "a")
    assert first == key(folder, TOKENS, "a")
    assert len({first, key(folder, TOKENS, "b"), key(folder, TOKENS[:1], "a"), key(folder, TOKENS.reshape(3, 2), "a")}) == 4
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert key(folder, TOKENS, "a") != first


def test_another_cpu_s_arithmetic_goes_on_from_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hessians of bfloat16 products beside those of float32 would be of neither."""
    folder, found = model(tmp_path / "model"), set()
    for units in ({}, {"avx512_bf16": True}, {"avx512_bf16": True, "amx_bf16": True}):
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda units=units: units)
        found.add(key(folder, TOKENS, "GPTQ"))
    assert len(found) == 3
