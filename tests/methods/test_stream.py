"""What the streamed decoder shows, against hooks on the whole model of transformers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quantadvisor.documents.errors import CandidateFailed
from quantadvisor.methods.observe import load, observe
from quantadvisor.methods.stream import Parts, empty_model, layer_by_layer, stream


def inputs_of(model: Any, tokens: np.ndarray, half: bool, at_once: int | None = None) -> dict[str, np.ndarray]:
    """Inputs [T, K] of every linear of the decoder, by transformers; so many samples go through at once, since what is rounded
    to bfloat16 shows in which order it was summed."""
    import torch

    seen: dict[str, list[np.ndarray]] = {name: [] for name, _ in model.named_modules() if name.endswith("_proj")}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, own=own: own.append(args[0].reshape(-1, args[0].shape[-1]).float().numpy().copy())
        )
        for name, own in seen.items()
    ]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        for part in torch.from_numpy(tokens).split(at_once or len(tokens)):
            model(part)
    for handle in handles:
        handle.remove()
    return {name: np.concatenate(own) for name, own in seen.items()}


@pytest.fixture(params=[64, 2], ids=["whole", "in parts"])
def part(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Tokens of the largest piece that a visit is shown, where four samples of 32 pass at once or one by one."""
    monkeypatch.setattr("quantadvisor.methods.stream.AT_ONCE", request.param)
    return 128 if request.param == 64 else 32


def together(x: Parts, part: int) -> np.ndarray:
    pieces = list(x)
    assert [len(piece) for piece in pieces] == [part] * (128 // part)
    return np.concatenate(pieces)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_group_meets_its_inputs_in_order(
    attention: str, half: bool, llama: Path, tokens: np.ndarray, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eager attention has a mask, a row for every sample."""
    model = load(llama)
    model.set_attn_implementation(attention)
    expected = inputs_of(model, tokens, half, part // 32)
    seen = []

    def with_attention(folder: Path) -> Any:
        made = empty_model(folder)
        made.set_attn_implementation(attention)
        return made

    monkeypatch.setattr("quantadvisor.methods.stream.empty_model", with_attention)

    def visit(targets: tuple[str, ...], pieces: Parts, weights: list[np.ndarray]) -> None:
        seen.append(targets)
        x = together(pieces, part)
        for name, w in zip(targets, weights, strict=True):
            np.testing.assert_allclose(x, expected[name], atol=1e-5)
            np.testing.assert_array_equal(w, model.get_submodule(name).weight.detach().numpy())

    stream(llama, tokens, visit)
    assert [name for targets in seen for name in targets] == [
        f"model.layers.{layer}.{part}_proj"
        for layer in (0, 1)
        for part in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
    ]


def test_what_comes_after_sees_the_replaced_weights(half: bool, llama: Path, tokens: np.ndarray, part: int) -> None:
    import torch

    model = load(llama)
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith("_proj"):
                module.weight.mul_(0.5)
    expected = inputs_of(model, tokens, half, part // 32)

    def visit(targets: tuple[str, ...], x: Parts, weights: list[np.ndarray]) -> list[np.ndarray]:
        np.testing.assert_allclose(together(x, part), expected[targets[0]], atol=1e-5)
        return [w * np.float32(0.5) for w in weights]

    stream(llama, tokens, visit)


def test_the_time_left_is_that_of_the_last_layer_for_each_that_is_left(
    llama: Path, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that end 3 s and 9 s after the start, by a clock of the test."""
    clock, said = iter((100.0, 103.0, 109.0)), list[str]()
    monkeypatch.setattr("quantadvisor.methods.stream.time", SimpleNamespace(monotonic=lambda: next(clock)))
    stream(llama, tokens[:1], lambda targets, x, weights: None, said.append)
    assert said == ["layer 1 of 2 done, 3 s left", "layer 2 of 2 done"]


def test_what_nobody_looks_at_is_computed_once(
    llama: Path, tokens: np.ndarray, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run, whose visits have their results: rows that the first linear of a layer multiplies."""
    from torch.nn import Linear

    rows, forward = [], Linear.forward
    monkeypatch.setattr(Linear, "forward", lambda own, x: rows.append(x[..., 0].numel()) or forward(own, x))
    stream(llama, tokens, lambda targets, x, weights: None)
    assert rows == [part] * (128 // part * 14)


def test_nothing_is_loaded_before_its_turn(llama: Path) -> None:
    model = empty_model(llama)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model.model.rotary_emb.inv_freq.device.type == "cpu"


def test_sharded_folders_and_missing_tensors(llama: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    state = load_file(llama / "model.safetensors")
    names = sorted(state)
    for path in llama.glob("*.json"):
        shutil.copyfile(path, tmp_path / path.name)
    for part, chosen in enumerate((names[::2], names[1::2])):
        save_file({name: state[name] for name in chosen}, tmp_path / f"model-{part}.safetensors")
    seen: list[str] = []
    stream(tmp_path, tokens[:1], lambda targets, x, weights: seen.extend(targets))
    assert len(seen) == 14
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(CandidateFailed, match="has no tensor model"):
        stream(tmp_path, tokens[:1], lambda targets, x, weights: None)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_observing_layer_by_layer_shows_the_same_bits(attention: str, llama: Path) -> None:
    """Eleven samples: one batch is not full. Eager attention has a mask, a row for every sample."""
    tokens = np.random.default_rng(1).integers(3, 256, (11, 32)).astype(np.int64)
    found, heard = [], list[str]()
    for model in (load(llama), layer_by_layer(llama, heard.append)):
        model.set_attn_implementation(attention)
        seen: dict[str, list[np.ndarray]] = {name: [] for name, _ in model.named_modules() if name.endswith("_proj")}
        observe(model, tokens, {name: lambda name, x, seen=seen: seen[name].append(x.copy()) for name in seen})
        found.append(seen)
    whole, streamed = found
    assert [line.partition(" done")[0] for line in heard] == ["layer 1 of 2", "layer 2 of 2"]
    for name, parts in whole.items():
        assert [len(part) for part in streamed[name]] == [8 * 32, 3 * 32]
        for one, other in zip(parts, streamed[name], strict=True):
            np.testing.assert_array_equal(one, other)
