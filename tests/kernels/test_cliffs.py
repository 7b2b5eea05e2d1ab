"""The bisection against curves whose cliffs are known, and its cost in timings."""

from collections.abc import Callable

import pytest

from quantadvisor.kernels import cliffs as module
from quantadvisor.kernels.cliffs import CLIFF, RESOLUTION, next_ms
from quantadvisor.kernels.timing import figure

GRID = (1, 4, 16, 64, 256, 1024, 4096)


def cliffs(curve: dict[int, float]) -> list[tuple[int, int, float]]:
    """Of times without noise."""
    return module.cliffs({m: figure([seconds]) for m, seconds in curve.items()})


def searched(seconds: Callable[[int], float], wins: bool = True) -> tuple[dict[int, float], int]:
    """The curve after the search, and the M that it timed beside the grid's."""
    curve = {m: seconds(m) for m in GRID}
    while steps := next_ms(curve, GRID, dict(curve) if wins else None):
        assert not set(steps) & set(curve)
        curve |= {m: seconds(m) for m in steps}
    return curve, len(curve) - len(GRID)


@pytest.mark.parametrize("at", [2, 5, 17, 100, 700, 3000])
def test_a_planted_jump_is_pinned_down(at: int) -> None:
    """Proportional before and after, twice as dear from `at` on."""
    curve, more = searched(lambda m: (2.0 if m >= at else 1.0) * m, wins=False)
    (found,) = cliffs(curve)
    low, high, factor = found
    assert low < at <= high
    assert high - low <= max(1, RESOLUTION * high)
    assert factor == pytest.approx(2.0)
    assert more <= 6


def test_a_cliff_in_a_flat_curve_is_found_where_the_kernel_wins() -> None:
    """Flat to 24 rows, then four times as dear at once: the ends of 16 to 64 are just proportional."""
    curve, _ = searched(lambda m: 1.0 if m < 24 else 4.0)
    assert [(low, high) for low, high, _ in cliffs(curve)] == [(23, 24)]
    assert cliffs(searched(lambda m: 1.0 if m < 24 else 4.0, wins=False)[0]) == []


def test_a_rise_without_a_jump_is_none() -> None:
    """Time as M to the 1.3: dearer by the row over the whole interval, nowhere suddenly."""
    curve, more = searched(lambda m: m**1.3)
    assert cliffs(curve) == []
    assert more <= 4 * (len(GRID) - 1)


def test_flat_and_proportional_curves_cost_little() -> None:
    assert searched(lambda m: 1.0)[1] == 0
    assert searched(lambda m: 5.0 + m)[1] <= 3 * (len(GRID) - 1)
    assert searched(lambda m: float(m), wins=False)[1] == 0


def test_tiles_are_cliffs_of_time_not_of_rows() -> None:
    """Tiles of 16 rows: at 17 rows twice the time of 16, a row at 17 costs 1.9 times one at 16."""
    curve, _ = searched(lambda m: float(-(-m // 16)))
    (low, high, factor) = cliffs(curve)[0]
    assert (low, high) == (16, 17)
    assert factor == pytest.approx(2 * 16 / 17)
    assert factor > CLIFF


def test_what_may_be_noise_is_no_cliff() -> None:
    steady, noisy = figure([1.0] * 9), figure([1.2, 1.3, 1.3, 1.4, 4.0, 4.1, 4.2, 4.3, 4.4])
    assert module.cliffs({100: steady, 101: figure([2.0] * 9)})[0][2] == pytest.approx(2.0, rel=0.02)
    assert noisy.median > 2 * CLIFF
    assert module.cliffs({100: steady, 101: noisy}) == []


def test_an_m_at_which_the_fastest_is_not_known_is_no_win() -> None:
    """An M of the grid that was timed only in the search itself."""
    curve = {1: 1.0, 16: 2.0, 64: 4.0}
    assert next_ms(curve, GRID, {1: 0.5, 16: 0.5}) == []
    assert next_ms(curve, GRID, {1: 0.5, 16: 0.5, 64: 4.0}) == [32]
