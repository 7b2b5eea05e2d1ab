"""Bridges: integers of every checkpoint format -> the other formats and runtimes -> the same again, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from quantadvisor.documents import BadInput
from quantadvisor.methods.formats import awq, bitsandbytes, bridges, gptq, pack_quantized
from quantadvisor.methods.formats.onnx_base import Reader

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
    with pytest.raises(BadInput, match="holds no quantized weights"):
        bridges.read(llama)
    with pytest.raises(BadInput, match="holds no quantized weights"):
        bridges.carry(tmp_path, "onnxruntime", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_a_folder_in_another_layout(source: str, target: str, llama: Path, tmp_path: Path) -> None:
    """The layout's own reader finds the same integers and scales, and writing them back gives the first file again."""
    found = checkpoint(source, llama, tmp_path / "one", False)
    notes = bridges.convert(tmp_path / "one", target, tmp_path / "two")
    assert "14 linears" in notes[0]
    back, form = FORMATS[target].read(tmp_path / "two")
    assert form == (4, 32, False)
    same(found, back)
    bridges.convert(tmp_path / "two", source, tmp_path / "again")
    same(found, FORMATS[source].read(tmp_path / "again")[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "one", "two"]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_artifact_in_a_layout(runtime: str, llama: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    export = request.getfixturevalue("base" if runtime == "onnxruntime" else "openvino_base")
    found = checkpoint("gptq", llama, tmp_path / "one", False)
    bridges.carry(tmp_path / "one", runtime, tmp_path / "out", export)
    bridges.convert(tmp_path / "out", "awq", tmp_path / "awq", llama)
    same(found, awq.read(tmp_path / "awq")[0])
    with pytest.raises(BadInput, match="--model"):
        bridges.convert(tmp_path / "out", "awq", tmp_path / "none")


def test_a_bridge_rounds_no_scale(llama: Path, tmp_path: Path) -> None:
    found = integers(llama, 4, 32, True, "float16")
    gptq.write(llama, tmp_path / "one", brought(found), (4, 32, True))
    with pytest.raises(BadInput, match="not exact in the 16 bits that compressed-tensors"):
        bridges.convert(tmp_path / "one", "compressed-tensors", tmp_path / "two")
    with pytest.raises(BadInput, match="'exl2' is none"):
        bridges.convert(tmp_path / "one", "exl2", tmp_path / "two")
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


@pytest.mark.parametrize("double", [False, True])
def test_nf4_of_bitsandbytes_multiplies_in_onnxruntime(
    double: bool, llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path
) -> None:
    """MatMulBnb4 holds the codes that bitsandbytes itself packed, bit for bit, and the max|w| that it reads back; what is left of
    a difference from its own weights is lm_head in 8 bit."""
    functional = pytest.importorskip("bitsandbytes").functional
    import torch

    from ..conftest import kl, run

    state = load_file(llama / "model.safetensors")
    names = list(integers(llama, 4, 64, True, "float16"))
    bitsandbytes.write(llama, tmp_path / "bnb", names, "nf4", double)
    bridges.carry(tmp_path / "bnb", "onnxruntime", tmp_path / "out", base)
    made, theirs = Reader(tmp_path / "out"), {}
    for layer in (0, 1):
        root = f"model.layers.{layer}"
        rows = {f"mlp.{part}_proj": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
        rows |= {"attn.o_proj": "self_attn.o_proj", "attn.qkv_proj": "self_attn.q_proj self_attn.k_proj self_attn.v_proj"}
        for graph_name, parts in rows.items():
            packed, bounds = [], []
            for part in parts.split():
                w = torch.from_numpy(state[f"{root}.{part}.weight"])
                codes, kept = functional.quantize_4bit(w, blocksize=64, quant_type="nf4")
                packed.append(codes.numpy().reshape(-1))
                bounds.append(kept.absmax.numpy())
                theirs[f"{root}.{part}"] = functional.dequantize_4bit(codes, kept).numpy()
            stem = f"{root}.{graph_name}.MatMul.weight"
            np.testing.assert_array_equal(made.tensor(f"{stem}_NF4").reshape(-1), np.concatenate(packed), err_msg=stem)
            stored = made.tensor(f"{stem}_absmax").reshape(-1)
            if double:
                np.testing.assert_allclose(stored, np.concatenate(bounds), rtol=0.1)
            else:
                np.testing.assert_array_equal(stored, np.concatenate(bounds))
    found = bitsandbytes.read(tmp_path / "bnb") if double else theirs
    assert kl(rounded_model(llama, found, tokens[0]), run(tmp_path / "out", tokens[0])) < 2e-3


def test_nf4_goes_nowhere_else(llama: Path, tmp_path: Path) -> None:
    bitsandbytes.write(llama, tmp_path / "nf4", ["model.layers.0.mlp.up_proj"], "nf4")
    bitsandbytes.write(llama, tmp_path / "int8", ["model.layers.0.mlp.up_proj"], "int8")
    with pytest.raises(BadInput, match="openvino reads them in no artifact"):
        bridges.carry(tmp_path / "nf4", "openvino", tmp_path / "out")
    with pytest.raises(BadInput, match="another type than NF4"):
        bridges.carry(tmp_path / "int8", "onnxruntime", tmp_path / "out")
    with pytest.raises(BadInput, match="no integers in groups"):
        bridges.convert(tmp_path / "nf4", "gptq", tmp_path / "out")
    for kind in ("nf4", "int8"):
        bridges.dequantized(tmp_path / kind, tmp_path / "plain")
        found = load_file(tmp_path / "plain" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
        np.testing.assert_array_equal(found, bitsandbytes.read(tmp_path / kind)["model.layers.0.mlp.up_proj"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8", "nf4", "plain"]
