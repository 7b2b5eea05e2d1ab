"""Predicted KL against the KL that torch measures when the same weights are rounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantadvisor.documents import CandidateFailed
from quantadvisor.methods.affine import dequantize_groups, quantize_groups
from quantadvisor.methods.mixed import Costs, Sensitivity, apply, choose, costs_of, note, predicted_kl, sensitivities
from quantadvisor.methods.schemes import scheme

from .conftest import kl

LINEARS = [
    f"model.layers.{layer}.{name}"
    for layer in (0, 1)
    for name in ("attn.qkv_proj", "attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
]


def test_the_prediction_meets_what_torch_measures(llama: Path, tokens: np.ndarray) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    measured = sensitivities(llama, tokens, 32, (*LINEARS, "lm_head"))
    assert [each.name for each in measured] == LINEARS
    assert [each.weights for each in measured[:3]] == [64 * 128, 64 * 64, 64 * 128]
    assert sorted(measured[0].shapes) == [(32, 64), (32, 64), (64, 64)]
    assert measured[4].shapes == ((64, 128),)
    assert all(each.at4 > 20 * each.at8 > 0 for each in measured)

    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    with torch.no_grad():
        exact = model(torch.from_numpy(tokens)).logits.numpy()
        for name, module in model.named_modules():
            if name.endswith("_proj"):
                w = module.weight.numpy()
                module.weight.copy_(torch.from_numpy(dequantize_groups(*quantize_groups(w, 4, 32, False), 32)))
        found = model(torch.from_numpy(tokens)).logits.numpy()
    ratio = kl(exact.reshape(-1, 256), found.reshape(-1, 256)) / sum(each.at4 for each in measured)
    assert 0.4 < ratio < 2.5


def test_it_says_how_far_the_gradients_are(llama: Path, tokens: np.ndarray) -> None:
    heard: list[str] = []
    sensitivities(llama, tokens[:1], 32, (*LINEARS, "lm_head"), heard.append)
    assert [line.split(",")[0] for line in heard] == ["layer 1 of 2 judged", "layer 2 of 2 judged"]
    assert heard[0].endswith(" s left")
    heard.clear()
    sensitivities(llama, tokens[:2], 32, (*LINEARS, "lm_head"), heard.append)
    assert [line.split(",")[0] for line in heard] == [
        f"pass {turn} of 2: layer {layer} of 2 judged" for turn in (1, 2) for layer in (1, 2)
    ]


def test_the_same_twice(llama: Path, tokens: np.ndarray) -> None:
    one, two = (sensitivities(llama, tokens[:1], 64, (*LINEARS, "lm_head")) for _ in range(2))
    assert one == two


def test_predicted_kl_is_half_the_mean_square_along_the_gradient() -> None:
    x = np.array([[2, 0], [0, 4]], np.float32)
    w = np.array([[7, 0.25]], np.float32)  # step 1: the second weight is rounded to 0
    gradient = np.array([[3], [5]], np.float32)
    assert predicted_kl(x, w, gradient, 2, 4, True) == pytest.approx(0.5 * (0 + (4 * 0.25 * 5) ** 2) / 2)


def linears(*sizes: tuple[str, float, float, tuple[int, int]]) -> list[Sensitivity]:
    return [Sensitivity(name, at4, at8, (shape,)) for name, at4, at8, shape in sizes]


def test_the_cheapest_that_keeps_the_target() -> None:
    """KL a byte: b 0.8/10, a 1/100, c 0.1/100; 1.9 in all. A target of 1 needs a alone, which greedy by KL a byte would take
    after b."""
    measured = linears(("a", 1, 0, (10, 10)), ("b", 0.8, 0, (1, 10)), ("c", 0.1, 0, (10, 10)))
    costs = Costs("bytes", ((50, 100), (5, 10), (50, 100)))
    assert choose(measured, costs, 2) == set()
    assert choose(measured, costs, 1.2) == {"b"}
    assert choose(measured, costs, 0.91) == {"a"}
    assert choose(measured, costs, 0.5) == {"a", "b"}
    assert choose(measured, costs, 0) == {"a", "b", "c"}
    text = "8 bit: 1 of 3 linears, 48% of their weights, predicted KL 0.900, chosen by bytes: a"
    assert note(measured, {"a"}, costs) == text


def test_a_target_out_of_reach_gets_the_least_there_is() -> None:
    measured = linears(("a", 1, 0.5, (10, 10)), ("b", 0.8, 0.4, (1, 10)))
    assert choose(measured, Costs("bytes", ((50, 100), (5, 10))), 0.1) == {"a", "b"}


def test_a_budget_is_spent_on_what_takes_away_most() -> None:
    measured = linears(("a", 1, 0, (10, 10)), ("b", 0.8, 0, (1, 10)), ("c", 0.1, 0, (10, 10)))
    costs = Costs("bytes", ((50, 100), (5, 10), (50, 100)))
    assert choose(measured, costs, 0, budget=109) == set()
    assert choose(measured, costs, 0, budget=110) == {"b"}
    assert choose(measured, costs, 0, budget=155) == {"a"}
    assert choose(measured, costs, 0, budget=160) == {"a", "b"}
    with pytest.raises(CandidateFailed, match=r"the linears take 105 bytes at least, the budget is 104: raise it"):
        choose(measured, costs, 0, budget=104)


def test_kernel_times_decide_where_they_are_known() -> None:
    """8 bit takes no more time at the small shape: it is 8 bit, though the target would not ask for it; by bytes all is 4 bit."""
    measured = linears(("small", 0.01, 0, (8, 64)), ("large", 0.05, 0, (8, 128)))
    linear_s = {(8, 64, 4): 2e-3, (8, 64, 8): 2e-3, (8, 128, 4): 2e-3, (8, 128, 8): 3e-3}
    costs = costs_of(measured, 64, linear_s)
    assert costs == Costs("s", ((2e-3, 2e-3), (2e-3, 3e-3)))
    assert choose(measured, costs, 0.07) == {"small"}
    assert choose(measured, costs_of(measured, 64, {}), 0.07) == set()
    assert "chosen by kernel times (no slower than 4 bit in 1): small" in note(measured, {"small"}, costs)
    untimed = {key: value for key, value in linear_s.items() if key != (8, 128, 8)}
    assert costs_of(measured, 64, untimed).unit == "bytes"


def test_fused_linears_cost_what_their_parts_do() -> None:
    measured = [Sensitivity("qkv", 1, 0, ((64, 64), (32, 64), (32, 64)))]
    linear_s = {(64, 64, 4): 2.0, (32, 64, 4): 1.0, (64, 64, 8): 3.0, (32, 64, 8): 1.5}
    assert costs_of(measured, 32, linear_s).of == ((4.0, 6.0),)


@pytest.mark.parametrize(("group", "k"), [(32, 64), (64, 96), (32, 96)])
def test_bytes_are_those_of_the_graph(group: int, k: int) -> None:
    """Codes, scales and zeros as MatMulNBits stores them."""
    from quantadvisor.methods.formats.onnx_weights import rounded

    weight = np.random.default_rng(0).standard_normal((k, 24)).astype(np.float32)
    [found] = costs_of([Sensitivity("one", 1, 0, ((24, k),))], group, {}).of
    for bits, symmetric, cost in ((4, False, found[0]), (8, True, found[1])):
        assert cost == sum(part.nbytes for part in rounded(weight, (bits, group, symmetric)) if part is not None)


def bits_in(folder: Path) -> dict[str, int]:
    """Of every MatMulNBits but lm_head, by the name of its linear."""
    from quantadvisor.methods.formats.onnx_base import load_graph

    nodes = [node for node in load_graph(folder).graph.node if node.op_type == "MatMulNBits" and "lm_head" not in node.name]
    bits = [next(entry.i for entry in node.attribute if entry.name == "bits") for node in nodes]
    return {node.name.split("/MatMul")[0].strip("/").replace("/", "."): wide for node, wide in zip(nodes, bits, strict=True)}


def test_the_artifact_has_8_bits_where_they_take_no_more_time_and_where_a_budget_lets_it(
    llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path
) -> None:
    shapes = ((64, 64), (32, 64), (128, 64), (64, 128))
    linear_s = {(n, k, bits): 1e-3 if (n, k) == (64, 128) else bits * 1e-3 for n, k in shapes for bits in (4, 8)}
    model = (llama, scheme("w4w8-g32"), "onnxruntime", tokens[:2])
    [said] = apply(*model, tmp_path / "free", base=base, target=1e9, linear_s=linear_s)
    assert "8 bit: 2 of 10 linears" in said
    assert "chosen by kernel times (no slower than 4 bit in 2)" in said
    free = bits_in(tmp_path / "free")
    assert free == {name: 8 if name.endswith("down_proj") else 4 for name in LINEARS}

    least = 2 * (12 + 4 + 4 + 4 + 1) * 1e-3  # q, k and v; o, gate, up, down
    apply(*model, tmp_path / "budget", base=base, linear_s=linear_s, most_s=least + 4.1e-3)
    found = bits_in(tmp_path / "budget")
    assert sum(bits == 8 for bits in found.values()) == 3
    measured = {each.name: each.at4 - each.at8 for each in sensitivities(llama, tokens[:2], 32, (*LINEARS, "lm_head"))}
    affordable = [name for name in LINEARS if not name.endswith(("qkv_proj", "down_proj"))]
    assert found[max(affordable, key=measured.__getitem__)] == 8


def test_seconds_bound_only_what_was_timed(llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(CandidateFailed, match=r"was not timed in 4 and 8 bits.*give budget.weights_mib in place of"):
        apply(llama, scheme("w4w8-g32"), "onnxruntime", tokens[:2], tmp_path / "out", base=base, most_s=1.0)
