"""FP8 schemes against ml_dtypes in plain loops, and what ONNX Runtime says to an FP8 product."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from quantadvisor.documents import CandidateFailed
from quantadvisor.methods import fp8
from quantadvisor.methods.schemes import scheme

from .conftest import fake_kl


def cast(x: np.ndarray, bound: np.ndarray | float, kind: str = "float8_e4m3fn", top: float = 448) -> np.ndarray:
    scale = (np.float32(bound) / np.float32(top)).astype(np.float32)
    return np.clip(x / scale, -top, top).astype(getattr(ml_dtypes, kind)).astype(np.float32) * scale


def squares(w: np.ndarray) -> np.ndarray:
    made = np.empty_like(w)
    for row in range(0, len(w), 128):
        for column in range(0, w.shape[1], 128):
            part = w[row : row + 128, column : column + 128]
            made[row : row + 128, column : column + 128] = cast(part, np.abs(part).max())
    return made


def runs(x: np.ndarray) -> np.ndarray:
    parts = [x[:, at : at + 128] for at in range(0, x.shape[1], 128)]
    return np.concatenate([cast(part, np.abs(part).max(1, keepdims=True)) for part in parts], 1)


W, A = (np.random.default_rng(seed).standard_normal((200, 300)).astype(np.float32) for seed in (0, 1))
ROWS = {id(x): np.abs(x).max(1, keepdims=True) for x in (W, A)}
EXPECTED = {
    "fp8": (cast(W, ROWS[id(W)]), cast(A, ROWS[id(A)])),
    "fp8-tensor": (cast(W, np.abs(W).max()), cast(A, np.abs(A).max())),
    "fp8-block": (squares(W), runs(A)),
    "fp8-e5m2": tuple(cast(x, ROWS[id(x)], "float8_e5m2", 57344) for x in (W, A)),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_granularities_like_ml_dtypes(name: str) -> None:
    made = fp8.fake(None, scheme(name), A)
    assert made.weight and made.inputs
    np.testing.assert_allclose(made.weight("", torch.from_numpy(W)).numpy(), EXPECTED[name][0], rtol=1e-6)
    np.testing.assert_allclose(made.inputs("", torch.from_numpy(A)).numpy(), EXPECTED[name][1], rtol=1e-6)


def test_static_scales_are_calibrated(llama: Path, tokens: np.ndarray) -> None:
    from quantadvisor.methods.fake import channel_peaks
    from quantadvisor.methods.observe import load

    model = load(llama)
    name = "model.layers.1.mlp.down_proj"
    peak = float(channel_peaks(model, tokens)[name].max())
    made = fp8.fake(model, scheme("fp8-static"), tokens)
    assert made.inputs
    x = torch.linspace(-2 * peak, 2 * peak, 500)[None]
    np.testing.assert_allclose(made.inputs(name, x).numpy(), cast(x.numpy(), peak), rtol=1e-5)


def test_floats_shrug_at_planted_outliers(planted: Path, tokens: np.ndarray) -> None:
    """One scale per tensor is enough for E4M3, where INT8 loses the quiet channels; E5M2 has a bit less."""
    from quantadvisor.methods.fake import Fake
    from quantadvisor.methods.grids import symmetric
    from quantadvisor.methods.observe import load

    model = load(planted)
    found = {
        name: fake_kl(fp8.fake(model, scheme(name), tokens), planted, tokens[:2]) for name in ("fp8", "fp8-tensor", "fp8-e5m2")
    }
    integers = Fake(model, weight=lambda _, w: symmetric(w, 8), inputs=lambda _, x: symmetric(x, 8, None))
    assert found["fp8-tensor"] < fake_kl(integers, planted, tokens[:2]) / 4
    assert found["fp8"] < found["fp8-e5m2"]


def test_triton_gets_a_folder_and_no_one_else_does(llama: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    form = scheme("fp8-bf16")
    assert fp8.refuse(llama, form, "triton") is None
    assert "our triton product scales rows" in str(fp8.refuse(llama, scheme("fp8-block-bf16"), "triton"))
    fp8.apply(llama, form, "triton", tokens, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["format"] == "float-quantized"
    with pytest.raises(CandidateFailed, match="multiplies no FP8"):
        fp8.apply(llama, form, "torch", tokens, tmp_path / "torch")


PRESETS = {"fp8-bf16": "FP8_DYNAMIC", "fp8-static-bf16": "FP8", "fp8-block-bf16": "FP8_BLOCK", "fp8-tensor-bf16": None}


@pytest.mark.parametrize("name", PRESETS)
def test_a_folder_is_what_its_library_reads_and_writes(name: str, tokens: np.ndarray, tmp_path: Path) -> None:
    """Codes are those of the library for the same scales, to the bit; decompressed they are within a step of the fake's weights,
    and the config is its preset."""
    quantization = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES
    from safetensors.torch import load_file

    from quantadvisor.methods.fake import channel_peaks
    from quantadvisor.methods.observe import load

    from .conftest import write_llama

    sizes = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2}
    folder = write_llama(tmp_path / "hf", **sizes)
    assert fp8.refuse(folder, scheme(name), "vllm") is None
    notes = fp8.apply(folder, scheme(name), "vllm", tokens, tmp_path / "out")
    exact, state = load_file(folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    group = quantization.QuantizationConfig.model_validate(settings).config_groups["group_0"]
    if preset := PRESETS[name]:
        for side, args in PRESET_SCHEMES[preset].items():
            dumped = {**args.model_dump(), "observer": None}
            assert {**getattr(group, side).model_dump(), "observer": None} == dumped
    library = BaseCompressor.load_from_registry(settings["format"])
    rounded = fp8.fake(load(folder), scheme(name), tokens)
    assert rounded.weight
    for key in [key for key in exact if key.endswith("_proj.weight")]:
        stem = key.removesuffix("weight")
        scale, codes = state[f"{stem}weight_scale"], state[key]
        theirs = library.compress({"weight": exact[key], "weight_scale": scale.float()}, group)
        assert torch.equal(theirs["weight"].view(torch.uint8), codes.view(torch.uint8))
        stored = {"weight": codes, "weight_scale": scale.float()}
        values = library.decompress(stored, group)["weight"]
        wide = scale.float().repeat_interleave(128, 0).repeat_interleave(128, 1) if "block" in name else scale.float()
        assert torch.equal(values, codes.float() * wide[: len(values)])
        torch.testing.assert_close(values, rounded.weight("", exact[key]), rtol=2**-3, atol=float(scale.float().max()) * 2**-8)
    inputs = {key: float(value) for key, value in state.items() if key.endswith("input_scale")}
    if name != "fp8-static-bf16":
        assert not inputs and not notes
        return
    peaks = channel_peaks(load(folder), tokens)
    assert {key.removesuffix(".input_scale") for key in inputs} == set(peaks)
    for key, value in inputs.items():
        assert value == pytest.approx(float(peaks[key.removesuffix(".input_scale")].max()) / 448, rel=2**-8)
    assert "128 calibration tokens" in notes[0]


def test_what_vllm_lacks_is_named(llama: Path) -> None:
    assert "no E5M2" in str(fp8.refuse(llama, scheme("fp8-e5m2"), "vllm"))
    assert "squares of 128 do not divide" in str(fp8.refuse(llama, scheme("fp8-block-bf16"), "vllm"))
    assert "fp8-block is not for vllm" in str(fp8.refuse(llama, scheme("fp8-block"), "vllm"))
    with pytest.raises(ValueError, match="fp8-e5m2-bf16"):
        scheme("fp8-e5m2-bf16")


def test_onnxruntime_has_no_fp8_product() -> None:
    """The reason of the refusal, asked of the runtime itself."""
    import onnx
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kind = onnx.TensorProto.FLOAT8E4M3FN
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "product",
        [value("x", kind, [2, 4]), value("w", kind, [4, 3])], [value("y", kind, [2, 3])],
    )  # fmt: skip
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)], ir_version=10)
    with pytest.raises((state.InvalidGraph, state.NotImplemented, state.Fail)):
        onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])


def test_refusals(llama: Path) -> None:
    for runtime in ("torch", "onnxruntime", "onnxruntime-genai", "openvino", "llama.cpp"):
        assert "FP8" in str(fp8.refuse(llama, scheme("fp8-static"), runtime))
