"""SmoothQuant's scales under GPTQ's integers: each half against the other method alone, and the artifacts integer by integer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from quantadvisor.advisor.risk import plain_fake
from quantadvisor.methods import gptq, smoothquant, smoothquant_gptq, zeroquant
from quantadvisor.methods.affine import fake_tokens, nearest, quantize_channels, signed_channels
from quantadvisor.methods.fake import applied, linears
from quantadvisor.methods.kept import Arrays
from quantadvisor.methods.layerwise import hessian, loaded
from quantadvisor.methods.observe import load
from quantadvisor.methods.rescale import tensor_factors
from quantadvisor.methods.schemes import scheme
from quantadvisor.methods.smoothquant_gptq import SMOOTHING, Moves, factors, round_all, unmoved
from quantadvisor.methods.stream import Parts, stream

from .conftest import VOCABULARY, fake_kl, kl, run, torch_logits

W8A8 = scheme("w8a8")


@pytest.fixture(scope="module")
def many() -> np.ndarray:
    """[64 samples, 32 tokens]: 16 tokens to the widest row, where the 3 of a few samples would be learnt by heart."""
    return np.random.default_rng(0).integers(3, VOCABULARY, (64, 32)).astype(np.int64)


def made(folder: Path, tokens: np.ndarray) -> tuple[dict[str, Arrays], Moves]:
    kept: dict[str, Arrays] = {}
    return kept, round_all(folder, W8A8, tokens, kept)


def smoothed_weights(folder: Path, moves: Moves) -> dict[str, np.ndarray]:
    """Of every linear of the decoder, by the torch arithmetic that SmoothQuant's own folders are written with."""
    fold = tensor_factors(moves)
    state = {name: fold(name, w) for name, w in load_file(folder / "model.safetensors").items()}
    return {name.removesuffix(".weight"): w.numpy() for name, w in state.items() if name.endswith("_proj.weight")}


def stored(folder: Path) -> dict[str, np.ndarray]:
    """int8 codes [K, N] of a graph by the names of its linears."""
    import onnx

    graph, end = onnx.load(folder / "scoring.onnx"), ".MatMul.weight_quantized"
    found = {one.name: onnx.numpy_helper.to_array(one) for one in graph.graph.initializer if one.name.endswith(end)}
    signed = {name: codes if codes.dtype == np.int8 else (codes ^ 128).view(np.int8) for name, codes in found.items()}
    return {name.removesuffix(end): codes for name, codes in signed.items()}


def test_under_a_diagonal_hessian_the_codes_are_smoothquants(
    planted: Path, tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damping that drowns every off-diagonal element leaves rounding to nearest: SmoothQuant's own folder, code by code."""
    smoothquant.apply(planted, scheme("w8a8-bf16"), "vllm", tokens[:2], tmp_path / "plain")
    smoothquant_gptq.apply(planted, scheme("w8a8-bf16"), "vllm", tokens[:2], tmp_path / "searched")
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    searched = load_file(tmp_path / "searched" / "model.safetensors")
    codes = [name for name, w in plain.items() if w.dtype == torch.int8]
    assert len(codes) == 14
    assert min(float((plain[name] != searched[name]).float().mean()) for name in codes) > 0.01
    monkeypatch.setattr(gptq, "DAMPING", 1e9)
    smoothquant_gptq.apply(planted, scheme("w8a8-bf16"), "vllm", tokens[:2], tmp_path / "drowned")
    drowned = load_file(tmp_path / "drowned" / "model.safetensors")
    assert drowned.keys() == searched.keys() == plain.keys()
    for name, w in plain.items():
        assert torch.equal(w, drowned[name]), name
        assert name in codes or torch.equal(w, searched[name]), name
    configs = [(tmp_path / name / "config.json").read_text() for name in ("plain", "searched")]
    assert configs[0] == configs[1]


def test_the_function_is_kept_before_rounding(planted: Path, tokens: np.ndarray) -> None:
    """Smoothed weights and norms in transformers' model: its own logits. Scaled back by `factors` they are its own weights."""
    _, moves = made(planted, tokens[:2])
    assert len(moves) > 4
    model = load(planted)
    exact = {name: linear.weight.data.numpy().copy() for name, linear in linears(model).items()}
    fold = tensor_factors(moves)
    model.load_state_dict({name: fold(name, w) for name, w in model.state_dict().items()})
    with torch.no_grad():
        found = model(torch.from_numpy(tokens[3])[None]).logits[0].numpy()
    assert np.abs(found - torch_logits(planted, tokens[3])).max() < 1e-4
    for name, linear in linears(model).items():
        rows, columns = factors(moves, name)
        assert np.abs(linear.weight.data.numpy() - exact[name]).max() > 1e-3
        np.testing.assert_allclose(linear.weight.data.numpy() * rows[:, None] / columns, exact[name], rtol=1e-6)


def test_output_error_is_below_nearests_on_average(planted: Path, tokens: np.ndarray) -> None:
    """Of smoothed weights on smoothed inputs, relative, over the calibration: the mean over all linears."""
    kept, moves = made(planted, tokens)
    smoothed, ratios = smoothed_weights(planted, moves), []

    def visit(targets: tuple[str, ...], x: Parts, weights: list[np.ndarray]) -> None:
        columns = factors(moves, targets[0])[1]
        h = hessian(part / columns for part in x)
        for name in targets:
            w = smoothed[name]
            codes, scales = quantize_channels(w)
            ours, scale = signed_channels(loaded(kept, name))
            np.testing.assert_array_equal(scale, scales)
            lost = [np.einsum("nk,kl,nl->", d, h, d) for d in (each * scales[:, None] - w for each in (ours, codes))]
            ratios.append(lost[0] / lost[1])

    stream(planted, tokens, visit)
    assert len(ratios) == 14
    assert np.mean(ratios) < 0.7, ratios


def test_the_hessian_is_that_of_the_smoothed_inputs(planted: Path, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """H' = diag(1/s) H diag(1/s), against the inputs divided by s one by one; the first group reads unrounded inputs. In float32:
    AMX rounds the ones and the others apart."""
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)
    seen = []
    solve = gptq.solve
    monkeypatch.setattr(gptq, "solve", lambda w, h, grid, shrink: seen.append((w, h)) or solve(w, h, grid, shrink))
    _, moves = made(planted, tokens)
    inputs: list[np.ndarray] = []
    stream(planted, tokens, lambda targets, x, weights: inputs.extend(part.copy() for part in x))
    first = "model.layers.0.self_attn.q_proj"
    np.testing.assert_allclose(seen[0][1], hessian([inputs[0] / factors(moves, first)[1]]), rtol=1e-4, atol=1e-6)
    smoothed = smoothed_weights(planted, moves)
    expected = np.concatenate([smoothed[first.replace("q_proj", f"{name}_proj")] for name in "qkv"])
    np.testing.assert_array_equal(seen[0][0], expected)


def test_the_artifact_holds_the_codes_that_are_simulated(
    planted: Path, planted_base: Path, tokens: np.ndarray, tmp_path: Path
) -> None:
    """And computes it, where the embedding and lm_head are the artifact's own, 8 bits in groups of 64."""
    kept, moves = made(planted, tokens[:2])
    notes = smoothquant_gptq.apply(planted, W8A8, "onnxruntime", tokens[:2], tmp_path / "out", base=planted_base)
    assert f"scales moved at {len(moves)} of 8 tensors; Hessians from 64 calibration tokens" in notes[0]
    found = stored(tmp_path / "out")
    for layer in (0, 1):
        root = f"model.layers.{layer}"
        signed = {name: signed_channels(loaded(kept, name))[0] for name in kept if name.startswith(root)}
        qkv = np.concatenate([signed[f"{root}.self_attn.{name}_proj"] for name in "qkv"])
        np.testing.assert_array_equal(found[f"{root}.attn.qkv_proj"].T, qkv)
        np.testing.assert_array_equal(found[f"{root}.attn.o_proj"].T, signed[f"{root}.self_attn.o_proj"])
        for name in ("gate", "up", "down"):
            np.testing.assert_array_equal(found[f"{root}.mlp.{name}_proj"].T, signed[f"{root}.mlp.{name}_proj"])
    model = load(planted)
    fake = smoothquant_gptq.fake(model, W8A8, tokens[:2])
    assert fake.weight and fake.inputs
    for name, linear in linears(model).items():
        np.testing.assert_array_equal(fake.weight(name, linear.weight.data).numpy(), unmoved(kept, name, moves, W8A8))
    x = torch.from_numpy(np.random.default_rng(3).standard_normal((5, 128)).astype(np.float32))
    columns = factors(moves, "model.layers.0.mlp.down_proj")[1]
    rounded = fake_tokens(x.numpy() / columns) * columns
    np.testing.assert_allclose(fake.inputs("model.layers.0.mlp.down_proj", x).numpy(), rounded, rtol=1e-6)
    exact = torch_logits(planted, tokens[3])
    model.lm_head.weight.data = torch.from_numpy(nearest(model.lm_head.weight.data.numpy(), 8, 64, True))
    with applied(fake) as logits:
        simulated = logits(tokens[3]).numpy()
    assert kl(simulated, run(tmp_path / "out", tokens[3])) < 0.02 * kl(exact, simulated)


def test_weights_lose_less_than_by_rounding_to_nearest(planted: Path, many: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """KL over texts that calibration did not see, of weights alone and with rounded inputs: below the same scales under a Hessian
    that damping drowned, which is SmoothQuant. In groups of 4 bits below ZeroQuant too."""
    model, texts = load(planted), np.random.default_rng(7).integers(3, 256, (8, 32)).astype(np.int64)
    four = scheme("w4a8-g64")
    searched = smoothquant_gptq.fake(model, W8A8, many)
    groups = fake_kl(smoothquant_gptq.fake(model, four, many), planted, texts)
    assert groups < fake_kl(zeroquant.fake(model, four, many), planted, texts) / 2
    monkeypatch.setattr(gptq, "DAMPING", 1e9)
    nearest = smoothquant_gptq.fake(model, W8A8, many)
    assert fake_kl(searched, planted, texts) < fake_kl(nearest, planted, texts)
    alone = [fake_kl(one._replace(inputs=None), planted, texts) for one in (searched, nearest)]
    assert alone[0] < 0.75 * alone[1], alone


def test_four_bits_are_refused_where_zeroquants_are(llama: Path) -> None:
    four = scheme("w4a8-g64")
    for runtime in ("onnxruntime", "vllm"):
        assert smoothquant_gptq.refuse(llama, four, runtime) == zeroquant.refuse(llama, four, runtime) is not None


@pytest.fixture(scope="module")
def undisturbed(llama: Path, base: Path, tokens: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "whole"
    smoothquant_gptq.apply(llama, W8A8, "onnxruntime", tokens[:2], out, base=base)
    return out


@pytest.mark.parametrize("stop", [0, 1, 5, 7])
def test_interrupted_and_resumed_gives_the_same_bytes(
    stop: int, undisturbed: Path, llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scales of the first run are taken, not searched again: its codes are of weights scaled by these."""
    solve, solved = gptq.solve, []

    def counted(*inputs: Any, **more: Any) -> Any:
        if len(solved) == stop and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            raise KeyboardInterrupt
        solved.append(1)
        return solve(*inputs, **more)

    monkeypatch.setattr(gptq, "solve", counted)
    given = llama, W8A8, "onnxruntime", tokens[:2], tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        smoothquant_gptq.apply(*given, base=base)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(smoothquant, "search", lambda *_, **__: pytest.fail("searched again"))
    said: list[str] = []
    notes = smoothquant_gptq.apply(*given, base=base, say=said.append)
    assert len(solved) == 8
    assert any("interrupted run" in note for note in notes) == (stop > 0)
    assert [line.split(",")[0] for line in said] == ["layer 1 of 2 done", "layer 2 of 2 done"]
    for path in undisturbed.iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "stopped"]


def test_a_model_where_no_scale_helps_is_rounded_as_it_is(
    llama: Path, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smoothquant, "search", lambda *_, **__: smoothquant.Found([], [], ""))
    monkeypatch.setattr(gptq, "DAMPING", 1e9)
    kept, moves = made(llama, tokens[:2])
    assert moves == []
    assert kept[SMOOTHING] == {}
    plain = plain_fake(None, W8A8).weight
    assert plain
    for name, linear in linears(load(llama)).items():
        np.testing.assert_array_equal(unmoved(kept, name, moves, W8A8), plain(name, linear.weight.data).numpy())


def test_refusals(tmp_path: Path, llama: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma2"}')
    assert "gemma2" in str(smoothquant_gptq.refuse(tmp_path, W8A8, "onnxruntime"))
    assert "does not offer w8a8-static" in str(smoothquant_gptq.refuse(llama, scheme("w8a8-static"), "onnxruntime"))
    assert "is not for vllm" in str(smoothquant_gptq.refuse(llama, W8A8, "vllm"))
    assert "writes nothing for openvino" in str(smoothquant_gptq.refuse(llama, W8A8, "openvino"))
    for name, runtime in (("w8a8", "onnxruntime-genai"), ("w8a8-bf16", "vllm"), ("w8a8-bf16", "triton")):
        assert smoothquant_gptq.refuse(llama, scheme(name), runtime) is None
