from pathlib import Path

import numpy as np
import pytest

from quantadvisor.methods import smoothquant, static_int8
from quantadvisor.methods.affine import fake_activations
from quantadvisor.methods.rescale import Pair
from quantadvisor.methods.schemes import scheme

from .conftest import kl, operators, run, torch_logits

X = np.array([[1, -16, 2, 6], [-2, 8, -1, -9]], np.float32)
W = np.array([[2, 1, -2], [1, -1, -1], [2, -1, -2], [-1, -1, 1]], np.float32).T


def test_golden_of_the_paper() -> None:
    """The worked example of arXiv:2211.10438, alpha = 0.5; W there is [in, out]."""
    scale = smoothquant.smoothing(np.abs(X).max(axis=0), np.abs(W).max(axis=0), 0.5)
    np.testing.assert_allclose(scale, [1, 4, 1, 3], rtol=1e-6)
    np.testing.assert_allclose(X / scale, [[1, -4, 2, 2], [-2, 2, -1, -3]], rtol=1e-6)
    np.testing.assert_allclose((W * scale).T, [[2, 1, -2], [4, -4, -4], [2, -1, -2], [-3, -3, 3]], rtol=1e-6)
    np.testing.assert_allclose((X / scale) @ (W * scale).T, X @ W.T, atol=1e-5)


def test_no_scale_where_none_helps() -> None:
    """Ranges that are equal already: rounding cannot be bettered, and the tensor is left alone."""
    grid = np.array([[-127, 127], [127, -127]], np.float32)
    pair = Pair("norm", ("linear",), norm=True)
    bounds = np.abs(grid).max(axis=0), np.ones(2, np.float32)
    found = smoothquant.best(pair, grid + 1e-3, bounds, [np.eye(2, dtype=np.float32)], lambda x: x)
    assert found == (None, None)


def test_two_passes_count_as_two(llama: Path, tokens: np.ndarray) -> None:
    """Only the end of the second is the end."""
    heard: list[str] = []
    smoothquant.search(llama, tokens, fake_activations, linear=True, say=heard.append)
    assert [line.split(",")[0] for line in heard] == [
        f"pass {turn} of 2: layer {layer} of 2 done" for turn in (1, 2) for layer in (1, 2)
    ]
    assert [" s left" in line for line in heard] == [True, True, True, False]


def test_a_loud_channel_is_moved() -> None:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((64, 16)).astype(np.float32)
    x[:, 3] *= 100
    weights = [draw.standard_normal((8, 16)).astype(np.float32)]
    bounds = np.abs(x).max(axis=0), np.abs(weights[0]).max(axis=0)
    alpha, scale = smoothquant.best(Pair("n", ("l",), norm=True), x, bounds, weights, fake_activations)
    assert alpha in smoothquant.GRID
    assert scale is not None
    assert scale.argmax() == 3


@pytest.mark.parametrize("name", ["w8a8", "w8a8-tensor"])
def test_folding_keeps_the_function(name: str, llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    from quantadvisor.methods.formats import onnx
    from quantadvisor.methods.formats.onnx_base import Rewrite

    rounding = {"w8a8": smoothquant.fake_tokens, "w8a8-tensor": smoothquant.fake_activations}[name]
    found = smoothquant.search(llama, tokens, rounding, linear=True)
    assert len(found.scales) > 4
    assert "exponents" in found.note
    with Rewrite(base, tmp_path / "folded", onnx.rescaled(base, found.scales, smoothquant.config(llama))):
        pass
    difference = run(tmp_path / "folded", tokens[0]) - run(base, tokens[0])
    assert np.abs(difference).max() < 1e-4


@pytest.mark.parametrize("name", ["w8a8", "w8a8-tensor"])
def test_apply_beats_plain_rounding(name: str, llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    from quantadvisor.methods import dynamic_int8

    exact = torch_logits(llama, tokens[3])
    dynamic_int8.apply(llama, scheme(name), "onnxruntime", tokens[:2], tmp_path / "plain", base=base)
    smoothquant.apply(llama, scheme(name), "onnxruntime", tokens[:2], tmp_path / "smooth", base=base)
    assert kl(exact, run(tmp_path / "smooth", tokens[3])) < kl(exact, run(tmp_path / "plain", tokens[3]))


@pytest.mark.parametrize("name", ["w8a8-static", "w8a8-static-npu"])
def test_fixed_ranges_in_onnxruntime_take_outliers(
    name: str, planted: Path, planted_base: Path, tokens: np.ndarray, tmp_path: Path
) -> None:
    """On a model with planted outliers it leaves a fraction of the KL of the same rounding without it, and nothing else of the
    artifact changes: the operators are the same."""
    exact, found = torch_logits(planted, tokens[3]), {}
    for method in (static_int8, smoothquant):
        notes = method.apply(planted, scheme(name), "onnxruntime", tokens[:3], tmp_path / method.NAME, base=planted_base)
        assert any(f"the extremes of {tokens[:3].size} calibration tokens" in note for note in notes)
        found[method.NAME] = kl(exact, run(tmp_path / method.NAME, tokens[3]))
    assert found["smoothquant"] < 0.05 * found["static_int8"]
    assert operators(tmp_path / "smoothquant", tmp_path) == operators(tmp_path / "static_int8", tmp_path)
    assert run(tmp_path / "smoothquant", tokens[3], chunk=8) == pytest.approx(run(tmp_path / "smoothquant", tokens[3]), abs=1e-4)


def test_refusals(tmp_path: Path, llama: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma2"}')
    assert "gemma2" in str(smoothquant.refuse(tmp_path, scheme("w8a8"), "onnxruntime"))
    assert smoothquant.refuse(llama, scheme("w8a8"), "onnxruntime") is None
    assert "w8a8-static" in str(smoothquant.refuse(llama, scheme("w8a8"), "openvino"))
    assert smoothquant.refuse(llama, scheme("w8a8-static"), "openvino") is None
    assert smoothquant.refuse(llama, scheme("w8a8-static"), "onnxruntime") is None
    assert smoothquant.refuse(llama, scheme("w8a8-static-npu"), "onnxruntime") is None
    assert "at run time" in str(smoothquant.refuse(llama, scheme("w8a8-static"), "onnxruntime-genai"))
    assert "for an NPU" in str(smoothquant.refuse(llama, scheme("w8a8-static-npu"), "openvino"))
    assert "torch" in str(smoothquant.refuse(llama, scheme("w8a8"), "torch"))


@pytest.mark.parametrize(("largest", "bits"), [(63, 7), (127, 8)])
def test_exponents_for_openvino_are_searched_with_the_bits_it_gets(
    largest: int, bits: int, llama: Path, tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Searched(Exception):
        pass

    def search(folder: Path, calibration: np.ndarray, rounding: object, linear: bool, bits: int, say: object) -> None:
        raise Searched(bits)

    monkeypatch.setattr(smoothquant, "most_exact", lambda: largest)
    monkeypatch.setattr(smoothquant, "search", search)
    with pytest.raises(Searched, match=f"^{bits}$"):
        smoothquant.apply(llama, scheme("w8a8-static"), "openvino", tokens, tmp_path / "out", base=tmp_path)
