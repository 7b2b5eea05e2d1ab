"""The FP8 cache against ml_dtypes' casts."""

import json
import math
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from quantadvisor.methods import kv_fp8
from quantadvisor.methods.schemes import scheme


@pytest.mark.parametrize("peak", [448.0, 3.0, 1000.0])
def test_scaled_casts_like_ml_dtypes(peak: float) -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 200, 64)).astype(np.float32)
    scale = np.float32(peak / 448)
    theirs = (np.clip(x / scale, -448, 448)).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
    np.testing.assert_allclose(kv_fp8.rounded(torch.from_numpy(x), peak).numpy(), theirs, rtol=1e-6)


def test_beyond_the_peak_is_clipped_and_small_values_lose_bits() -> None:
    x = torch.tensor([10.0, 2.0, 0.001, 0.0])
    assert kv_fp8.rounded(x, 2.0).tolist()[:2] == [2.0, 2.0]
    unit, calibrated = kv_fp8.rounded(x, 448.0), kv_fp8.rounded(x, 10.0)
    assert abs(float(unit[2]) - 0.001) > 5 * abs(float(calibrated[2]) - 0.001)
    assert float(unit[3]) == 0


def test_scales_are_the_peaks_of_each_layer(llama: Path, tokens: np.ndarray) -> None:
    """Against the keys and values that transformers' own cache holds."""
    from transformers import DynamicCache

    from quantadvisor.methods.fake import cache_peaks
    from quantadvisor.methods.observe import load

    model = load(llama)
    keys, values = cache_peaks(model, tokens)
    assert sorted(keys) == [0, 1]
    cache = DynamicCache()
    with torch.no_grad():
        model(torch.from_numpy(tokens), past_key_values=cache, use_cache=True)
    for layer, one in enumerate(cache.layers):
        assert keys[layer] == pytest.approx(float(one.keys.abs().max()), rel=1e-5)
        assert values[layer] == pytest.approx(float(one.values.abs().max()), rel=1e-5)


def test_the_folder_brings_both_scales_of_every_layer(llama: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    """The next power of two over max / 448 of the keys and values that transformers' own cache holds, the weights in bfloat16,
    and what vLLM's CompressedTensorsKVCacheMethod accepts."""
    from transformers import AutoModelForCausalLM, DynamicCache

    heard: list[str] = []
    notes = kv_fp8.apply(llama, scheme("bf16-kvf8"), "vllm", tokens[:2], tmp_path / "out", say=heard.append)
    assert notes == ("FP8 cache: a scale of keys and one of values for every layer, from 64 calibration tokens",)
    assert [line.split(",")[0] for line in heard] == ["layer 1 of 2 done", "layer 2 of 2 done"]
    cache, model = DynamicCache(), AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    with torch.no_grad():
        model(torch.from_numpy(tokens[:2]), past_key_values=cache, use_cache=True)
    plain, stored = load_file(llama / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    scales = {name: stored.pop(name) for name in list(stored) if name.endswith("_scale")}
    assert len(scales) == 4
    for layer, one in enumerate(cache.layers):
        for side, seen in (("k", one.keys), ("v", one.values)):
            scale = scales[f"model.layers.{layer}.self_attn.{side}_scale"]
            assert scale.dtype == torch.float32 and scale.shape == (1,)
            assert math.log2(float(scale)).is_integer()
            assert 0.5 * 448 * float(scale) < float(seen.abs().max()) <= 448 * float(scale)
    assert set(stored) == set(plain)
    assert all(torch.equal(w, plain[name].to(torch.bfloat16)) for name, w in stored.items())
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    cached = said["kv_cache_scheme"]
    assert (cached["type"], cached["num_bits"], cached["strategy"], cached["symmetric"]) == ("float", 8, "tensor", True)
    assert not said["config_groups"]


def test_a_layer_of_zeros_has_a_scale(llama: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    """Zero is no scale: vLLM would divide by it."""
    folder = shutil.copytree(llama, tmp_path / "hf")
    state = load_file(folder / "model.safetensors")
    state["model.layers.1.self_attn.v_proj.weight"].zero_()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert kv_fp8.peaks(folder, tokens)[1][1] == 1


def test_eight_bits_stay_close(llama: Path, tokens: np.ndarray) -> None:
    from quantadvisor.methods.observe import load

    from .conftest import fake_kl

    for name in ("fp32-kvf8", "fp32-kvf8-unit"):
        assert 0 < fake_kl(kv_fp8.fake(load(llama), scheme(name), tokens[:2]), llama, tokens[2:]) < 0.01


def test_refusals(llama: Path, tmp_path: Path) -> None:
    for runtime in ("torch", "onnxruntime", "onnxruntime-genai", "openvino", "llama.cpp"):
        assert "FP8" in str(kv_fp8.refuse(llama, scheme("fp32-kvf8"), runtime))
    for runtime in ("vllm", "triton"):
        assert "an option of the session" in str(kv_fp8.refuse(llama, scheme("fp32-kvf8"), runtime))
    assert kv_fp8.refuse(llama, scheme("bf16-kvf8"), "vllm") is None
    assert "an option of the session" in str(kv_fp8.refuse(llama, scheme("bf16-kvf8"), "triton"))
    (tmp_path / "config.json").write_text('{"model_type": "gemma2"}')
    assert "gemma2" in str(kv_fp8.refuse(tmp_path, scheme("bf16-kvf8"), "vllm"))
