"""AWQ's searches against loops over the definition, and its artifact against the weights that it says it stands for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantadvisor.methods import awq, rtn
from quantadvisor.methods.affine import dequantize_groups, quantize_groups
from quantadvisor.methods.linear_format import LinearFormat
from quantadvisor.methods.rescale import Pair
from quantadvisor.methods.schemes import scheme

from .conftest import kl, mean_kls, run, torch_logits

GRID = LinearFormat(4, 32, False)
NORM = Pair("norm", ("linear",), norm=True)


def planted() -> tuple[np.ndarray, np.ndarray]:
    """Inputs [128, 64] with every eighth channel ten times as loud, weights [32, 64]."""
    random = np.random.default_rng(1)
    x = random.standard_normal((128, 64))
    x[:, ::8] *= 10
    return x, random.standard_normal((32, 64))


def nearest(w: np.ndarray, group: int) -> np.ndarray:
    """4 bit asymmetric in groups, in a loop."""
    result = np.empty_like(w)
    for n in range(len(w)):
        for at in range(0, w.shape[1], group):
            part = w[n, at : at + group]
            low, high = min(part.min(), 0), max(part.max(), 0)
            step = (high - low) / 15
            zero = np.rint(-low / step)
            result[n, at : at + group] = (np.clip(np.rint(part / step) + zero, 0, 15) - zero) * step
    return result


def loss(x: np.ndarray, w: np.ndarray, s: np.ndarray) -> float:
    """mean (X W^T - X (Q(W s) / s)^T)^2, by the definition."""
    s = np.maximum(s, 1e-4)
    s = s / np.sqrt(s.max() * s.min())
    return float(((x @ w.T - x @ (nearest(w * s, 32) / s).T) ** 2).mean())


def means(w: np.ndarray) -> np.ndarray:
    """Of |w| over the largest of its group of 32, in a loop."""
    total = np.zeros(w.shape[1])
    for row in np.abs(w):
        for at in range(0, len(row), 32):
            total[at : at + 32] += row[at : at + 32] / (row[at : at + 32].max() + 1e-6)
    return total / len(w)


def test_the_search_finds_the_definitions_minimum() -> None:
    x, w = planted()
    loud, m = np.abs(x).mean(axis=0), means(w)
    expected = {None: loss(x, w, np.ones(64))} | {r: loss(x, w, loud**r / (m ** (1 - r) + 1e-4)) for r in awq.RATIOS}
    gram = (x.T @ x / len(x)).astype(np.float32)
    ratio, scale = awq.best_scale(NORM, loud.astype(np.float32), gram, w.astype(np.float32), GRID)
    assert ratio == min(expected, key=expected.__getitem__)
    assert 0 < ratio < 1
    assert scale.max() * scale.min() == pytest.approx(1, rel=1e-5)
    for exponent in awq.RATIOS[::6]:
        wide = awq.scale_for(loud.astype(np.float32), awq.heaviness(w.astype(np.float32), 32), exponent)
        ours = awq.scaled_error(w.astype(np.float32), wide, gram, GRID) / len(w)
        assert ours == pytest.approx(expected[exponent], rel=2e-3)


def test_golden_losses_of_the_papers_scale() -> None:
    """Of the facts, with weights of no say: 6.00822 without a scale, 2.59222 at best, 2.6782 at r = 0.35, 10.6577 at r = 0.95."""
    x, w = planted()
    loud = np.abs(x).mean(axis=0)
    gram = (x.T @ x / len(x)).astype(np.float32)
    for ratio, golden in ((0.0, 6.00822), (0.5, 2.59222), (0.35, 2.6782), (0.95, 10.6577)):
        assert loss(x, w, loud**ratio) == pytest.approx(golden, abs=1e-4)
        wide = awq.scale_for(loud.astype(np.float32), np.ones(64, np.float32), ratio)
        assert awq.scaled_error(w.astype(np.float32), wide, gram, GRID) / len(w) == pytest.approx(golden, rel=2e-3)


def test_no_scale_wins_where_every_scale_costs() -> None:
    """Weights that are on the grid already."""
    x = np.random.default_rng(2).standard_normal((128, 64))
    x[:, ::8] *= 10
    w = np.random.default_rng(3).integers(0, 16, (32, 64)) - 8.0
    w[:, ::32], w[:, 1::32] = -8, 7
    gram = (x.T @ x / len(x)).astype(np.float32)
    _, scale = awq.best_scale(NORM, np.abs(x).mean(axis=0).astype(np.float32), gram, w.astype(np.float32), GRID)
    np.testing.assert_array_equal(scale, 1)


@pytest.mark.parametrize("width", [64, 40])
def test_clipping_is_the_best_of_the_shares_group_by_group(width: int) -> None:
    random = np.random.default_rng(width)
    x = random.standard_normal((200, width)) @ random.standard_normal((width, width))
    w = (random.standard_normal((6, width)) ** 3).astype(np.float32)
    gram = (x.T @ x / len(x)).astype(np.float32)
    found = dequantize_groups(*awq.clipped(w, gram, GRID, awq.CLIPS), 32)
    better = 0
    for n in range(6):
        for at in range(0, width, 32):
            part, inputs = w[n : n + 1, at : at + 32], x[:, at : at + 32]
            bound = np.abs(part).max()
            tries = [nearest(np.clip(part, -bound * share, bound * share).astype(float), 32) for share in awq.CLIPS]
            costs = [float(((inputs @ (each - part).T) ** 2).mean()) for each in tries]
            ours = float(((inputs @ (found[n : n + 1, at : at + 32] - part).T) ** 2).mean())
            assert ours == pytest.approx(min(costs), rel=2e-2)
            better += min(costs) < costs[0]
    assert better > 3


def test_no_clipping_is_plain_rounding() -> None:
    _, w = planted()
    w = w.astype(np.float32)
    for ours, theirs in zip(awq.clipped(w, np.eye(64, dtype=np.float32), GRID, (1.0,)), quantize_groups(w, *GRID), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_folding_keeps_the_function(llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    """The moved scales alone, before anything is rounded."""
    from quantadvisor.methods.formats import onnx
    from quantadvisor.methods.formats.onnx_base import Rewrite
    from quantadvisor.methods.refusals import config
    from quantadvisor.methods.rescale import pairs

    kept: dict = {}
    awq.search_all(llama, tokens, GRID, kept)
    moved = [(pair, awq.scale_of(kept, pair)) for pair in pairs(config(llama))]
    assert max(float(np.ptp(scale)) for _, scale in moved) > 0.2
    with Rewrite(base, tmp_path / "folded", onnx.rescaled(base, moved, config(llama))):
        pass
    assert np.abs(run(tmp_path / "folded", tokens[0]) - run(base, tokens[0])).max() < 1e-4


def with_weights(folder: Path, weights: dict[str, np.ndarray], row: np.ndarray) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, value in weights.items():
            model.get_submodule(name).weight.copy_(torch.from_numpy(value))
        return model(torch.from_numpy(row)[None]).logits[0].numpy()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_artifact_is_what_the_rounded_weights_say(
    runtime: str, llama: Path, tokens: np.ndarray, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Scales in norms and rows of v and up against their inverse in the readers: all in one product. lm_head is 8 bit."""
    export = request.getfixturevalue("base" if runtime == "onnxruntime" else "openvino_base")
    expected = with_weights(llama, awq.rounded(llama, scheme("w4-g32"), tokens[:3]), tokens[3])
    awq.apply(llama, scheme("w4-g32"), runtime, tokens[:3], tmp_path / "out", base=export)
    found = run(tmp_path / "out", tokens[3]) if runtime == "onnxruntime" else openvino_logits(tmp_path / "out", tokens[3])
    assert kl(expected, found) < 0.1 * kl(torch_logits(llama, tokens[3]), expected)


def openvino_logits(folder: Path, row: np.ndarray) -> np.ndarray:
    import openvino

    core = openvino.Core()
    model = core.read_model(folder / "openvino_scoring.xml", folder / "openvino_model.bin")
    request = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    inputs = {"input_ids": row[None], "attention_mask": np.ones_like(row)[None], "position_ids": np.arange(len(row))[None],
              "beam_idx": np.zeros(1, np.int32)}  # fmt: skip
    known = {name for port in request.model_inputs for name in port.get_names()}
    request.infer({name: value for name, value in inputs.items() if name in known})
    return request.get_tensor("logits").data[0].copy()


def test_better_than_nearest_on_the_model_on_average(llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    rtn.apply(llama, scheme("w4-g32"), "onnxruntime", tokens, tmp_path / "rtn", base=base)
    made = (tmp_path / f"awq-{number}" for number in range(4))

    def search(calibration: np.ndarray) -> Path:
        said, out = list[str](), next(made)
        notes = awq.apply(llama, scheme("w4-g32"), "onnxruntime", calibration, out, base=base, say=said.append)
        assert [line.split(",")[0] for line in said] == ["layer 1 of 2 done", "layer 2 of 2 done"]
        assert "exponents" in notes[0]
        return out

    searched, nearest = mean_kls(llama, tokens, tmp_path / "rtn", search)
    assert searched < nearest
    assert sorted(path.name for path in tmp_path.iterdir()) == [*(f"awq-{number}" for number in range(4)), "rtn"]


def test_refusals(tmp_path: Path, llama: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "phi3"}')
    assert "phi3" in str(awq.refuse(tmp_path, scheme("w4-g64"), "onnxruntime"))
    assert "does not offer w8-g64" in str(awq.refuse(llama, scheme("w8-g64"), "onnxruntime"))
    assert awq.refuse(llama, scheme("w4-g64"), "openvino") is None
