"""Which candidates more tokens are spent on."""

from quantadvisor.advisor.prove import undecided
from quantadvisor.documents import Candidate, Interval

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
