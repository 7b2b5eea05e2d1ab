"""GPTQ against a solution from scratch at every step, its golden numbers, and its artifacts integer by integer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantadvisor.documents.errors import CandidateFailed
from quantadvisor.kernels.packing import unpack_nbits
from quantadvisor.methods import gptq, layerwise, rtn
from quantadvisor.methods.affine import dequantize_groups, quantize_groups
from quantadvisor.methods.linear_format import LinearFormat
from quantadvisor.methods.schemes import scheme

from .conftest import mean_kls, write_llama

H = np.array([[2, 1, 0.5], [1, 3, 1], [0.5, 1, 2]])
W = np.array([[0.4, 1.3, -0.7]], np.float32)
UNIT = np.ones((1, 1), np.float32), np.full((1, 1), 8, np.uint8)


def draw(seed: int, rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights [rows, width] and the Hessian of correlated inputs."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((3 * width, width)) @ random.standard_normal((width, width))
    return random.standard_normal((rows, width)).astype(np.float32), 2 * x.T @ x / len(x)


def from_scratch(w: np.ndarray, h: np.ndarray, order: np.ndarray, steps: np.ndarray, zeros: np.ndarray, top: int) -> np.ndarray:
    """Round in `order`; after each, ALL weights still to come are solved for anew: d_R = -H_RR^-1 H_RQ d_Q. w: [N, K]."""
    codes = np.zeros(w.shape, int)
    for n, row in enumerate(w.astype(np.float64)):
        now = row.copy()
        for turn, q in enumerate(order):
            codes[n, q] = np.clip(np.rint(now[q] / steps[n, q]) + zeros[n, q], 0, top)
            done, rest = order[: turn + 1], order[turn + 1 :]
            d = (codes[n, done] - zeros[n, done]) * steps[n, done] - row[done]
            now[rest] = row[rest] - np.linalg.solve(h[np.ix_(rest, rest)], h[np.ix_(rest, done)] @ d)
    return codes


def output_loss(w: np.ndarray, rounded: np.ndarray, h: np.ndarray) -> float:
    d = (rounded - w).astype(np.float64)
    return float(np.einsum("nk,kl,nl->", d, h, d))


def test_golden() -> None:
    """Step 1: GPTQ [0, 1, 0] costs 1.11 where rounding to nearest, [0, 1, -1], costs 1.31."""
    found = gptq.sweep(W, gptq.feedback(H, np.arange(3)), np.arange(3), *UNIT, LinearFormat(4, 3, True))
    assert (found.codes.astype(int) - 8).tolist() == [[0, 1, 0]]
    assert output_loss(W, found.codes.astype(float) - 8, H) == pytest.approx(1.11)
    assert output_loss(W, np.array([[0, 1, -1]]), H) == pytest.approx(1.31)


def test_the_factor_is_of_the_hessian_and_of_its_inverse() -> None:
    """h = U D U^T; V, the Cholesky factor of h^-1 by which the paper's algorithm corrects, is U^-1 but for its rows' scale."""
    _, h = draw(0, 1, 40)
    factor = gptq.feedback(h, np.arange(40)).astype(np.float64)
    assert not np.tril(factor, -1).any()
    np.testing.assert_array_equal(np.diagonal(factor), 1)
    unscaled = np.linalg.solve(factor, h) @ np.linalg.inv(factor).T
    np.testing.assert_allclose(unscaled, np.diag(np.diagonal(unscaled)), atol=1e-5 * np.abs(h).max())
    papers = np.linalg.cholesky(np.linalg.inv(h)).T
    np.testing.assert_allclose(np.linalg.inv(factor), papers / np.diagonal(papers)[:, None], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("act_order", [False, True])
def test_like_a_solution_from_scratch(seed: int, act_order: bool) -> None:
    w, h = draw(seed, 6, 16)
    order = np.argsort(-np.diagonal(h), kind="stable") if act_order else np.arange(16)
    _, scales, zeros = quantize_groups(w, 3, 8, False)
    found = gptq.sweep(w, gptq.feedback(h, order), order, scales, zeros, LinearFormat(3, 8, False))
    expected = from_scratch(w, h, order, np.repeat(scales, 8, axis=1), np.repeat(zeros, 8, axis=1).astype(int), 7)
    np.testing.assert_array_equal(found.codes, expected)


@pytest.mark.parametrize("width", [128, 200, 260])
def test_blocks_change_nothing(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Corrections kept back to the end of a block are the same corrections; float32 may flip a tie now and then."""
    w, h = draw(width, 8, width)
    found = gptq.solve(w, h, LinearFormat(4, 64, False))
    monkeypatch.setattr(gptq, "BLOCK", width)
    assert (found.codes == gptq.solve(w, h, LinearFormat(4, 64, False)).codes).mean() > 0.99


def test_products_leave_the_threads_as_they_were(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A wide product takes all threads, a narrow one a single one; the codes are the same but for ties."""
    import torch

    before, threads = torch.get_num_threads(), 2
    torch.set_num_threads(threads)
    request.addfinalizer(lambda: torch.set_num_threads(before))
    w, h = draw(3, 8, 80)
    found = gptq.solve(w, h, LinearFormat(4, 16, False))
    assert torch.get_num_threads() == threads
    monkeypatch.setattr(gptq, "ALONE", 1)
    assert (found.codes == gptq.solve(w, h, LinearFormat(4, 16, False)).codes).mean() > 0.99
    with pytest.raises(ValueError, match="in a product"), gptq.one_thread():
        assert torch.get_num_threads() == 1
        raise ValueError("in a product")
    assert torch.get_num_threads() == threads


def test_one_share_is_the_min_max_grid() -> None:
    w, h = draw(4, 6, 40)
    _, scales, zeros = quantize_groups(w, 4, 16, False)
    found = gptq.solve(w, h, LinearFormat(4, 16, False), shrink=(1.0,))
    np.testing.assert_array_equal(found.scales, scales)
    np.testing.assert_array_equal(found.zeros, zeros)


def test_below_nearest_on_average() -> None:
    """Not in every draw (about nine in ten): the mean over draws."""
    ours, nearest = [], []
    for seed in range(30):
        w, h = draw(seed, 4, 32)
        ours.append(output_loss(w, dequantize_groups(*gptq.solve(w, h, LinearFormat(4, 16, False)), 16), h))
        nearest.append(output_loss(w, dequantize_groups(*quantize_groups(w, 4, 16, False), 16), h))
    assert np.mean(ours) < 0.7 * np.mean(nearest)


@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_grid_is_the_best_of_the_shrunk_ranges(symmetric: bool) -> None:
    w, h = draw(5, 3, 40)
    importance = np.diagonal(h)
    scales, _ = gptq.mse_grid(w, LinearFormat(3, 16, symmetric), importance)
    for n in range(3):
        for g, part in enumerate((slice(0, 16), slice(16, 32), slice(32, 40))):
            costs = []
            for factor in gptq.SHRINK:
                low, high = min(0.0, w[n, part].min() * factor), max(0.0, w[n, part].max() * factor)
                step = (high - low) / 7 if not symmetric else max(-low, high) / 3
                zero = np.rint(-low / step) if not symmetric else 4
                rounded = (np.clip(np.rint(w[n, part] / step) + zero, 0, 7) - zero) * step
                costs.append((float((importance[part] * (rounded - w[n, part]) ** 2).sum()), step))
            assert scales[n, g] == pytest.approx(min(costs)[1], rel=1e-4)


def test_inputs_that_never_came_are_rounded_to_nearest() -> None:
    w, h = draw(1, 4, 8)
    h[3] = h[:, 3] = 0
    found = gptq.solve(w, h, LinearFormat(8, 8, True))
    assert np.abs(dequantize_groups(*found, 8)[:, 3] - w[:, 3]).max() <= found.scales.max() * 0.51


def test_a_singular_hessian_is_damped() -> None:
    """Rank 2 of 16."""
    w, _ = draw(2, 4, 16)
    x = np.random.default_rng(2).standard_normal((2, 16))
    assert np.isfinite(dequantize_groups(*gptq.solve(w, x.T @ x, LinearFormat(4, 16, False)), 16)).all()


def test_better_than_nearest_on_the_model_on_average(llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    rtn.apply(llama, scheme("w4-g32"), "onnxruntime", tokens, tmp_path / "rtn", base=base)
    made = (tmp_path / f"gptq-{number}" for number in range(4))

    def search(calibration: np.ndarray) -> Path:
        said, out = list[str](), next(made)
        notes = gptq.apply(llama, scheme("w4-g32"), "onnxruntime", calibration, out, base=base, say=said.append)
        assert [line.split(",")[0] for line in said] == ["layer 1 of 2 done", "layer 2 of 2 done"]
        assert "96 calibration tokens" in notes[0]
        return out

    searched, nearest = mean_kls(llama, tokens, tmp_path / "rtn", search)
    assert searched < nearest
    assert sorted(path.name for path in tmp_path.iterdir()) == [*(f"gptq-{number}" for number in range(4)), "rtn"]


def integers_of(folder: Path, linear: str, width: int, group: int) -> np.ndarray:
    """Codes [N, K] of a MatMulNBits, straight from its tensors."""
    import onnx

    graph = onnx.load(folder / "scoring.onnx")
    packed = next(t for t in graph.graph.initializer if t.name == f"{linear}.MatMul.weight_Q4")
    return unpack_nbits(onnx.numpy_helper.to_array(packed), 4, group).reshape(-1, width)


def test_the_bridge_to_onnx_is_exact(llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    kept: dict = {}
    layerwise.round_all(llama, tokens[:2], LinearFormat(4, 32, False), gptq.solve, kept)
    gptq.apply(llama, scheme("w4-g32"), "onnxruntime", tokens[:2], tmp_path / "out", base=base)
    root = "model.layers.1"
    qkv = np.concatenate([kept[f"{root}.self_attn.{name}_proj"]["codes"] for name in "qkv"])
    np.testing.assert_array_equal(integers_of(tmp_path / "out", f"{root}.attn.qkv_proj", 64, 32), qkv)
    down = kept[f"{root}.mlp.down_proj"]["codes"]
    np.testing.assert_array_equal(integers_of(tmp_path / "out", f"{root}.mlp.down_proj", 128, 32), down)


def test_the_bridge_to_openvino_is_exact(llama: Path, openvino_base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    from .formats.test_openvino import stored

    gptq.apply(llama, scheme("w4-g32"), "openvino", tokens[:2], tmp_path / "out", base=openvino_base)
    for name, expected in gptq.rounded(llama, scheme("w4-g32"), tokens[:2]).items():
        number, values = stored(tmp_path / "out", name)
        assert number == "u4"
        np.testing.assert_allclose(values, expected, atol=1e-6)


@pytest.fixture(scope="module")
def undisturbed(llama: Path, base: Path, tokens: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What GPTQ writes when nothing stops it."""
    out = tmp_path_factory.mktemp("undisturbed") / "whole"
    gptq.apply(llama, scheme("w4-g32"), "onnxruntime", tokens[:2], out, base=base)
    return out


@pytest.mark.parametrize("stop", range(8))
def test_interrupted_at_any_group_and_resumed_gives_the_same_bytes(
    stop: int, undisturbed: Path, llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path
) -> None:
    calls = iter(range(100))

    def interrupted(w, h, grid):  # type: ignore[no-untyped-def]
        if next(calls) == stop:
            raise KeyboardInterrupt
        return gptq.solve(w, h, grid)

    settings = "onnxruntime", tokens[:2], tmp_path / "out", base
    with pytest.raises(KeyboardInterrupt):
        layerwise.apply(llama, scheme("w4-g32"), *settings, interrupted, gptq.SETTINGS)
    assert not (tmp_path / "out").exists()
    solved = []
    notes = layerwise.apply(
        llama, scheme("w4-g32"), *settings, lambda *all_: solved.append(1) or gptq.solve(*all_), gptq.SETTINGS
    )  # type: ignore[arg-type]
    assert len(solved) == 8 - stop
    assert any("interrupted run" in note for note in notes) == (stop > 0)
    for path in undisturbed.iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_weights_that_are_not_finite_are_named(tokens: np.ndarray, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_llama(tmp_path / "hf")
    state = load_file(folder / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CandidateFailed, match=r"model\.layers\.1\.mlp\.up_proj has weights that are not finite"):
        gptq.rounded(folder, scheme("w4-g32"), tokens)


def test_refusals(tmp_path: Path, llama: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma2"}')
    assert "gemma2" in str(gptq.refuse(tmp_path, scheme("w4-g64"), "onnxruntime"))
    assert "is not for torch" in str(gptq.refuse(llama, scheme("w4-g64"), "torch"))
    assert "does not offer w4-g64-kv8" in str(gptq.refuse(llama, scheme("w4-g64-kv8"), "onnxruntime"))
    assert "do not divide" in str(gptq.refuse(llama, scheme("w4-g128"), "openvino"))
    assert gptq.refuse(llama, scheme("w4-g64"), "openvino") is None
