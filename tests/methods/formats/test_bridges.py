"""Bridges: integers of every checkpoint format -> the other formats and runtimes -> the same again, bit for bit."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quantadvisor.documents import BadInput
from quantadvisor.methods import awq as awq_method
from quantadvisor.methods import gptq as gptq_method
from quantadvisor.methods import rtn
from quantadvisor.methods.affine import Grouped, dequantize_groups, quantize_groups
from quantadvisor.methods.artifact import format_of
from quantadvisor.methods.formats import awq, bitsandbytes, bridges, gptq, pack_quantized
from quantadvisor.methods.formats.onnx_base import Reader
from quantadvisor.methods.linear_format import ALONE, ROW, LinearFormat
from quantadvisor.methods.schemes import scheme

from ..conftest import write_llama
from ..test_gguf import in_file
from .integers import brought, half, integers, rounded_model, same, weights

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
FORMATS = {"gptq": gptq, "awq": awq, "compressed-tensors": pack_quantized}
BITS_AND_GROUPS = [(bits, group) for bits in (4, 8) for group in (32, 64, 128)]


def held(*names: str) -> list[tuple[str, ...]]:
    """(*names, bits, group) of every form that all these formats hold: AWQ has 4 bits only."""
    return [(*names, bits, group) for bits, group in BITS_AND_GROUPS if bits == 4 or "awq" not in names]


PAIRS = [case for source in FORMATS for target in FORMATS for case in held(source, target)]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 128 and 256, which groups of 128 divide."""
    return write_llama(tmp_path_factory.mktemp("wide") / "hf", hidden_size=128, intermediate_size=256)


@pytest.fixture(scope="module")
def exports(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def export(runtime: str) -> Path:
        if runtime == "openvino":
            pytest.importorskip("optimum.intel")
        out = tmp_path_factory.mktemp(runtime) / "base"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own deprecations
            format_of(runtime).export_base(wide, out)
        return out

    return export


def checkpoint(kind: str, model: Path, folder: Path, symmetric: bool, bits: int = 4, group: int = 32) -> dict[str, Grouped]:
    """A checkpoint whose scales bfloat16 holds, so that every format holds them."""
    found = integers(model, bits, group, symmetric, "bfloat16")
    FORMATS[kind].write(model, folder, brought(found), LinearFormat(bits, group, symmetric))
    return found


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("source", "target", "bits", "group"), PAIRS)
def test_between_checkpoints(
    source: str, target: str, bits: int, group: int, symmetric: bool, wide: Path, tmp_path: Path
) -> None:
    found = checkpoint(source, wide, tmp_path / "one", symmetric, bits, group)
    there, form = bridges.read(tmp_path / "one")
    assert form == (bits, group, symmetric and source != "awq")
    FORMATS[target].write(wide, tmp_path / "two", brought(there), LinearFormat(bits, group, symmetric))
    back, _ = bridges.read(tmp_path / "two")
    same(found, back)
    if source == target:
        assert (tmp_path / "one" / "model.safetensors").read_bytes() == (tmp_path / "two" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("source", "bits", "group"), [case for source in FORMATS for case in held(source)])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_into_a_runtime_and_back(
    runtime: str, source: str, bits: int, group: int, symmetric: bool, wide: Path, tmp_path: Path, exports: Callable[[str], Path]
) -> None:
    """AWQ's layout always has zeros, so that symmetric integers come out of it as ones whose zeros are all in the middle."""
    export = exports(runtime)
    found = checkpoint(source, wide, tmp_path / "one", symmetric, bits, group)
    notes = bridges.carry(tmp_path / "one", runtime, tmp_path / "out", export)
    assert "14 linears" in notes[0]
    back, form = bridges.read(tmp_path / "out")
    assert form == (bits, group, symmetric and source != "awq")
    same(found, back)
    FORMATS[source].write(wide, tmp_path / "again", brought(back), form)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "one" / "model.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "one", "out"]


@pytest.mark.parametrize("bits", [4, 8])
def test_a_short_last_group_where_a_format_allows_it(
    bits: int, base: Path, llama: Path, tokens: np.ndarray, tmp_path: Path
) -> None:
    """Groups of 128 over rows of 64: GPTQ's layout and MatMulNBits hold them, the others say no before anything is written."""
    from ..conftest import kl, run

    found = checkpoint("gptq", llama, tmp_path / "one", False, bits, 128)
    bridges.carry(tmp_path / "one", "onnxruntime", tmp_path / "onnx", base)
    back, form = bridges.read(tmp_path / "onnx")
    assert form == (bits, 128, False)
    same(found, back)
    assert kl(rounded_model(llama, weights(found, 128), tokens[0]), run(tmp_path / "onnx", tokens[0])) < 2e-3
    bridges.convert(tmp_path / "onnx", "gptq", tmp_path / "again", llama)
    same(found, bridges.read(tmp_path / "again")[0])
    with pytest.raises(BadInput, match="groups of compressed-tensors divide a row, and 128 does not divide 64"):
        bridges.convert(tmp_path / "one", "compressed-tensors", tmp_path / "no")
    with pytest.raises(BadInput, match="groups of openvino divide a row, and 128 does not divide 64"):
        bridges.carry(tmp_path / "one", "openvino", tmp_path / "no")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "one", "onnx"]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
def test_one_scale_a_row_between_checkpoints(source: str, target: str, symmetric: bool, llama: Path, tmp_path: Path) -> None:
    """Group size -1: AutoGPTQ's and AutoAWQ's word for it, `channel` in compressed-tensors."""
    found = checkpoint(source, llama, tmp_path / "one", symmetric, 4, ROW)
    bridges.convert(tmp_path / "one", target, tmp_path / "two")
    back, form = bridges.read(tmp_path / "two")
    assert form == (4, ROW, symmetric and "awq" not in (source, target))
    same(found, back)
    said = json.loads((tmp_path / "two" / "config.json").read_text())["quantization_config"]
    if target == "compressed-tensors":
        [group] = said["config_groups"].values()
        assert (group["weights"]["strategy"], group["weights"]["group_size"]) == ("channel", None)
    else:
        assert said["group_size"] == -1


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("source", FORMATS)
def test_one_scale_a_row_in_a_graph_is_that_of_each_of_its_groups(
    source: str, runtime: str, llama: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    export = request.getfixturevalue("base" if runtime == "onnxruntime" else "openvino_base")
    found = checkpoint(source, llama, tmp_path / "one", False, 4, ROW)
    notes = bridges.carry(tmp_path / "one", runtime, tmp_path / "out", export)
    assert "repeated for its groups of 64" in notes[1]
    back, form = bridges.read(tmp_path / "out")
    assert form == (4, 64, False)
    exact = weights(found, ROW)
    for name, w in weights(back, 64).items():
        np.testing.assert_array_equal(back[name].codes, found[name].codes)
        np.testing.assert_array_equal(w, exact[name], err_msg=name)


def test_rows_that_no_group_divides_are_refused(tmp_path: Path) -> None:
    odd = write_llama(tmp_path / "hf", hidden_size=80, intermediate_size=144)
    checkpoint("gptq", odd, tmp_path / "one", False, 4, ROW)
    with pytest.raises(BadInput, match=r"none of \(128, 64, 32\) divides all rows that have one scale, 80, 144 wide"):
        bridges.carry(tmp_path / "one", "onnxruntime", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_columns_in_any_order_go_nowhere_but_into_floats(llama: Path, tmp_path: Path) -> None:
    """Act-order: one linear of the folder has its columns' groups shuffled. Its weights are read right, and all others'."""
    found = checkpoint("gptq", llama, tmp_path / "one", False)
    file = tmp_path / "one" / "model.safetensors"
    state, name = load_file(file), "model.layers.1.mlp.up_proj"
    places = np.random.default_rng(0).permutation(state[f"{name}.g_idx"])
    save_file(state | {f"{name}.g_idx": places}, file, {"format": "pt"})
    want = weights(found, 32)
    one = found[name]
    want[name] = (one.codes.astype(np.float32) - one.zeros[:, places]) * one.scales[:, places]
    back, form = bridges.read(tmp_path / "one")
    assert form == (4, ALONE, False)
    bridges.dequantized(tmp_path / "one", tmp_path / "plain")
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    for linear, w in want.items():
        np.testing.assert_array_equal(dequantize_groups(*back[linear], ALONE), w, err_msg=linear)
        np.testing.assert_array_equal(plain[f"{linear}.weight"], w, err_msg=linear)
    for layout in FORMATS:
        with pytest.raises(BadInput, match=rf"{layout} holds groups of neighbours.*act-order"):
            bridges.convert(tmp_path / "one", layout, tmp_path / "two")
    for runtime in ("onnxruntime", "onnxruntime-genai", "openvino"):
        with pytest.raises(BadInput, match=r"holds groups of neighbours.*act-order.*torch and vllm read"):
            bridges.carry(tmp_path / "one", runtime, tmp_path / "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "plain"]


@pytest.mark.parametrize(
    ("bits", "group", "target", "said"),
    [
        (3, 32, "onnxruntime", "onnxruntime holds integers of 2, 4, 8 bits, not of 3"),
        (2, 32, "openvino", "openvino holds integers of 4, 8 bits, not of 2"),
        (4, 8, "onnxruntime-genai", "blocks of MatMulNBits are powers of two from 16 on, not 8"),
        (8, 32, "awq", "awq holds integers of 4 bits, not of 8; take the layout gptq"),
        (3, 32, "llama.cpp", "llama.cpp holds integers of 4, 8 bits, not of 3"),
        (4, 16, "llama.cpp", "blocks of GGUF hold 32 weights, which do not divide groups of 16"),
        (4, 32, "llama.cpp", "has zero points, or scales that float16 does not hold"),
        (4, 32, "torch", "torch has no format here for integers in groups"),
    ],
)
def test_what_a_format_cannot_hold_is_one_line(
    bits: int, group: int, target: str, said: str, llama: Path, tmp_path: Path
) -> None:
    checkpoint("gptq", llama, tmp_path / "one", False, bits, group)
    with pytest.raises(BadInput, match=said) as caught:
        (bridges.convert if target in FORMATS else bridges.carry)(tmp_path / "one", target, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


@pytest.mark.parametrize(
    ("source", "bits", "group"),
    [("gptq", 4, 32), ("gptq", 4, 128), ("gptq", 4, ROW), ("gptq", 8, 64), ("awq", 4, 64), ("compressed-tensors", 8, 32)],
)
def test_symmetric_integers_are_ggufs_blocks(source: str, bits: int, group: int, wide: Path, tmp_path: Path) -> None:
    """By the gguf package's own reader: the very weights, linear by linear. AWQ's zeros are all in the middle."""
    found = checkpoint(source, wide, tmp_path / "one", True, bits, group)
    notes = bridges.carry(tmp_path / "one", "llama.cpp", tmp_path / "out")
    assert "14 linears with the codes of one" in notes[0]
    stored, exact = in_file(tmp_path / "out", wide), weights(found, group)
    assert {kind for kind, _ in stored.values()} == {f"q{bits}_0"}
    for name, (_, w) in stored.items():
        np.testing.assert_array_equal(w, exact[name], err_msg=name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "out"]


@pytest.mark.parametrize("runtime", ["torch", "vllm"])
@pytest.mark.parametrize("method", [rtn, gptq_method, awq_method])
def test_our_own_symmetric_4_bit_is_q4_0(method: Any, runtime: str, wide: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    """From GPTQ's layout and from compressed-tensors, in groups of 128: the very weights, by the gguf package's reader."""
    method.apply(wide, scheme("w4-g128-sym-bf16"), runtime, tokens[:2], tmp_path / "one")
    settings = json.loads((tmp_path / "one" / "config.json").read_text())["quantization_config"]
    assert settings.get("sym", True) and settings.get("checkpoint_format", "gptq") == "gptq"
    found, form = bridges.read(tmp_path / "one")
    assert form == (4, 128, True)
    bridges.carry(tmp_path / "one", "llama.cpp", tmp_path / "out")
    stored, exact = in_file(tmp_path / "out", wide), weights(found, 128)
    assert {kind for kind, _ in stored.values()} == {"q4_0"}
    for name, (_, w) in stored.items():
        np.testing.assert_array_equal(w, exact[name], err_msg=name)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_our_own_symmetric_4_bit_in_a_graph(
    runtime: str, wide: Path, tokens: np.ndarray, tmp_path: Path, exports: Callable[[str], Path]
) -> None:
    """No zero points beside the codes, which are those of the arithmetic."""
    rtn.apply(wide, scheme("w4-g128-sym"), runtime, tokens, tmp_path / "out", base=exports(runtime))
    found, form = bridges.read(tmp_path / "out")
    assert form == (4, 128, True)
    exact = load_file(wide / "model.safetensors")
    same(found, {name: quantize_groups(exact[f"{name}.weight"], *form) for name in found})


def test_compressed_tensors_decompresses_our_own_symmetric_4_bit(wide: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    import torch
    from safetensors.torch import load_file as load_torch

    gptq_method.apply(wide, scheme("w4-g128-sym-bf16"), "vllm", tokens[:2], tmp_path / "out")
    state, (found, _) = load_torch(tmp_path / "out" / "model.safetensors"), bridges.read(tmp_path / "out")
    for name, w in weights(found, 128).items():
        shape = torch.Size(state[f"{name}.weight_shape"].tolist())
        codes = helpers.unpack_from_int32(state[f"{name}.weight_packed"], 4, shape).float()
        scales = state[f"{name}.weight_scale"].float().repeat_interleave(128, 1)
        np.testing.assert_array_equal((codes * scales).numpy(), w, err_msg=name)
        assert f"{name}.weight_zero_point" not in state


def test_llama_cpp_computes_with_a_checkpoints_codes(llama: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama.cpp is not here: make runtime-llama")
    from quantadvisor.profiling.runtimes.llama_cpp import open_session

    from ..conftest import kl, torch_logits

    found = checkpoint("gptq", llama, tmp_path / "one", True, 4, ROW)
    bridges.carry(tmp_path / "one", "llama.cpp", tmp_path / "out")
    session = open_session(str(tmp_path / "out"), (), 1)
    ours = np.concatenate(list(session.score(tokens[0], None)))
    session.close()
    theirs = rounded_model(llama, weights(found, ROW), tokens[0])
    assert kl(theirs, ours) < kl(torch_logits(llama, tokens[0]), ours) / 20


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
