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
    assert "fp8-bf16 is written for triton" in str(fp8.refuse(llama, scheme("fp8-block"), "triton"))
    fp8.apply(llama, form, "triton", tokens, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["format"] == "float-quantized"
    with pytest.raises(CandidateFailed, match="multiplies no FP8"):
        fp8.apply(llama, form, "torch", tokens, tmp_path / "torch")


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
