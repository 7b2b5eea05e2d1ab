"""Which candidates more tokens are spent on, and how fast the machine was."""

import pytest

from quantadvisor.advisor.prove import pace_of, undecided
from quantadvisor.documents import Candidate, Interval
from quantadvisor.profiling.measure import Round

from .documents import candidate, workload

BUDGET = {"kl_mean_max": 0.05}


def unsure(name: str, latency: float, users: float = 10) -> Candidate:
    """Its KL lies between 0.04 and 0.06."""
    made = candidate(name, latency, users=users)
    assert made.quality
    wide = made.quality.model_copy(update={"kl": Interval(mean=0.049, low=0.04, high=0.06)})
    return made.model_copy(update={"quality": wide})


def test_more_tokens_go_to_who_would_win_by_them() -> None:
    sure = candidate("rtn-w8-g64@onnxruntime", 1.0)
    faster, tied, slower = (unsure(f"rtn-w4-g{g}@onnxruntime", s) for g, s in ((32, 0.9), (64, 0.97), (128, 1.2)))
    spec = workload(quality=BUDGET)
    assert set(undecided([sure, faster, tied, slower], spec)) == {faster.name}
    assert set(undecided([faster, tied, slower], spec)) == {faster.name, tied.name, slower.name}
    excluded = faster.model_copy(update={"excluded": "simulated mean KL 0.4 is over the budget of 0.05"})
    assert undecided([sure, excluded], spec) == {}


def test_a_fast_one_outside_the_budget_makes_nobody_sure() -> None:
    spec = workload(quality=BUDGET)
    broken = candidate("rtn-w4-g64@onnxruntime", 0.5, kl=0.4)
    assert set(undecided([broken, unsure("rtn-w4-g32@onnxruntime", 0.9)], spec)) == {"rtn-w4-g32@onnxruntime"}


def test_more_users_win_where_users_count() -> None:
    spec = workload(quality=BUDGET, objective="concurrency", memory_limit_gib=1.2)
    sure = candidate("none-fp32-kv8@onnxruntime", 40.0, users=40)
    more, fewer = unsure("rtn-w8-g64-kv8@onnxruntime", 50.0, users=50), unsure("rtn-w8-g64@onnxruntime", 20.0, users=20)
    assert set(undecided([sure, more, fewer], spec)) == {more.name}


def test_the_pace_is_the_baselines_own_slowdown_over_as_many_steps() -> None:
    then = [Round(ttft_s=1.0, itl_s=(0.10, 0.10), peak_bytes=1)] * 2
    now = [Round(ttft_s=1.2, itl_s=(0.11, 0.11, 0.50), peak_bytes=1)]  # the third step has no counterpart
    pace = pace_of(now, then)
    assert pace
    assert (pace.ttft, pace.tpot) == (pytest.approx(1.2), pytest.approx(1.1))
    assert pace_of([], then) is None
    assert pace_of([Round(ttft_s=1.0, itl_s=(), peak_bytes=1)], then) is None
