"""The decision on small documents: budgets, SLO, ties, change nothing, the split of a speed-up."""

import pytest

from quantadvisor.advisor.boundaries import boundaries
from quantadvisor.advisor.decide import breach_of_measurement, breach_of_prediction, decide, why_not, with_breach
from quantadvisor.documents import Diagnosis, PhaseDiagnosis, Predicted, Shares

from .documents import candidate, figure, workload

SHARES = Shares(weights=0.7, activations=0.1, kv_cache=0.1, other=0.1)
PHASE = PhaseDiagnosis(binds="weights", shares=SHARES, total=1.0)
DIAGNOSIS = Diagnosis(
    of="none-bf16@torch", capacity=PHASE, prefill=PHASE, decode=PHASE, binds="weights", shares=SHARES, ceilings={"weights": 3.3}
)
BASE = "none-bf16@torch"


def verdict(*candidates, **spec):
    return decide(candidates, BASE, workload(**spec), DIAGNOSIS, None)


def test_the_fastest_inside_the_budget_wins() -> None:
    found = verdict(
        candidate(BASE, 5.0, target="none"),
        candidate("rtn-w4-g64@onnxruntime", 1.0, kl=0.5),
        candidate("rtn-w8-g64@onnxruntime", 1.5),
        candidate("none-fp32@onnxruntime", 2.5, target="none"),
    )
    assert found.choice == "rtn-w8-g64@onnxruntime"
    assert found.change
    assert found.speedup
    assert found.speedup.total == pytest.approx(found.speedup.runtime * found.speedup.method)
    assert found.speedup.total == pytest.approx(5.0 / 1.5, rel=0.01)


def test_change_nothing_when_the_baseline_wins() -> None:
    found = verdict(candidate(BASE, 1.0, target="none"), candidate("rtn-w8-g64@onnxruntime", 1.5))
    assert (found.choice, found.change, found.target) == (BASE, False, "none")
    assert "Change nothing" in found.reason


def test_only_the_runtime_changes_has_target_none_and_change_true() -> None:
    found = verdict(candidate(BASE, 5.0, target="none"), candidate("none-fp32@onnxruntime", 2.0, target="none"))
    assert (found.change, found.target) == (True, "none")
    assert found.speedup
    assert found.speedup.method == 1.0


def test_ties_go_to_better_quality() -> None:
    a, b = candidate("rtn-w4-g64@onnxruntime", 1.0, kl=0.04), candidate("rtn-w8-g64@onnxruntime", 1.005, kl=0.004)
    found = verdict(candidate(BASE, 5.0, target="none"), a, b)
    assert found.choice == b.name
    assert found.tied_with == (a.name,)
    assert "better quality" in why_not(a, b, workload(), BASE)


def test_a_wide_interval_does_not_make_ties_of_what_is_ten_percent_apart() -> None:
    a, b = candidate("rtn-w4-g64@onnxruntime", 1.0, kl=0.04), candidate("rtn-w8-g64@onnxruntime", 1.1, kl=0.004)
    noisy = b.model_copy(update={"measured": b.measured.model_copy(update={"objective": figure(1.1, spread=0.2)})})
    found = verdict(candidate(BASE, 5.0, target="none"), a, noisy)
    assert (found.choice, found.tied_with) == (a.name, ())


def test_nothing_feasible_is_a_verdict_with_the_reasons() -> None:
    found = verdict(candidate(BASE, 5.0, target="none", kl=0.2))
    assert found.choice is None
    assert "mean KL" in found.reason


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"slo": {"tpot_ms": 5}}, "TPOT p95 10.0 ms is over the SLO of 5 ms"),
        ({"memory_limit_gib": 0.5}, "peak memory 0.93 GiB is over the limit of 0.5 GiB"),
        ({"quality": {"top1_agreement_min": 0.95}}, "top-1 agreement 0.900 is under the budget of 0.95"),
    ],
)
def test_constraints_exclude_with_a_reason(spec: dict, reason: str) -> None:
    assert reason in (breach_of_measurement(candidate("rtn-w8-g64@onnxruntime", 1.5), workload(**spec)) or "")


def test_concurrency_is_maximised_and_says_capacity_not_speed() -> None:
    spec = {"objective": "concurrency", "memory_limit_gib": 1.5}
    plain = candidate("none-fp32@openvino+bf16", 20, target="none", users=20, tpot=0.1)
    cache = candidate("kv_int8-fp32-kv8@openvino+bf16", 40, target="kv_cache", users=40, tpot=0.1)
    found = verdict(candidate(BASE, 15, target="none", users=15, tpot=0.5), plain, cache, **spec)
    assert found.choice == cache.name
    assert found.capacity
    assert found.capacity.over_best_unquantized_cache == pytest.approx(2.0)
    assert "capacity, not speed" in found.reason


def test_capacity_is_compared_with_who_serves_somebody() -> None:
    spec = {"objective": "concurrency", "memory_limit_gib": 1.5}
    fast_and_large = candidate("none-bf16@vllm", 0, target="none", users=0, tpot=0.05)
    cache = candidate("kv_int8-fp32-kv8@onnxruntime", 40, target="kv_cache", users=40, tpot=0.1)
    found = verdict(candidate(BASE, 20, target="none", users=20, tpot=0.5), fast_and_large, cache, **spec).capacity
    assert found
    assert (found.best_unquantized_cache, found.over_best_unquantized_cache) == (BASE, pytest.approx(2.0))


def test_a_measured_breach_is_kept_as_the_reason() -> None:
    worse = with_breach(candidate("rtn-w4-g64@onnxruntime", 1.0, kl=0.5), workload())
    assert worse.excluded == "mean KL 0.5 is over the budget of 0.05"
    assert with_breach(candidate("rtn-w8-g64@onnxruntime", 1.0), workload()).excluded is None


@pytest.mark.parametrize(
    ("rough", "tpot_s", "breaks"), [(False, 0.11, False), (False, 0.13, True), (True, 0.19, False), (True, 0.21, True)]
)
def test_who_may_meet_the_slo_is_tried(rough: bool, tpot_s: float, breaks: bool) -> None:
    """A prediction that a ghost speaks for is believed to 15 %, one without to half; of bytes both know as much."""
    spec = workload(slo={"tpot_ms": 100}, memory_limit_gib=1.0)
    found = breach_of_prediction(Predicted(tpot_s=tpot_s, peak_bytes=1 << 30, rough=rough), spec)
    assert (found is not None) is breaks
    large = Predicted(tpot_s=0.01, peak_bytes=int(1.3 * (1 << 30)), rough=rough)
    assert "over the limit of 1 GiB" in str(breach_of_prediction(large, spec))


def test_boundaries_are_where_the_measured_lines_cross() -> None:
    mine = candidate("rtn-w8-g64@onnxruntime", 0.5 + 127 * 0.010, kl=0.01, tpot=0.010)
    quick_start = candidate("none-fp32@openvino+bf16", 0.2 + 127 * 0.020, kl=0.001, tpot=0.020, target="none")
    rough = candidate("rtn-w4-g64@onnxruntime", 0.5 + 127 * 0.005, kl=0.3, tpot=0.005)
    found = {(edge.axis, edge.winner): edge.at for edge in boundaries([mine, quick_start, rough], mine.name, workload())}
    assert found[("output_tokens", quick_start.name)] == 31  # 0.5 + 30 x 10 ms = 0.2 + 30 x 20 ms
    assert found[("kl_mean_max", quick_start.name)] == pytest.approx(0.01)
    assert found[("kl_mean_max", rough.name)] == pytest.approx(0.3)
    assert not any(axis == "memory_limit_gib" for axis, _ in found)
