"""pack-quantized: what was written comes back bit for bit, and compressed-tensors' own packing and compressor agree."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from quantadvisor.documents import BadInput
from quantadvisor.methods.affine import dequantize_groups
from quantadvisor.methods.formats import bridges, pack_quantized
from quantadvisor.methods.linear_format import ROW, LinearFormat

from .integers import brought, integers, rounded_model, same, weights

CASES = [(4, 32, True), (4, 32, False), (8, 64, True), (3, 32, False), (2, 16, False)]


@pytest.mark.parametrize("chosen", CASES)
def test_bit_for_bit_there_and_back(chosen: tuple[int, int, bool], llama: Path, tmp_path: Path) -> None:
    found = integers(llama, *chosen, "bfloat16")
    pack_quantized.write(llama, tmp_path / "out", brought(found), chosen)
    again, form = pack_quantized.read(tmp_path / "out")
    assert form == chosen
    same(found, again)


@pytest.mark.parametrize("chosen", CASES)
def test_the_library_packs_and_unpacks_the_same_words(chosen: tuple[int, int, bool], llama: Path, tmp_path: Path) -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    bits = chosen[0]
    found = integers(llama, *chosen, "bfloat16")
    for one in list(found.values())[:4]:
        words = pack_quantized.stored(one, bits, chosen[2])
        signed = torch.from_numpy(one.codes.astype(np.int16) - (1 << (bits - 1))).to(torch.int8)
        np.testing.assert_array_equal(words["weight_packed"], helpers.pack_to_int32(signed, bits).numpy())
        if not chosen[2]:
            middle = torch.from_numpy(one.zeros.astype(np.int16) - (1 << (bits - 1))).to(torch.int8)
            np.testing.assert_array_equal(words["weight_zero_point"], helpers.pack_to_int32(middle, bits, packed_dim=0).numpy())


@pytest.mark.parametrize("group", [32, ROW])
@pytest.mark.parametrize("symmetric", [True, False])
def test_transformers_loads_it_with_the_same_logits(
    symmetric: bool, group: int, llama: Path, tokens: np.ndarray, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    found = integers(llama, 4, group, symmetric, "bfloat16")
    pack_quantized.write(llama, tmp_path / "out", brought(found), LinearFormat(4, group, symmetric))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16).eval()
    with torch.no_grad():
        got = model(torch.from_numpy(tokens[0])[None]).logits[0].float().numpy()
    np.testing.assert_array_equal(got, rounded_model(llama, weights(found, group), tokens[0], "bfloat16"))


def test_the_library_reads_the_config(llama: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("compressed_tensors.quantization")
    pack_quantized.write(llama, tmp_path / "out", brought(integers(llama, 4, 32, False, "bfloat16")), (4, 32, False))
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    (group,) = library.QuantizationConfig.model_validate(settings).config_groups.values()
    assert (group.weights.num_bits, group.weights.group_size, group.weights.symmetric) == (4, 32, False)


def test_everything_else_is_bfloat16_and_no_weight_is_stored_twice(llama: Path, tmp_path: Path) -> None:
    found = integers(llama, 4, 32, True, "bfloat16")
    pack_quantized.write(llama, tmp_path / "out", brought(found), (4, 32, True))
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert not any(f"{name}.weight" in state for name in found)
    assert {w.dtype for name, w in state.items() if not name.endswith(("_packed", "_shape"))} == {torch.bfloat16}


def test_a_last_group_may_be_shorter() -> None:
    from quantadvisor.methods.affine import quantize_groups

    w = np.random.default_rng(0).standard_normal((32, 100)).astype(np.float32)
    one = quantize_groups(w, 4, 64, False)
    again = pack_quantized.restored(pack_quantized.stored(one, 4, False), 4)
    np.testing.assert_array_equal(dequantize_groups(*again, 64), dequantize_groups(*one, 64))


def test_another_folder_is_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no pack-quantized folder"):
        pack_quantized.read(llama)
    pack_quantized.write(llama, tmp_path / "out", brought(integers(llama, 4, 32, False, "bfloat16")), LinearFormat(4, 32, False))
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    said["quantization_config"]["config_groups"]["group_0"]["weights"]["actorder"] = "group"
    (tmp_path / "out" / "config.json").write_text(json.dumps(said))
    with pytest.raises(BadInput, match="groups are of no neighbours"):
        pack_quantized.read(tmp_path / "out")


@pytest.mark.parametrize("name", ["rtn", "gptq", "awq"])
def test_methods_write_it_for_vllm(name: str, llama: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    """The folder computes what the method's rounded weights compute, which AWQ scales and the folder folds."""
    from quantadvisor.methods.registry import method
    from quantadvisor.methods.schemes import scheme

    from ..conftest import kl, torch_logits

    chosen, module = scheme("w4-g32-bf16"), method(name)
    assert module.refuse(llama, chosen, "vllm") is None
    module.apply(llama, chosen, "vllm", tokens[:2], tmp_path / "out")
    found, form = pack_quantized.read(tmp_path / "out")
    assert form == (4, 32, False) and len(found) == 14
    plain = tmp_path / "plain"
    bridges.dequantized(tmp_path / "out", plain)
    exact, got = torch_logits(llama, tokens[3]), torch_logits(plain, tokens[3])
    assert kl(exact, got) < 0.1
    if name != "awq":
        same_weights = rounded_of(name, llama, tokens)
        for linear, w in weights(found, 32).items():
            np.testing.assert_allclose(w, same_weights[linear], rtol=2**-8, atol=1e-6)  # scales are in bfloat16


def rounded_of(name: str, llama: Path, tokens: np.ndarray) -> dict[str, np.ndarray]:
    from quantadvisor.methods import gptq
    from quantadvisor.methods.affine import quantize_groups
    from quantadvisor.methods.schemes import scheme

    if name == "gptq":
        return gptq.rounded(llama, scheme("w4-g32"), tokens[:2])
    state = {n.removesuffix(".weight"): w.numpy() for n, w in load_file(llama / "model.safetensors").items()}
    return {n: dequantize_groups(*quantize_groups(w, 4, 32, False), 32) for n, w in state.items() if n.endswith("_proj")}


def test_who_may_not_write_it(llama: Path) -> None:
    from quantadvisor.methods import gptq
    from quantadvisor.methods.schemes import scheme

    assert "-bf16 is for vllm" in (gptq.refuse(llama, scheme("w4-g32"), "vllm") or "")
    assert "-bf16 is for vllm" in (gptq.refuse(llama, scheme("w4-g32-bf16"), "onnxruntime") or "")
    assert gptq.refuse(llama, scheme("w4-g128"), "openvino")
    if not find_spec("gptqmodel"):
        assert "pip install gptqmodel" in (gptq.refuse(llama, scheme("w4-g32-bf16"), "torch") or "")
