"""The FP8 cache against ml_dtypes' casts."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

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


def test_eight_bits_stay_close(llama: Path, tokens: np.ndarray) -> None:
    from quantadvisor.methods.observe import load

    from .conftest import fake_kl

    for name in ("fp32-kvf8", "fp32-kvf8-unit"):
        assert 0 < fake_kl(kv_fp8.fake(load(llama), scheme(name), tokens[:2]), llama, tokens[2:]) < 0.01


def test_refusals(llama: Path) -> None:
    for runtime in ("torch", "onnxruntime", "onnxruntime-genai", "openvino", "llama.cpp"):
        assert "FP8" in str(kv_fp8.refuse(llama, scheme("fp32-kvf8"), runtime))
    for runtime in ("vllm", "triton"):
        assert "an option of the session" in str(kv_fp8.refuse(llama, scheme("fp32-kvf8"), runtime))
