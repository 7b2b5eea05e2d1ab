"""The GPTQ layout: bit for bit there and back, and GPTQModel's own linear reads and packs the same words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from quantadvisor.documents import BadInput
from quantadvisor.methods.affine import Grouped, dequantize_groups
from quantadvisor.methods.formats import gptq

from .integers import brought, integers, same, weights

CASES = [(4, 32, True), (4, 32, False), (8, 64, True), (3, 32, True), (2, 16, False)]


@pytest.mark.parametrize("chosen", CASES)
def test_bit_for_bit_there_and_back(chosen: tuple[int, int, bool], llama: Path, tmp_path: Path) -> None:
    found = integers(llama, *chosen, "float16")
    gptq.write(llama, tmp_path / "out", brought(found), chosen)
    again, form = gptq.read(tmp_path / "out")
    assert form == chosen
    same(found, again)


def test_by_the_definition_of_the_words(llama: Path, tmp_path: Path) -> None:
    """Eight codes down a column in a word, the first lowest; v1 stores zeros less one."""
    found = integers(llama, 4, 32, True, "float16")
    name, one = next(iter(found.items()))
    gptq.write(llama, tmp_path / "out", brought(found), (4, 32, True))
    state = load_file(tmp_path / "out" / "model.safetensors")
    words = state[f"{name}.qweight"].numpy().astype(np.uint32)
    for k in (0, 7, 8, 63):
        np.testing.assert_array_equal((words[k // 8] >> (4 * (k % 8))) & 15, one.codes[:, k])
    assert set(np.unique(state[f"{name}.qzeros"].numpy().view(np.uint8))) == {0x77}
    assert state[f"{name}.g_idx"].tolist() == [k // 32 for k in range(64)]


def test_only_symmetric_weights_are_v1(llama: Path, tmp_path: Path) -> None:
    for symmetric, version in ((True, "gptq"), (False, "gptq_v2")):
        gptq.write(llama, tmp_path / version, brought(integers(llama, 4, 32, symmetric, "float16")), (4, 32, symmetric))
        settings = json.loads((tmp_path / version / "quantize_config.json").read_text())
        assert settings["checkpoint_format"] == version
        assert json.loads((tmp_path / version / "config.json").read_text())["quantization_config"] == settings


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("chosen", [(4, 32, True), (4, 32, False), (8, 32, True)])
def test_gptqmodels_linear_dequantizes_them_to_the_same_weights(chosen: tuple[int, int, bool], llama: Path) -> None:
    linear = pytest.importorskip("gptqmodel.nn_modules.qlinear.torch")
    bits, group, symmetric = chosen
    for one in list(integers(llama, *chosen, "float16").values())[:4]:
        rows, width = one.codes.shape
        module = linear.TorchLinear(bits=bits, group_size=group, sym=symmetric, desc_act=False, in_features=width,
                                    out_features=rows, bias=False, pack_dtype=torch.int32)  # fmt: skip
        for key, array in gptq.stored(one, bits, group, "gptq_v2").items():  # v2 is how it computes; v1 is converted to it
            getattr(module, key).data = torch.from_numpy(array)
        module.post_init()
        got = module.dequantize_weight().float().numpy().T
        want = dequantize_groups(*one, group)
        np.testing.assert_allclose(got, want, rtol=2**-10, atol=1e-7)  # it multiplies in float16


def test_columns_of_act_order_come_back_in_their_places() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (32, 64)).astype(np.uint8)
    scales, zeros = rng.random((32, 2)).astype(np.float16).astype(np.float32), rng.integers(0, 16, (32, 2)).astype(np.uint8)
    places = rng.permutation(np.arange(64) // 32).astype(np.int32)
    arrays = gptq.stored(Grouped(codes, scales, zeros), 4, 32, "gptq_v2") | {"g_idx": places}
    found = gptq.restored(arrays, 4, 32, "gptq_v2")
    want = (codes.astype(np.float32) - zeros[:, places]) * scales[:, places]
    np.testing.assert_array_equal(dequantize_groups(*found, 1), want)


def test_what_fills_no_words_or_is_another_folder_is_refused(llama: Path) -> None:
    odd = Grouped(np.zeros((7, 64), np.uint8), np.ones((7, 2), np.float32), np.zeros((7, 2), np.uint8))
    with pytest.raises(BadInput, match="fill no whole words"):
        gptq.stored(odd, 4, 32, "gptq")
    with pytest.raises(BadInput, match="no GPTQ checkpoint"):
        gptq.read(llama)


def test_weights_of_the_folder_are_what_the_integers_say(llama: Path, tmp_path: Path) -> None:
    found = integers(llama, 4, 32, False, "float16")
    gptq.write(llama, tmp_path / "out", brought(found), (4, 32, False))
    again, _ = gptq.read(tmp_path / "out")
    for name, w in weights(found, 32).items():
        np.testing.assert_array_equal(dequantize_groups(*again[name], 32), w)
