"""Which M are timed, and whether what is said of the others holds: curves whose every value is known."""

import random
from collections.abc import Callable

import pytest

from quantadvisor.kernels import grid
from quantadvisor.kernels.grid import CLEAR, beaten, bracket, clear, interpolated, next_m
from quantadvisor.kernels.timing import figure

MS = (1, 4, 16, 64, 256, 1024, 4096)
Curve = Callable[[int], float]


def flat(m: int) -> float:
    return 1.0


def proportional(m: int) -> float:
    return float(m)


def knee(m: int) -> float:
    return max(1.0, m / 40)


def tiles(m: int) -> float:
    return float(-(-m // 32))


def cliff(m: int) -> float:
    """Another algorithm from 100 rows on, five times dearer."""
    return max(1.0, m / 20) * (5 if m >= 100 else 1)


def swept(curve: Curve, rivals: list[grid.Times] | None = None, spread: float = 0.0) -> grid.Times:
    noise = random.Random(5)
    times: dict[int, grid.Figure] = {}
    while (m := next_m(times, MS, (), rivals or [])) is not None:
        assert m not in times
        times[m] = figure([curve(m) * (1 + spread * noise.uniform(-1, 1)) for _ in range(9)])
    return times


@pytest.mark.parametrize(("curve", "timed"), [(flat, 2), (proportional, 2), (knee, 5), (tiles, 6), (cliff, 6)])
def test_what_is_clear_is_not_timed(curve: Curve, timed: int) -> None:
    times = swept(curve)
    assert len(times) <= timed
    assert {MS[0], MS[-1]} <= set(times)


@pytest.mark.parametrize("spread", [0.0, 0.03])
@pytest.mark.parametrize("curve", [flat, proportional, knee, tiles, cliff])
def test_interpolations_are_right_within_their_interval(curve: Curve, spread: float) -> None:
    times = swept(curve, spread=spread)
    for m in set(MS) - set(times):
        found = interpolated(times, m, "kernel")
        assert found is not None
        assert found.low * (1 - spread) <= curve(m) <= found.high * (1 + spread)
        assert found.high <= CLEAR * found.low
        assert found.kind == "modelled"
        assert found.samples == ()
        assert "interpolated between M = " in found.source


def test_noise_makes_points_unclear() -> None:
    """Intervals of 30 % hide whether a curve is flat, so more of it is timed."""
    assert len(swept(flat, spread=0.3)) == len(MS)


def test_a_beaten_kernel_is_left_and_its_interval_says_how_little_is_known() -> None:
    rival = {m: figure([knee(m)]) for m in MS}
    slow = swept(lambda m: 30 * knee(m), [rival])
    alone = swept(lambda m: 30 * knee(m))
    assert len(slow) < len(alone)
    for m in set(MS) - set(slow):
        found = interpolated(slow, m, "slow")
        assert found is not None
        assert found.low <= 30 * knee(m) <= found.high
        assert beaten(slow, m, [rival]) or clear(slow, m)
    near = swept(lambda m: 1.05 * knee(m), [rival])
    assert len(near) == len(alone), "near the fastest every open point is timed"


def test_extra_points_are_timed_last_and_unless_clear() -> None:
    rival = [{m: figure([1e-3]) for m in (1, 512)}]
    times = {1: figure([1.0])}
    assert next_m(times, (1, 512), (4, 64), rival) == 512
    times[512] = figure([40.0])
    first = next_m(times, (1, 512), (4, 64), rival)
    assert first in (4, 64), "being beaten does not settle them"
    assert next_m({1: figure([1.0]), 512: figure([1.0])}, (1, 512), (4, 64)) is None


def test_brackets() -> None:
    times = {1: figure([1.0]), 64: figure([8.0])}
    assert bracket(times, 64) == (8.0, 8.0)
    assert bracket(times, 128) is None
    assert bracket(times, 16) == (2.0, 8.0)
    dearer = {1: figure([1.0]), 64: figure([640.0])}
    assert bracket(dearer, 16) == (1.0, 640.0), "a cliff may be anywhere between"
    falling = {1: figure([5.0]), 64: figure([4.0])}
    low, high = bracket(falling, 16) or (0, 0)
    assert (low, high) == (4.0, 5.0)
    assert interpolated(times, 128, "x") is None
