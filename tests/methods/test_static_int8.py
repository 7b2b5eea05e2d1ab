"""Static ranges against what torch's own hooks see, and the artifact against plain rounding in numpy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantadvisor.methods import static_int8
from quantadvisor.methods.clipping import Clip
from quantadvisor.methods.formats import onnx
from quantadvisor.methods.kept import Folder
from quantadvisor.methods.observe import load
from quantadvisor.methods.schemes import scheme

from .conftest import interrupt, torch_logits


def test_ranges_are_the_extremes_of_what_the_linears_read(llama: Path, tokens: np.ndarray) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    found = static_int8.ranges(load(llama), tokens)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    named = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"]
    assert sorted(name for readers, *_ in found for name in readers) == sorted(named)
    for readers, low, high in found:
        for name in readers:
            seen: list[float] = [0.0]
            handle = model.get_submodule(name).register_forward_pre_hook(
                lambda _, args, seen=seen: seen.extend((float(args[0].min()), float(args[0].max())))
            )
            with torch.no_grad():
                for sample in tokens:
                    model(torch.from_numpy(sample)[None])
            handle.remove()
            np.testing.assert_allclose((low, high), (min(seen), max(seen)), rtol=1e-4)


@pytest.mark.parametrize("clip", ["percentile", "entropy", "mse"])
def test_clipped_ranges_lie_inside_the_extremes(clip: Clip, llama: Path, tokens: np.ndarray) -> None:
    model = load(llama)
    wide, narrow = static_int8.ranges(model, tokens), static_int8.ranges(model, tokens, clip)
    assert [each[0] for each in wide] == [each[0] for each in narrow]
    assert all(low <= inner_low and inner_high <= high for (_, low, high), (_, inner_low, inner_high)
               in zip(wide, narrow, strict=True))  # fmt: skip
    assert any(wide[i] != narrow[i] for i in range(len(wide)))


def test_a_sample_stands_for_the_tensor() -> None:
    """Loud channels and lone loud values are in it, and its counted mean square is the tensor's: a stride that divides the
    width would meet only some channels."""
    rng = np.random.default_rng(0)
    for channels in (576, 1536):
        x = rng.standard_normal((1024, channels)).astype(np.float32)
        x[:, 1::7] *= 30
        x[3, 5] = 4000
        values, counts = static_int8.sample_of(x)
        assert values.size < x.size / 20 and counts.sum() == x.size
        assert values.max() == 4000 and values.min() == x.min()
        assert np.average(np.square(values), weights=counts) == pytest.approx(np.square(x).mean(), rel=0.1)
    few = rng.standard_normal((4, 16)).astype(np.float32)
    assert sorted(static_int8.sample_of(few).values) == sorted(few.reshape(-1))


def test_least_squares_keep_the_value_that_matters(llama: Path, tokens: np.ndarray) -> None:
    """The range with the least error over all that the linears read, by trying each on whole tensors."""
    from quantadvisor.methods.clipping import SHRINK, rounding_error
    from quantadvisor.methods.observe import observe

    model = load(llama)
    name = "model.layers.0.mlp.down_proj"
    whole: list[np.ndarray] = []
    observe(model, tokens, {name: lambda _, x: whole.append(x.reshape(-1).copy())})
    x = np.concatenate(whole)
    low, high = min(x.min(), 0), max(x.max(), 0)
    best = min(rounding_error(x, low * f, high * f, 8) for f in SHRINK)
    found = next(each for each in static_int8.ranges(model, tokens, "mse") if name in each[0])
    assert rounding_error(x, *found[1:], 8) <= 1.02 * best


def test_the_fake_is_the_grid_of_the_artifact(llama: Path, tokens: np.ndarray) -> None:
    made = static_int8.fake(load(llama), scheme("w8a8-static"), tokens)
    (readers, low, high), *_ = static_int8.ranges(load(llama), tokens)
    assert made.inputs
    x = np.linspace(2 * low, 2 * high, 1000, dtype=np.float32)[None]
    step = (high - low) / 255
    theirs = np.clip(np.rint(x / step), np.rint(low / step), np.rint(low / step) + 255) * step
    import torch

    ours = made.inputs(readers[0], torch.from_numpy(x)).numpy()
    assert np.mean(np.abs(ours - theirs) < 1e-3 * step) > 0.98
    assert np.abs(ours - theirs).max() < 1.01 * step


def test_the_artifact_is_near_the_model(llama: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("optimum.intel")
    notes = static_int8.apply(llama, scheme("w8a8-static"), "openvino", tokens, tmp_path / "out")
    assert str(tokens.size) in notes[0]
    core = openvino.Core()
    request = core.compile_model(
        core.read_model(tmp_path / "out" / "openvino_scoring.xml", tmp_path / "out" / "openvino_model.bin"), "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"},
    ).create_infer_request()  # fmt: skip
    row = tokens[0]
    inputs = {"input_ids": row[None], "attention_mask": np.ones_like(row)[None], "position_ids": np.arange(len(row))[None],
              "beam_idx": np.zeros(1, np.int32)}  # fmt: skip
    known = {name for port in request.model_inputs for name in port.get_names()}
    request.infer({name: value for name, value in inputs.items() if name in known})
    exact = torch_logits(llama, row)
    error = request.get_tensor("logits").data[0] - exact
    assert 0 < np.square(error).mean() < 0.1 * exact.var()


@pytest.mark.parametrize("name", ["w8a8-static", "w8a8-static-mse"])
@pytest.mark.parametrize("stop", [0, 1, 5, 8])
def test_interrupted_and_resumed_gives_the_same_bytes(
    name: str, stop: int, llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any of the 8 tensors of its 2 layers, after some, or while the artifact is written, when no layer runs again."""
    settings = "onnxruntime", tokens
    static_int8.apply(llama, scheme(name), *settings, tmp_path / "whole", base=base)
    store, stored, heard = Folder.__setitem__, [], []

    def interrupted(*given: Any) -> None:
        if len(stored) == stop:
            raise KeyboardInterrupt
        stored.append(given[1])
        store(*given)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "__setitem__", interrupted)
        patch.setattr(onnx, "quantize_static_w8a8", interrupt)
        with pytest.raises(KeyboardInterrupt):
            static_int8.apply(llama, scheme(name), *settings, tmp_path / "out", base=base)
    assert not (tmp_path / "out").exists()
    looked: list[str] = []
    monkeypatch.setattr(Folder, "__setitem__", lambda *given: looked.append(given[1]) or store(*given))
    notes = static_int8.apply(llama, scheme(name), *settings, tmp_path / "out", base=base, say=heard.append)
    assert len({*stored, *looked}) == len(stored) + len(looked) == 8
    assert bool(heard) == (stop < 8)
    assert any(f"{stop} tensors taken from an interrupted run" in note for note in notes) == (stop > 0)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


def test_refusals(tmp_path: Path, llama: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma2"}')
    assert "gemma2" in str(static_int8.refuse(tmp_path, scheme("w8a8-static"), "openvino"))
    assert static_int8.refuse(llama, scheme("w8a8-static"), "onnxruntime") is None
    assert static_int8.refuse(llama, scheme("w8a8-static-npu"), "onnxruntime") is None
    assert "for an NPU" in str(static_int8.refuse(llama, scheme("w8a8-static-npu"), "openvino"))
    assert "writes nothing for torch" in str(static_int8.refuse(llama, scheme("w8a8-static"), "torch"))
