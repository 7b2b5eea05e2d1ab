"""Bridges: integers of every checkpoint format -> the other formats and runtimes -> the same again, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from quantadvisor.documents import BadInput
from quantadvisor.methods.formats import awq, bridges, gptq, pack_quantized

from .integers import brought, half, integers, rounded_model, same, weights

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
FORMATS = {"gptq": gptq, "awq": awq, "compressed-tensors": pack_quantized}


def checkpoint(kind: str, llama: Path, folder: Path, symmetric: bool) -> dict:
    """A checkpoint whose scales bfloat16 holds, so that every format holds them."""
    found = integers(llama, 4, 32, symmetric, "bfloat16")
    FORMATS[kind].write(llama, folder, brought(found), (4, 32, symmetric))
    return found


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
def test_between_checkpoints(source: str, target: str, symmetric: bool, llama: Path, tmp_path: Path) -> None:
    found = checkpoint(source, llama, tmp_path / "one", symmetric)
    there, _ = bridges.read(tmp_path / "one")
    FORMATS[target].write(llama, tmp_path / "two", brought(there), (4, 32, symmetric))
    back, _ = bridges.read(tmp_path / "two")
    same(found, back)
    if source == target:
        assert (tmp_path / "one" / "model.safetensors").read_bytes() == (tmp_path / "two" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_into_a_runtime_and_back(
    runtime: str, source: str, symmetric: bool, llama: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """AWQ's layout always has zeros, so that symmetric integers come out of it as ones whose zeros are all in the middle."""
    export = request.getfixturevalue("base" if runtime == "onnxruntime" else "openvino_base")
    found = checkpoint(source, llama, tmp_path / "one", symmetric)
    notes = bridges.carry(tmp_path / "one", runtime, tmp_path / "out", export)
    assert "14 linears" in notes[0]
    back, form = bridges.read(tmp_path / "out")
    assert form == (4, 32, symmetric and source != "awq")
    same(found, back)
    FORMATS[source].write(llama, tmp_path / "again", brought(back), form)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "one" / "model.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "one", "out"]


def test_awqs_integers_multiply_in_onnxruntime(llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    """The carried artifact computes what the checkpoint's weights compute; lm_head in 8 bit is what is left of a difference."""
    from ..conftest import kl, run

    found = checkpoint("awq", llama, tmp_path / "awq", False)
    bridges.carry(tmp_path / "awq", "onnxruntime", tmp_path / "out", base)
    assert kl(rounded_model(llama, weights(found, 32), tokens[0]), run(tmp_path / "out", tokens[0])) < 2e-3


def test_dequantized_is_a_plain_folder(llama: Path, tmp_path: Path) -> None:
    found = weights(checkpoint("awq", llama, tmp_path / "awq", False), 32)
    bridges.dequantized(tmp_path / "awq", tmp_path / "plain")
    exact, plain = (load_file(folder / "model.safetensors") for folder in (llama, tmp_path / "plain"))
    assert set(plain) == set(exact)
    for name, w in plain.items():
        want = found.get(name.removesuffix(".weight"), half(exact[name], "float16"))
        np.testing.assert_array_equal(w, want, err_msg=name)
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())


def test_a_folder_without_integers_is_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no integer weights"):
        bridges.read(llama)
    with pytest.raises(BadInput, match="holds no integer weights"):
        bridges.carry(tmp_path, "onnxruntime", tmp_path / "out")
    assert not (tmp_path / "out").exists()
