"""compressed-tensors folders: what is stored, against plain arithmetic and against the library that named the format."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from quantadvisor.methods.affine import Grouped
from quantadvisor.methods.formats import compressed
from quantadvisor.methods.rescale import pairs


@pytest.fixture(scope="module")
def written(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compressed") / "w8a8"
    compressed.quantize_w8a8(llama, out)
    return out


def test_codes_times_scales_are_within_half_a_step_of_the_weights(llama: Path, written: Path) -> None:
    exact, state = load_file(llama / "model.safetensors"), load_file(written / "model.safetensors")
    linears = [name for name in exact if name.endswith("_proj.weight")]
    assert len(linears) == 2 * 7
    for name in linears:
        codes, scale = state[name], state[name.removesuffix("weight") + "weight_scale"]
        assert (codes.dtype, tuple(scale.shape)) == (torch.int8, (len(codes), 1))
        step = exact[name].abs().amax(1, keepdim=True) / 127
        assert ((codes * step - exact[name]).abs() <= step * 0.5001).all()
        assert torch.allclose(scale.float(), step, rtol=2**-8)  # scales are stored in bfloat16


def test_given_integers_are_stored_as_they_are(llama: Path, written: Path, tmp_path: Path) -> None:
    """All 256 codes about 128, as int8; every other tensor and the config are those of the plain folder."""
    plain = load_file(written / "model.safetensors")
    draw = np.random.default_rng(0)
    given = {
        name.removesuffix(".weight"): Grouped(
            draw.permuted(np.arange(w.numel()) % 256).reshape(w.shape).astype(np.uint8),
            draw.uniform(0.5, 2, (len(w), 1)).astype(np.float32),
            np.full((len(w), 1), 128, np.uint8),
        )
        for name, w in plain.items()
        if w.dtype == torch.int8
    }
    compressed.write_w8a8(llama, tmp_path / "given", {name: partial(given.get, name) for name in given})
    found = load_file(tmp_path / "given" / "model.safetensors")
    assert found.keys() == plain.keys()
    for name, integers in given.items():
        stored = found.pop(f"{name}.weight")
        assert stored.dtype == torch.int8
        np.testing.assert_array_equal(stored.numpy().astype(int), integers.codes.astype(int) - 128)
        assert torch.equal(found.pop(f"{name}.weight_scale"), torch.from_numpy(integers.scales).to(torch.bfloat16))
    assert all(torch.equal(w, plain[name]) for name, w in found.items())
    assert (tmp_path / "given" / "config.json").read_bytes() == (written / "config.json").read_bytes()


def test_fp8_codes_are_torchs_own_and_the_library_reads_them(llama: Path, tmp_path: Path) -> None:
    compressed.quantize_fp8(llama, tmp_path / "fp8")
    exact, state = load_file(llama / "model.safetensors"), load_file(tmp_path / "fp8" / "model.safetensors")
    for name in [name for name in exact if name.endswith("_proj.weight")]:
        codes, scale = state[name], state[name.removesuffix("weight") + "weight_scale"]
        assert (codes.dtype, scale.dtype, tuple(scale.shape)) == (torch.float8_e4m3fn, torch.bfloat16, (len(codes), 1))
        assert (codes.float().abs().amax(1) >= 416).all()  # the largest of a row: 448, or its neighbour as the scale was rounded
        error = (codes.float() * scale.float() - exact[name]).abs()
        assert (error <= exact[name].abs() * (2**-4 + 2**-8) + scale * 2**-10).all()  # half of 2^-3, clipping, half a subnormal
    library = pytest.importorskip("compressed_tensors.quantization")
    settings = json.loads((tmp_path / "fp8" / "config.json").read_text())["quantization_config"]
    group = library.QuantizationConfig.model_validate(settings).config_groups["group_0"]
    assert (group.weights.num_bits, group.weights.type, group.weights.strategy) == (8, "float", "channel")
    assert (group.input_activations.type, group.input_activations.strategy) == ("float", "token")


def test_everything_else_is_bfloat16_and_the_config_says_so(llama: Path, written: Path) -> None:
    state = load_file(written / "model.safetensors")
    assert {str(w.dtype) for n, w in state.items() if not n.endswith("_proj.weight")} == {"torch.bfloat16"}
    config = json.loads((written / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["quantization_config"]["ignore"] == ["lm_head"]
    assert (written / "tokenizer.json").read_bytes() == (llama / "tokenizer.json").read_bytes()


def test_the_library_reads_the_config_as_w8a8(written: Path) -> None:
    library = pytest.importorskip("compressed_tensors.quantization")
    config = library.QuantizationConfig.model_validate(json.loads((written / "config.json").read_text())["quantization_config"])
    group = config.config_groups["group_0"]
    assert (group.weights.num_bits, group.weights.strategy) == (8, "channel")
    assert (group.input_activations.num_bits, group.input_activations.strategy) == (8, "token")
    assert group.input_activations.dynamic is True


def test_scales_are_moved_before_rounding(llama: Path, tmp_path: Path) -> None:
    pair = pairs(json.loads((llama / "config.json").read_text()))[0]
    exact = load_file(llama / "model.safetensors")
    scale = np.linspace(0.5, 2, 64).astype(np.float32)
    compressed.quantize_w8a8(llama, tmp_path / "out", [(pair, scale)])
    state = load_file(tmp_path / "out" / "model.safetensors")
    name = pair.targets[0]
    got = state[f"{name}.weight"] * state[f"{name}.weight_scale"].float()
    want = exact[f"{name}.weight"] * torch.from_numpy(scale)
    assert (got - want).abs().max() <= want.abs().max() / 127
    norm = state[f"{pair.source}.weight"].float()
    assert torch.allclose(norm, exact[f"{pair.source}.weight"] / torch.from_numpy(scale), rtol=2**-7)


def test_a_ghost_has_other_numbers_of_the_same_shapes(llama: Path, tmp_path: Path) -> None:
    compressed.randomise(llama, tmp_path / "ghost")
    exact, drawn = (load_file(folder / "model.safetensors") for folder in (llama, tmp_path / "ghost"))
    assert {n: w.shape for n, w in exact.items()} == {n: w.shape for n, w in drawn.items()}
    matrix = "model.layers.0.mlp.up_proj.weight"
    assert drawn[matrix].std().item() == pytest.approx(0.02, rel=0.05)
    assert not torch.equal(drawn[matrix], exact[matrix])
