"""LKD against what it starts from: nearer outputs layer by layer, smaller KL, one layer at a time, to the byte after a break."""

from pathlib import Path

import numpy as np
import pytest
import torch

from quantadvisor.documents.errors import CandidateFailed
from quantadvisor.methods import lkd, training, zeroquant
from quantadvisor.methods.affine import dequantize_groups, quantize_groups
from quantadvisor.methods.fake import Fake
from quantadvisor.methods.kept import Arrays
from quantadvisor.methods.observe import load
from quantadvisor.methods.schemes import scheme
from quantadvisor.methods.training import Limits

from .conftest import fake_kl, kl, run, torch_logits
from .test_gptq import integers_of

FEW = 25


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lkd, "STEPS", FEW)


@pytest.mark.parametrize("name", ["w4-g64", "w8a8-g64"])
@pytest.mark.parametrize("width", [128, 100])
def test_the_grid_that_is_trained_for_is_the_one_that_is_written(name: str, width: int) -> None:
    w = np.random.default_rng(width).standard_normal((24, width)).astype(np.float32)
    of_weights, _ = lkd.roundings(scheme(name))
    written = dequantize_groups(*quantize_groups(w, *lkd.grid_of(scheme(name))), 64)
    np.testing.assert_allclose(of_weights(torch.from_numpy(w)).numpy(), written, atol=1e-5)


def test_below_zeroquant_without_it(llama: Path, tokens: np.ndarray) -> None:
    """On text that it was not trained on."""
    four = scheme("w4a8-g64")
    calibration = np.random.default_rng(9).integers(3, 256, (16, 32)).astype(np.int64)
    plain = fake_kl(zeroquant.fake(load(llama), four, calibration), llama, tokens)
    trained = fake_kl(lkd.fake(load(llama), four, calibration), llama, tokens)
    assert trained < 0.8 * plain


@pytest.mark.parametrize("name", ["w4a8-g64", "w4-g64"])
def test_below_plain_rounding_with_loud_channels(
    name: str, planted: Path, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns at a sixtieth of the others', which steps of one size for all weights would drown."""
    monkeypatch.setattr(lkd, "STEPS", 60)
    made, calibration = scheme(name), np.random.default_rng(10).integers(3, 256, (64, 32)).astype(np.int64)
    of_weights, of_inputs = lkd.roundings(made)
    plain = Fake(
        load(planted),
        weight=lambda _, w: of_weights(w),
        inputs=(lambda _, x: of_inputs(x)) if of_inputs else None,
    )
    trained = lkd.fake(load(planted), made, calibration)
    assert fake_kl(trained, planted, tokens) < 0.95 * fake_kl(plain, planted, tokens)


def test_eight_bits_lose_nothing_by_it(llama: Path, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of a size for 4 bits would take what they lose fivefold."""
    monkeypatch.setattr(lkd, "STEPS", 60)
    eight, calibration = scheme("w8a8-g64"), np.random.default_rng(10).integers(3, 256, (64, 32)).astype(np.int64)
    plain = fake_kl(zeroquant.fake(load(llama), eight, calibration), llama, tokens)
    assert fake_kl(lkd.fake(load(llama), eight, calibration), llama, tokens) < 1.1 * plain


def test_each_layer_comes_nearer_to_itself_alone(llama: Path, tokens: np.ndarray) -> None:
    """Every layer's own error on what the unquantized ones before it give, computed from hidden states of transformers."""
    four, model = scheme("w4a8-g64"), load(llama)
    found = lkd.rounded(llama, four, tokens)
    of_weights, of_inputs = lkd.roundings(four)
    assert of_inputs
    with torch.no_grad():
        states = model(torch.from_numpy(tokens), output_hidden_states=True).hidden_states
        place = model.model.rotary_emb(states[0], torch.arange(tokens.shape[1])[None])
        layer = model.model.layers[0]
        linears = {f"model.layers.0.{n}": m for n, m in layer.named_modules() if isinstance(m, torch.nn.Linear)}
        for linear in linears.values():
            linear.register_forward_pre_hook(lambda _, args: (of_inputs(args[0]),))
        errors = []
        for weights in (
            {n: of_weights(m.weight.data) for n, m in linears.items()},
            {n: torch.from_numpy(found[n]) for n in linears},
        ):
            for name, linear in linears.items():
                linear.weight.data = weights[name]
            made = layer(states[0], position_embeddings=place)
            errors.append(float((made - states[1]).square().mean()))
    assert errors[1] < 0.8 * errors[0]


def test_an_interruption_changes_no_byte(llama: Path, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SAVE_S", 0.0)
    monkeypatch.setattr(training, "SAVE_SHARE", 1e9)
    four, whole, broken = scheme("w4a8-g64"), dict[str, Arrays](), dict[str, Arrays]()
    assert set(lkd.distil_all(llama, tokens, four, whole, Limits(1e6)).values()) == {FEW}
    said = []

    def fail(line: str) -> None:
        said.append(line)
        if line.startswith("model.layers.1: step 12 "):
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "SAY_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        lkd.distil_all(llama, tokens, four, broken, Limits(1e6, fail))
    lkd.distil_all(llama, tokens, four, broken, Limits(1e6))
    assert [line for line in said if line.startswith("model.layers.0: step 25 of 25, loss ") and line.endswith(" s left")]
    linears = [name for name in whole if name.endswith("_proj")]
    assert len(linears) == 14
    for name in linears:
        for part in ("codes", "scales", "zeros"):
            assert whole[name][part].tobytes() == broken[name][part].tobytes()


def test_the_artifact(llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    """Its integers reach MatMulNBits as they were trained: the KL is that of the fake."""
    made = scheme("w4-g64")
    assert lkd.refuse(llama, made, "onnxruntime") is None
    notes = lkd.apply(llama, made, "onnxruntime", tokens[:2], tmp_path / "out", base=base, train_s=600.0)
    assert "25 to 25 done" in notes[0]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    found = lkd.rounded(llama, made, tokens[:2])
    for name in ("model.layers.1.mlp.gate_proj", "model.layers.0.mlp.down_proj"):
        width = found[name].shape[1]
        stored = dequantize_groups(*quantize_groups(found[name], 4, 64, False), 64)
        np.testing.assert_allclose(stored, found[name], atol=1e-6)
        assert (integers_of(tmp_path / "out", name, width, 64) == quantize_groups(found[name], 4, 64, False).codes).mean() > 0.99
    assert kl(torch_logits(llama, tokens[3]), run(tmp_path / "out", tokens[3], chunk=8)) < 0.2


def test_an_interrupted_artifact_is_the_same(llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Stopped between two checkpoints, in another process as far as its state goes: all comes from the disk."""
    monkeypatch.setattr(training, "SAVE_S", 0.0)
    monkeypatch.setattr(training, "SAY_S", 0.0)

    def fail(line: str) -> None:
        if line.startswith("model.layers.1: step 17 "):
            raise KeyboardInterrupt

    made = scheme("w4-g64")
    with pytest.raises(KeyboardInterrupt):
        lkd.apply(llama, made, "onnxruntime", tokens, tmp_path / "out", base=base, train_s=600.0, say=fail)
    assert not (tmp_path / "out").exists()
    assert [path.name.partition("kept")[0] for path in tmp_path.iterdir()] == [".out."]
    for name in ("out", "whole"):
        lkd.apply(llama, made, "onnxruntime", tokens, tmp_path / name, base=base, train_s=600.0)
    files = {path.name for path in (tmp_path / "whole").iterdir()}
    assert files == {path.name for path in (tmp_path / "out").iterdir()} and "model.onnx.data" in files
    assert all((tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in files)


def test_refusals(llama: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    assert "token-wise" in str(lkd.refuse(llama, scheme("w4a8-g64"), "onnxruntime"))
    assert "does not offer" in str(lkd.refuse(llama, scheme("w8-g64"), "onnxruntime"))
    with pytest.raises(CandidateFailed, match="token-wise"):
        lkd.apply(llama, scheme("w4a8-g64"), "onnxruntime", tokens, tmp_path / "out")
