import time

import pytest

from quantadvisor.documents import KernelTiming, Scheme
from quantadvisor.kernels.timing import elasticity, figure, time_in_turns


def test_figure_is_median_with_interval() -> None:
    one = figure([3.0, 1.0, 2.0, 5.0, 4.0], source="x")
    assert (one.median, one.kind, one.source) == (3.0, "measured", "x")
    assert 1.0 <= one.low <= one.median <= one.high <= 5.0
    assert one == figure([3.0, 1.0, 2.0, 5.0, 4.0], source="x")
    assert figure([2.0]).low == figure([2.0]).high == 2.0


def test_figure_covers_the_true_median() -> None:
    import numpy as np

    rng = np.random.default_rng(1)
    inside = sum(
        1 for _ in range(200) if (one := figure(rng.normal(10, 1, 30).tolist())).low <= 10 <= one.high
    )  # fmt: skip
    assert inside >= 180


@pytest.mark.parametrize("samples", [[], [1.0, float("nan")], [float("inf")]])
def test_figure_refuses(samples: list[float]) -> None:
    with pytest.raises(ValueError):
        figure(samples)


def test_callables_take_turns() -> None:
    calls: list[str] = []
    steps = [lambda: calls.append("a"), lambda: calls.append("b")]
    samples = time_in_turns(steps, rounds=3, once=True, before_round=lambda: calls.append("-"))
    assert [len(one) for one in samples] == [3, 3]
    assert "".join(calls) == "aabb-ab-ab-ab", "two to warm up, then each once a round"


def test_a_short_callable_is_repeated() -> None:
    calls: list[int] = []
    sleep, quick = time_in_turns([lambda: time.sleep(0.002), lambda: calls.append(0)], min_time_s=0.004, rounds=3)
    assert min(sleep) >= 0.002
    assert (len(sleep), len(quick)) == (3, 3)
    assert len(calls) > 20


def test_timing_stops_at_its_limit_or_when_steady() -> None:
    assert len(time_in_turns([lambda: time.sleep(0.01)], rounds=1000, limit_s=0.03)[0]) < 10
    slow = time_in_turns([lambda: time.sleep(0.02), lambda: None], rounds=1000, limit_s=0.001)
    assert [len(one) for one in slow] == [2, 2], "the warm-up and one round"
    assert len(time_in_turns([lambda: time.sleep(0.01)], rounds=1000, tight=10)[0]) == 3


def timing(m: int, seconds: float) -> KernelTiming:
    return KernelTiming(
        probe="p", scheme=Scheme(name="fp32"), runtime="torch", m=m, n=1, k=1, time_s=figure([seconds])
    )  # fmt: skip


def test_elasticity_tells_flat_from_proportional() -> None:
    flat = [timing(m, 1e-3) for m in (1, 2, 4)]
    steep = [timing(m, m * 1e-3) for m in (256, 512, 1024)]
    assert elasticity(flat) == pytest.approx(0)
    assert elasticity(steep) == pytest.approx(1)
    assert elasticity(flat + steep, 2) == pytest.approx(0)
    assert elasticity(flat + steep, 512) == pytest.approx(1)
    assert elasticity([timing(1, 1.0), timing(512, 512.0**0.5)], 1) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="two M"):
        elasticity([timing(1, 1.0)])
