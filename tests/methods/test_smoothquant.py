from pathlib import Path

import numpy as np
import pytest

from quantadvisor.methods import smoothquant, static_int8
from quantadvisor.methods.affine import fake_activations, fake_tokens
from quantadvisor.methods.formats import compressed, onnx
from quantadvisor.methods.rescale import Pair, pairs
from quantadvisor.methods.schemes import scheme

from .conftest import interrupt, kl, mean_kls, operators, run, torch_logits

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


def test_one_pass_with_the_time_left(llama: Path, tokens: np.ndarray) -> None:
    heard: list[str] = []
    smoothquant.search(llama, tokens, fake_activations, linear=True, say=heard.append)
    assert [line.split(",")[0] for line in heard] == ["layer 1 of 2 done", "layer 2 of 2 done"]
    assert [" s left" in line for line in heard] == [True, False]


def test_the_search_is_that_of_whole_tensors(planted: Path, tokens: np.ndarray) -> None:
    """Bounds of all samples, errors on the first, weights as they are: as plain torch shows each linear's inputs, one sample at a
    time."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(planted, dtype=torch.float32)
    found = {pair.source: scale for pair, scale in smoothquant.search(planted, tokens, fake_tokens, linear=True).scales}
    assert len(found) > 4
    for pair in pairs(model.config.to_dict()):
        seen: list[np.ndarray] = []
        handle = model.get_submodule(pair.targets[0]).register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0][0].numpy())
        )
        with torch.no_grad():
            for sample in tokens:
                model(torch.from_numpy(sample)[None])
        handle.remove()
        weights = [model.get_submodule(name).weight.detach().numpy() for name in pair.targets]
        bounds = np.abs(np.concatenate(seen)).max(axis=0), np.abs(np.concatenate(weights)).max(axis=0)
        _, scale = smoothquant.best(pair, seen[0], bounds, [w[:: smoothquant.SEARCH_ROWS] for w in weights], fake_tokens)
        assert (scale is None) == (pair.source not in found), pair.source
        if scale is not None:
            np.testing.assert_allclose(found[pair.source], scale, rtol=1e-4)


@pytest.fixture(scope="module")
def undisturbed(llama: Path, tokens: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What SmoothQuant writes when nothing stops it."""
    out = tmp_path_factory.mktemp("undisturbed") / "whole"
    smoothquant.apply(llama, scheme("w8a8-bf16"), "vllm", tokens, out)
    return out


@pytest.mark.parametrize("stop", range(9))
def test_interrupted_at_any_tensor_and_resumed_gives_the_same_bytes(
    stop: int, undisturbed: Path, llama: Path, tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each of the 8 tensors of its 2 layers, or while the artifact is written: what was searched is not searched again, and
    where all was, no layer runs."""
    settings = llama, scheme("w8a8-bf16"), "vllm", tokens, tmp_path / "out"
    best, searched, heard = smoothquant.best, [], []

    def interrupted(*given):  # type: ignore[no-untyped-def]
        if len(searched) == stop:
            raise KeyboardInterrupt
        searched.append(given[0].source)
        return best(*given)

    with monkeypatch.context() as patch:
        patch.setattr(smoothquant, "best", interrupted)
        patch.setattr(compressed, "quantize_w8a8", interrupt)
        with pytest.raises(KeyboardInterrupt):
            smoothquant.apply(*settings)
    assert not (tmp_path / "out").exists()
    again = []
    monkeypatch.setattr(smoothquant, "best", lambda *given: again.append(given[0].source) or best(*given))
    notes = smoothquant.apply(*settings, say=heard.append)
    assert len(searched) == stop and len({*searched, *again}) == len(searched) + len(again) == 8
    assert bool(heard) == (stop < 8)
    assert [note for note in notes if "interrupted" in note] == [f"{stop} tensors taken from an interrupted run"] * (stop > 0)
    for path in undisturbed.iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("name", "read"), [("w8a8", 2), ("w8a8-tensor", 3), ("w8a8-static", 4)])
def test_how_many_samples_maxima_come_from(
    name: str, read: int, llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scale per token takes fewer than one in all; fixed ranges are of all there are. The note says what was left out."""
    monkeypatch.setattr(smoothquant, "RANGE_SAMPLES", {"token": 2, "tensor": 3})
    notes = smoothquant.apply(llama, scheme(name), "onnxruntime", tokens, tmp_path / "out", base=base)
    left_out = f"({read} of 4 samples)"
    assert any(f"{read * 32} calibration tokens" in note and (left_out in note) == (read < 4) for note in notes)


def test_nothing_is_taken_from_another_scheme(
    llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted run that rounds activations per tensor has nothing for one that rounds them per token."""

    settings = "onnxruntime", tokens, tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(onnx, "quantize_dynamic_w8a8", interrupt)
        with pytest.raises(KeyboardInterrupt):
            smoothquant.apply(llama, scheme("w8a8-tensor"), *settings, base=base)
    assert not any("interrupted" in note for note in smoothquant.apply(llama, scheme("w8a8"), *settings, base=base))


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
def test_apply_beats_plain_rounding_on_average(name: str, llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    from quantadvisor.methods import dynamic_int8

    dynamic_int8.apply(llama, scheme(name), "onnxruntime", tokens, tmp_path / "plain", base=base)
    made = (tmp_path / f"smooth-{number}" for number in range(4))

    def search(calibration: np.ndarray) -> Path:
        out = next(made)
        smoothquant.apply(llama, scheme(name), "onnxruntime", calibration, out, base=base)
        return out

    smooth, plain = mean_kls(llama, tokens, tmp_path / "plain", search)
    assert smooth < plain


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

    def search(folder: Path, calibration: np.ndarray, rounding: object, linear: bool, bits: int, *_: object) -> None:
        raise Searched(bits)

    monkeypatch.setattr(smoothquant, "most_exact", lambda: largest)
    monkeypatch.setattr(smoothquant, "search", search)
    with pytest.raises(Searched, match=f"^{bits}$"):
        smoothquant.apply(llama, scheme("w8a8-static"), "openvino", tokens, tmp_path / "out", base=tmp_path)
