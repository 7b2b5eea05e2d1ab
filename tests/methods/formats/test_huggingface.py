"""Rewriting a folder into several files: transformers reads the same model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from quantadvisor.methods.formats import huggingface

from ..conftest import torch_logits


def test_a_large_result_takes_several_files(llama: Path, tmp_path: Path, tokens: np.ndarray,
                                            monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 100_000)
    huggingface.rewrite(llama, tmp_path / "several", lambda name, w: [(name, w * 1)], {})
    files = huggingface.shards(tmp_path / "several")
    assert [file.name for file in files] == [f"model-{at:05}-of-00004.safetensors" for at in (1, 2, 3, 4)]
    held = [[name for name, _ in huggingface.tensors(file)] for file in files]
    places = json.loads((tmp_path / "several" / huggingface.INDEX).read_text())["weight_map"]
    assert places == {name: file.name for file, names in zip(files, held, strict=True) for name in names}
    np.testing.assert_array_equal(torch_logits(tmp_path / "several", tokens[0]), torch_logits(llama, tokens[0]))

    monkeypatch.undo()
    huggingface.rewrite(tmp_path / "several", tmp_path / "one", lambda name, w: [(name, w)], {})
    assert sorted(path.name for path in (tmp_path / "one").glob("model*")) == ["model.safetensors"]
    np.testing.assert_array_equal(torch_logits(tmp_path / "one", tokens[0]), torch_logits(llama, tokens[0]))
