"""Regret on planted samples, and stages that resume."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from quantadvisor.advisor import candidates
from quantadvisor.advisor.prove import Trial
from quantadvisor.advisor.regret import Fresh, able, everything_s, in_order, may_be_best, ratio_interval, regret_of
from quantadvisor.advisor.stages import Quiet, Stages
from quantadvisor.documents import BadInput, Document, Predicted

from .documents import candidate, workload


class Number(Document):
    value: int


def test_regret_is_zero_for_the_best_and_the_gap_for_another() -> None:
    fresh = Fresh(samples={"a": (1.0, 1.0, 1.0), "b": (1.1, 1.1, 1.1)})
    best = regret_of(fresh, "a", [], workload(), 1.0, 4.0, ["c"])
    other = regret_of(fresh, "b", [], workload(), 1.0, 4.0, [])
    assert best
    assert other
    assert (best.ratio, best.best, best.not_measured) == (0.0, "a", ("c",))
    assert other.ratio == pytest.approx(0.1)
    assert other.measuring_share == pytest.approx(0.25)
    assert regret_of(fresh, "gone", [], workload(), 1.0, 4.0, []) is None


def test_what_was_not_reached_counts_as_the_median_of_what_was() -> None:
    trials = [Trial(name=name, seconds=10.0) for name in "ab"]
    assert everything_s(trials, 5.0, 3) == pytest.approx(5.0 + 20.0 + 30.0)


def test_everything_is_all_that_can_run_whatever_was_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "saturates", lambda: False)
    context = SimpleNamespace(workload=workload(), device=SimpleNamespace(isa=()), interpreter=lambda runtime: runtime)
    excluded = {"excluded": "simulated mean KL 0.7 is over the budget"}
    kept = [candidate("rtn-w8-g64@onnxruntime", 1.0), candidate("rtn-w4-g64@onnxruntime", 1.0).model_copy(update=excluded)]
    left = [
        candidate("rtn-w3-g64@onnxruntime", 1.0).model_copy(update={"refused": "no kernel"}),
        candidate("lkd-w4-g64@onnxruntime", 1.0),
        candidate("smoothquant-w7a8@onnxruntime", 1.0),
        candidate("static_int8-w8a8-static-npu@onnxruntime", 1.0),
    ]
    assert able(context, [*left, *kept]) == kept  # type: ignore[arg-type]


def test_rivals_are_measured_first_then_one_of_each_method_and_scheme() -> None:
    def predicted(name: str, objective: float, excluded: str | None = None):
        guess = Predicted(objective=objective, basis="b", written_at="now")
        return candidate(name, 1.0).model_copy(update={"predicted": guess, "excluded": excluded, "measured": None})

    everyone = [
        predicted("rtn-w8-g64@openvino+f32", 2.5),
        predicted("none-fp32@openvino+f32", 3.0),
        predicted("rtn-w8-g64@openvino+bf16", 1.0),
        predicted("rtn-w8-g64@onnxruntime", 1.2),
        predicted("rtn-w4-g64@onnxruntime", 1.1, "over the budget"),
        predicted("rtn-w4-g64@openvino+bf16", 0.9, "over the budget"),
        candidate("llm_int8-w8a8-outlier-fp16@torch", 1.0).model_copy(update={"predicted": None, "measured": None}),
    ]
    order = [c.name for c in in_order(everyone, {"rtn-w8-g64@openvino+bf16"}, workload())]
    assert order == [
        "rtn-w8-g64@onnxruntime",
        "llm_int8-w8a8-outlier-fp16@torch",  # nobody knows
        "none-fp32@openvino+f32",
        "rtn-w4-g64@openvino+bf16",
        "rtn-w8-g64@openvino+f32",
        "rtn-w4-g64@onnxruntime",
    ]


@pytest.mark.parametrize(
    ("value", "maximise", "may"),
    [(1.29, False, True), (1.31, False, False), (0.5, False, True), (0.78, True, True), (0.76, True, False), (5.0, True, True)],
)
def test_what_is_predicted_near_the_best_or_better_may_be_it(value: float, maximise: bool, may: bool) -> None:
    assert may_be_best(value, 1.0, maximise) is may


def test_what_is_maximised_is_turned_round() -> None:
    middle, low, high = ratio_interval((40.0,), (44.0,), maximise=True)
    assert middle == pytest.approx(0.1)
    assert low <= middle <= high


def test_an_interval_covers_the_noise() -> None:
    middle, low, high = ratio_interval((1.0, 1.2, 0.9, 1.1, 1.0), (1.0, 1.0, 1.1, 0.9, 1.0), maximise=False)
    assert low < 0 < high
    assert low <= middle <= high


def test_a_stage_is_computed_once_and_read_on_resume(tmp_path: Path) -> None:
    made: list[int] = []

    def compute() -> Number:
        made.append(1)
        return Number(value=len(made))

    assert Stages(tmp_path, "k", False, Quiet()).run("n", "N", Number, compute).value == 1
    assert Stages(tmp_path, "k", True, Quiet()).run("n", "N", Number, compute).value == 1
    assert Stages(tmp_path, "k", False, Quiet()).run("n", "N", Number, compute).value == 2
    with pytest.raises(BadInput, match="another workload"):
        Stages(tmp_path, "other", True, Quiet())
    (tmp_path / "stages" / "n.json").write_text("{")
    assert Stages(tmp_path, "k", True, Quiet()).run("n", "N", Number, compute).value == 3
