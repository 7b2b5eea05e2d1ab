"""OBQ against trying every next weight by least squares, and against GPTQ in the order that it took."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantadvisor.methods import gptq, layerwise, obq
from quantadvisor.methods.affine import Grouped, dequantize_groups, quantize_groups
from quantadvisor.methods.kept import Arrays, kept_beside
from quantadvisor.methods.linear_format import LinearFormat
from quantadvisor.methods.schemes import scheme

from .conftest import kl, run, torch_logits, write_llama
from .test_gptq import UNIT, H, W, draw, output_loss


def rest_solved(row: np.ndarray, h: np.ndarray, done: list[int], values: np.ndarray) -> tuple[np.ndarray, float]:
    """(row with `done` at their values and the rest at its optimum, the loss): from scratch."""
    rest = [k for k in range(len(row)) if k not in done]
    now = row.copy()
    now[done] = values
    d = now[done] - row[done]
    now[rest] = row[rest] - np.linalg.solve(h[np.ix_(rest, rest)], h[np.ix_(rest, done)] @ d)
    return now, float((now - row) @ h @ (now - row))


def by_trying(row: np.ndarray, h: np.ndarray, steps: np.ndarray, zeros: np.ndarray, top: int) -> tuple[np.ndarray, list[int]]:
    """Every weight that is left is tried as the next, where any lie off the grid only those; the one after which the loss is
    least is taken."""
    now, done, values = row.copy(), list[int](), list[float]()
    lowest, highest = (-0.5 - zeros) * steps, (top + 0.5 - zeros) * steps
    while len(done) < len(row):
        left = set(range(len(row))) - set(done)
        off = {q for q in left if not lowest[q] <= now[q] <= highest[q]}
        tries = []
        for q in off or left:
            value = (np.clip(np.rint(now[q] / steps[q]) + zeros[q], 0, top) - zeros[q]) * steps[q]
            after, loss = rest_solved(row, h, [*done, q], np.array([*values, value]))
            tries.append((loss, q, value, after))
        _, q, value, now = min(tries, key=lambda each: each[:2])
        done.append(q)
        values.append(value)
    return now, done


def test_golden() -> None:
    """Step 1: [0, 2, -1] in the order 2, 0, 1, loss 1.11."""
    codes, order = obq.greedy(W[0], np.linalg.inv(H), np.ones(3, np.float32), np.full(3, 8, np.uint8), 4)
    assert (codes.astype(int) - 8).tolist() == [0, 2, -1]
    assert order.tolist() == [2, 0, 1]
    assert output_loss(W, codes[None].astype(float) - 8, H) == pytest.approx(1.11)


def test_one_weight_rounded_is_the_closed_form() -> None:
    """q = 1 -> 1: d = [.12, -.3, .12], loss .198 = (w_q - 1)^2 / [H^-1]_qq."""
    now, loss = rest_solved(W[0].astype(float), H, [1], np.array([1.0]))
    np.testing.assert_allclose(now - W[0], [0.12, -0.3, 0.12], atol=1e-6)
    assert loss == pytest.approx(0.198, abs=1e-6)
    assert loss == pytest.approx(0.3**2 / np.linalg.inv(H)[1, 1], abs=1e-6)


@pytest.mark.parametrize("seed", range(15))
def test_like_trying_every_next_weight(seed: int) -> None:
    w, h = draw(seed, 2, 12)
    _, scales, zeros = quantize_groups(w, 3, 6, False)
    steps, middles = np.repeat(scales, 6, axis=1).astype(np.float64), np.repeat(zeros, 6, axis=1)
    for row, step, middle in zip(w, steps, middles, strict=True):
        codes, order = obq.greedy(row, np.linalg.inv(h), step, middle, 3)
        values, done = by_trying(row.astype(np.float64), h, step, middle.astype(int), 7)
        assert order.tolist() == done
        np.testing.assert_allclose((codes.astype(int) - middle) * step, values, atol=1e-9)


@pytest.mark.parametrize("seed", range(15))
def test_gptq_in_the_same_order_is_the_same(seed: int) -> None:
    w, h = draw(seed, 1, 24)
    _, scales, zeros = quantize_groups(w, 4, 8, False)
    codes, order = obq.greedy(w[0], np.linalg.inv(h), np.repeat(scales[0], 8), np.repeat(zeros[0], 8), 4)
    factor = gptq.feedback(h, order)
    np.testing.assert_array_equal(gptq.sweep(w, factor, order, scales, zeros, LinearFormat(4, 8, False)).codes[0], codes)


def test_a_weight_off_its_grid_goes_first() -> None:
    """4.6 steps beyond a grid of two bits: taken before the others, which cost nothing."""
    row = np.array([5.6, 1.0, 0.0], np.float32)
    codes, order = obq.greedy(row, np.linalg.inv(H), np.ones(3, np.float32), np.full(3, 2, np.uint8), 2)
    assert order[0] == 0
    assert codes[0] == 3


def test_below_nearest_on_average() -> None:
    ours, nearest = [], []
    for seed in range(30):
        w, h = draw(seed, 4, 32)
        ours.append(output_loss(w, dequantize_groups(*obq.solve(w, h, LinearFormat(4, 16, False)), 16), h))
        nearest.append(output_loss(w, dequantize_groups(*quantize_groups(w, 4, 16, False), 16), h))
    assert np.mean(ours) < 0.7 * np.mean(nearest)


def test_golden_by_gptq_costs_the_same() -> None:
    found = gptq.sweep(W, gptq.feedback(H, np.arange(3)), np.arange(3), *UNIT, LinearFormat(4, 3, True))
    assert output_loss(W, found.codes.astype(float) - 8, H) == pytest.approx(1.11)


def test_a_small_model_is_rounded(llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    assert obq.refuse(llama, scheme("w4-g32"), "onnxruntime") is None
    notes = obq.apply(llama, scheme("w4-g32"), "onnxruntime", tokens[:2], tmp_path / "out", base=base)
    assert "OBQ" in notes[0]
    assert kl(torch_logits(llama, tokens[3]), run(tmp_path / "out", tokens[3])) < 0.2


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer, 32 wide."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    return write_llama(tmp_path_factory.mktemp("tiny") / "hf", num_hidden_layers=1, **sizes)


@pytest.mark.parametrize("stop", range(4))
def test_interrupted_at_any_group_and_resumed_gives_the_same_integers(
    stop: int, tiny: Path, tokens: np.ndarray, tmp_path: Path
) -> None:
    grid, whole, calls = LinearFormat(4, 32, False), dict[str, Arrays](), iter(range(100))
    layerwise.round_all(tiny, tokens[:2], grid, obq.solve, whole)

    def interrupted(w: np.ndarray, h: np.ndarray, grid: LinearFormat) -> Grouped:
        if next(calls) == stop:
            raise KeyboardInterrupt
        return obq.solve(w, h, grid)

    place = tmp_path / "out", tiny, tokens[:2], obq.SETTINGS
    with pytest.raises(KeyboardInterrupt), kept_beside(*place) as kept:
        layerwise.round_all(tiny, tokens[:2], grid, interrupted, kept)
    with kept_beside(*place) as kept:
        assert len(kept) == (0, 3, 4, 6)[stop]  # q, k and v; o; gate and up; down
        layerwise.round_all(tiny, tokens[:2], grid, obq.solve, kept)
        assert set(kept) == set(whole)
        for name, arrays in whole.items():
            for part, value in arrays.items():
                assert kept[name][part].tobytes() == value.tobytes(), (name, part)


def test_a_large_one_is_refused_with_its_hours(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,'
        ' "num_attention_heads": 9, "num_key_value_heads": 3}'
    )
    per_layer = (576 + 2 * 192 + 2 * 1536) * 576**3 + 576 * 576**3 + 576 * 1536**3
    assert obq.operations(layer_config(tmp_path)) == 30 * per_layer
    refused = str(obq.refuse(tmp_path, scheme("w4-g64"), "onnxruntime"))
    hours = 30 * per_layer / obq.operations_per_s() / 3600
    assert f"about {hours:.0f} hours (modelled from one update timed here)" in refused


def layer_config(folder: Path) -> dict:
    import json

    return json.loads((folder / "config.json").read_text())
