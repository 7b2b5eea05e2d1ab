"""`make bench`: bars that a row holds or does not. The runs themselves are real."""

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from quantadvisor.advisor.expected import NO_GHOST
from quantadvisor.documents import Candidate, LedgerRow, Predicted, Regret

from .advisor.documents import candidate, workload

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench", ROOT / "benchmarks" / "bench.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("total", "holds"), [(1.14, False), (1.15, True)])
def test_summarize_says_which_runtimes_competed(bench: ModuleType, total: float, holds: bool) -> None:
    candidates = [SimpleNamespace(name=f"x@{runtime}", runtime=runtime, measured=measured)
                  for runtime, measured in (("torch", True), ("vllm", True), ("openvino", None))]  # fmt: skip
    verdict = SimpleNamespace(speedup=SimpleNamespace(total=total), choice="x@vllm")
    ((_, bar, seen, found),) = bench.summarize({"summarize": SimpleNamespace(verdict=verdict, candidates=candidates)})
    assert (bar, seen, found) == ("≥ 1.15x", f"{total:.2f}x, x@vllm, of torch, vllm", holds)


@pytest.mark.parametrize(("left_out", "unseen", "holds"), [(None, None, True), ("openvino", None, False), (None, "vllm", False)])
def test_every_runtime_of_a_cpu_must_have_run(bench: ModuleType, left_out: str | None, unseen: str | None, holds: bool) -> None:
    candidates = [
        SimpleNamespace(runtime=name, measured=name != left_out, operators=SimpleNamespace(operators=(name,) * (name != unseen)))
        for name in ("torch", "onnxruntime", "onnxruntime-genai", "openvino", "llama.cpp", "vllm")
    ]
    ((_, _, seen, found),) = bench.runtimes({"chat": SimpleNamespace(candidates=candidates)})
    assert found is holds
    assert ((left_out or unseen or "vllm") in seen.split(", ")) is holds


@pytest.mark.parametrize(("total", "holds"), [(2.19, False), (2.2, True), (None, False)])
def test_long_context_s_step_is_over_the_baseline(bench: ModuleType, total: float | None, holds: bool) -> None:
    faster = None if total is None else SimpleNamespace(total=total)
    verdict = SimpleNamespace(capacity=None, decode_speedup=faster, choice=None)
    *_, (what, bar, _, found) = bench.long_context({"long_context": SimpleNamespace(verdict=verdict, candidates=[])})
    assert "over torch bf16" in what
    assert (bar, found) == ("≥ 2.2x", holds)


@pytest.mark.parametrize(
    ("cold_s", "cached_s", "untimed", "holds"), [(59, 4, 0, True), (61, 4, 0, False), (59, 6, 0, False), (59, 4, 1, False)]
)
def test_a_probe_that_left_points_out_is_not_in_time(
    bench: ModuleType, cold_s: float, cached_s: float, untimed: int, holds: bool
) -> None:
    ((_, _, seen, found),) = bench.kernel_probe(bench.Probing(cold_s=cold_s, cached_s=cached_s, untimed=untimed))
    assert f"{untimed} points not reached" in seen
    assert found is holds


def left(name: str, objective: float | None, excluded: str | None = None) -> Candidate:
    guess = None if objective is None else Predicted(objective=objective)
    return candidate(name, 1.0).model_copy(update={"predicted": guess, "excluded": excluded, "measured": None})


@pytest.mark.parametrize(
    ("objective", "predicted", "excluded", "counts", "holds"),
    [
        ("latency", 0.5, None, (1, 0, 0), False),
        ("latency", 1.29, None, (1, 0, 0), False),
        ("latency", 1.31, None, (0, 0, 0), True),
        ("latency", None, None, (0, 1, 0), False),
        ("latency", 0.5, "over the budget", (0, 0, 1), True),
        ("throughput", 0.5, None, (0, 0, 0), True),
        ("throughput", 0.78, None, (1, 0, 0), False),
        ("throughput", 5.0, None, (1, 0, 0), False),
    ],
)
def test_regret_holds_only_where_nothing_left_may_be_the_best(
    bench: ModuleType, objective: str, predicted: float | None, excluded: str | None, counts: tuple[int, ...], holds: bool
) -> None:
    others = [left("rtn-w8-g64@onnxruntime", predicted, excluded), candidate("rtn-w4-g64@onnxruntime", 1.0)]
    found = {"best": others[1].name, "advised": others[1].name, "not_measured": (others[0].name,), "ratio": 0.0}
    measured = Regret(advised_objective=1.0, best_objective=1.0, low=0.0, high=0.04, measuring_share=0.1, **found)
    results = SimpleNamespace(regret=measured, candidates=others, workload=workload(objective=objective))
    ((_, _, seen, passed),) = bench.regret({"chat": results})
    near, open_, out = counts
    assert f"1 not reached: {near} predicted within 1.3x of the best, {open_} without a prediction, {out} predicted" in seen
    assert passed is holds


def test_predictions_are_set_beside_predictions(bench: ModuleType) -> None:
    """The best took 1.0 where 0.7 was predicted: one of 0.95 is not near it."""
    best = candidate("rtn-w4-g64@onnxruntime", 1.0).model_copy(update={"predicted": Predicted(objective=0.7)})
    far, near = left("rtn-w8-g64@onnxruntime", 0.95), left("none-fp32@onnxruntime", 0.9)
    measured = Regret(best=best.name, advised=best.name, advised_objective=1.0, best_objective=1.0, ratio=0.0, low=0.0, high=0.0,
                      measuring_share=0.1, not_measured=(far.name, near.name))  # fmt: skip
    assert bench.unreached(measured, [best, far, near], False) == (2, 1, 0, 0)


@pytest.mark.parametrize(("ratio", "holds"), [(0.05, True), (0.051, False)])
def test_regret_with_everything_measured_is_its_ratio(bench: ModuleType, ratio: float, holds: bool) -> None:
    measured = Regret(
        best="a", advised="b", advised_objective=1.0, best_objective=1.0, ratio=ratio, low=0.0, high=0.1, measuring_share=0.1
    )
    ((_, _, seen, passed),) = bench.regret({"chat": SimpleNamespace(regret=measured, candidates=[], workload=workload())})
    assert seen.endswith("all measured")
    assert passed is holds
    ((_, _, seen, passed),) = bench.regret({"chat": SimpleNamespace(regret=None)})
    assert (seen, passed) == ("not measured", False)


def test_only_predictions_that_a_ghost_speaks_for_are_judged(bench: ModuleType) -> None:
    def row(candidate: str, ratio: float, basis: str) -> LedgerRow:
        return LedgerRow(candidate=candidate, quantity="tpot_s", predicted=ratio, measured=1.0, ratio=ratio, basis=basis)

    rows = (row("rtn-w8-g64@openvino+f32", 1.04, "ghost"), row("rtn-w8-g64@vllm", 2.0, f"the baseline's pass: {NO_GHOST}"))
    (tpot, _) = bench.prediction({"chat": SimpleNamespace(ledger=rows)})
    assert tpot[2:] == ("4% over 1; openvino 4% (n=1); without a ghost 100% (n=1)", True)
    (tpot, _) = bench.prediction({"chat": SimpleNamespace(ledger=rows[1:])})
    assert tpot[3] is False
