"""The gate's statistics against exact arithmetic and against simulated runs: normal, heavy-tailed, drifting, bimodal noise."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from quantadvisor.advisor.gate_rule import (
    ALPHA,
    Bounds,
    Limits,
    fewest_blocks,
    holm,
    judge,
    not_slower,
    paired,
    sequence,
    settling_blocks,
    slower,
    tail,
    welch,
)
from quantadvisor.advisor.gate_times import limits

from .noises import NOISES, Noise, drifting, heavy, normal, simulated

LIMITS = Limits()


def verdicts(logs: np.ndarray, alpha: float = ALPHA, limits: Limits = LIMITS) -> np.ndarray:
    """What each gate says when it looks after every block and stops once decided: 1 regression, 0 pass, −1 neither."""
    low, high = sequence(logs, alpha)
    middle = np.stack([np.median(logs[:, : n + 1], axis=1) for n in range(logs.shape[1])], 1)
    bad, good = slower(middle, low, limits), not_slower(high, limits)
    first = (bad | good).argmax(1)
    rows = np.arange(len(logs))
    return np.where(bad[rows, first], 1, np.where(good[rows, first], 0, -1))


def wealth(n: int, k: int) -> Fraction:
    """M(n, k) of the module's docstring."""
    return Fraction(sum(math.comb(n + 1, j) for j in range(k + 1, n + 2)), (n + 1) * math.comb(n, k))


def test_the_wealth_is_a_martingale_under_a_fair_coin() -> None:
    assert wealth(0, 0) == 1
    for n in range(40):
        for k in range(n + 1):
            assert (wealth(n + 1, k) + wealth(n + 1, k + 1)) / 2 == wealth(n, k)


@pytest.mark.parametrize("alpha", [0.005, 0.0025, 0.01 / 6])
def test_the_tail_is_what_the_wealth_says(alpha: float) -> None:
    for n in range(1, 120):
        rejected = [k for k in range(n // 2 + 1) if wealth(n, k) >= 1 / Fraction(alpha)]
        assert tail(n, alpha) == (max(rejected) if rejected else None)


def ever_rejected(most: Callable[[int], int | None], blocks: int) -> float:
    """Exact probability that a fair coin's count of tails k is ever at most `most(n)`, looked at after every toss."""
    alive, rejected = {0: 1.0}, 0.0
    for n in range(1, blocks + 1):
        moved: dict[int, float] = {}
        for k, chance in alive.items():
            for to in (k, k + 1):
                moved[to] = moved.get(to, 0.0) + chance / 2
        limit = most(n)
        rejected += sum(chance for k, chance in moved.items() if limit is not None and k <= limit)
        alive = {k: chance for k, chance in moved.items() if limit is None or k > limit}
    return rejected


def test_looking_after_every_block_does_not_raise_the_error_rate() -> None:
    """Exact, over 400 looks. A sign test at the same level, looked at as often, errs ten times as often: it must show."""

    def sign_test(n: int) -> int | None:
        k, total = -1, 0.0
        while (total := total + math.comb(n, k + 1) / 2**n) <= 0.005:
            k += 1
        return k if k >= 0 else None

    assert ever_rejected(lambda n: tail(n, 0.005), 400) <= 0.005
    assert ever_rejected(lambda n: tail(n, 0.005), 400) > 0.001
    assert ever_rejected(sign_test, 400) > 0.02


@pytest.mark.parametrize("noise", NOISES)
def test_false_alarms_under_the_null(noise: Noise) -> None:
    """10,000 gates of 40 blocks, five seeds, a look after every block: designed 0.5 %, failing above 1.1 %."""
    alarms = excluded = 0
    for seed in range(5):
        logs = simulated(noise, 2000, seed)
        alarms += int((verdicts(logs) == 1).sum())
        excluded += int((sequence(logs, ALPHA)[0][:, -1] > 0).sum())
    assert alarms / 10_000 <= 0.005
    assert excluded / 10_000 <= 0.011


def test_the_interval_covers_a_real_ratio_at_every_look() -> None:
    shift = math.log(1.05)
    low, high = sequence(simulated(drifting, 4000, 7, shift), ALPHA)
    assert ((low > shift) | (high < shift)).any(1).mean() <= 0.012


@pytest.mark.parametrize("noise", [normal, heavy])
def test_five_percent_is_caught(noise: Noise) -> None:
    found = verdicts(simulated(noise, 1000, 3, math.log(1.05)), ALPHA / 3)
    assert (found == 1).mean() >= 0.95
    assert (found == 0).mean() <= 0.005


def test_no_change_passes() -> None:
    assert (verdicts(simulated(normal, 1000, 4), ALPHA / 3) == 0).mean() >= 0.99


def test_power_grows_with_the_effect_and_with_blocks() -> None:
    by_effect = [(verdicts(simulated(normal, 1000, 5, math.log(r))) == 1).mean() for r in (1.0, 1.02, 1.035, 1.05)]
    assert by_effect == sorted(by_effect)
    assert by_effect[0] < 0.01 < 0.95 < by_effect[-1]
    logs = simulated(heavy, 1000, 6, math.log(1.05))
    by_blocks = [(verdicts(logs[:, :n]) == 1).mean() for n in (10, 15, 25, 40)]
    assert by_blocks == sorted(by_blocks)
    assert by_blocks[0] < by_blocks[-1]


@pytest.mark.parametrize("blocks", [12, 20, 33])
def test_power_at_fixed_blocks_is_the_closed_form(blocks: int) -> None:
    """Normal log ratios of spread s: the bound is above zero where at most tail(n) of n lie under zero."""
    shift, spread, gates = 0.03, 0.02, 20_000
    logs = np.random.default_rng(8).normal(shift, spread, (gates, blocks))
    k = tail(blocks, 0.005)
    assert k is not None
    under = 0.5 * math.erfc(shift / spread / math.sqrt(2))
    expected = sum(math.comb(blocks, j) * under**j * (1 - under) ** (blocks - j) for j in range(k + 1))
    seen = (np.sort(logs, 1)[:, k] > 0).mean()
    assert seen == pytest.approx(expected, abs=4 * math.sqrt(0.25 / gates))


def test_bounds_are_infinite_before_they_can_be_known() -> None:
    bounds = paired([0.05] * 11, ALPHA / 3)
    assert math.isinf(bounds.low)
    assert math.isinf(bounds.high)
    assert bounds.noise_floor is None
    assert judge(bounds, LIMITS) == "inconclusive"
    assert math.isfinite(paired([0.05] * 12, ALPHA / 3).low)
    assert fewest_blocks(ALPHA / 3) == 12


@pytest.mark.parametrize(
    ("middle", "low", "high", "unnoticed", "state"),
    [
        (0.05, 0.01, 0.09, 0.02, "regression"),
        (0.05, -0.01, 0.09, 0.02, "inconclusive"),
        (0.02, 0.01, 0.03, 0.0, "pass"),  # slower, surely, but by less than the threshold
        (0.05, 0.01, 0.09, 0.2, "pass"),  # 5 % of something so short that nobody notices 20 % of it
        (0.05, 0.01, 0.30, 0.2, "inconclusive"),
        (0.0, -0.04, 0.04, 0.0, "pass"),
        (0.0, -0.1, 0.06, 0.0, "inconclusive"),  # no power is not a pass
        (0.0, 0.01, -0.01, 0.0, "inconclusive"),  # empty: the ratio moved during the run
        (-0.3, -0.4, -0.2, 0.0, "pass"),
    ],
)
def test_the_rule(middle: float, low: float, high: float, unnoticed: float, state: str) -> None:
    assert judge(Bounds(20, middle, low, high, 0.01), Limits(0.025, unnoticed)) == state


def test_absolute_bounds_are_of_what_nobody_notices() -> None:
    """TTFT 2 ms; TPOT and ITL the lesser of 0.2 ms and 2 % of the baseline (issue: the gate's rule)."""
    assert limits("ttft_s", 0.2, 0.025).unnoticed == pytest.approx(0.01)
    assert limits("tpot_s", 0.05, 0.025).unnoticed == pytest.approx(0.004)  # 0.2 ms of 50
    assert limits("itl_s", 0.005, 0.025).unnoticed == pytest.approx(0.02)  # 0.1 ms of 5, less than 0.2


def test_holm_hands_the_share_of_a_slower_metric_on() -> None:
    def fixed(reach_at_third: float, middle: float) -> Callable[[float], Bounds]:
        def bounds(alpha: float) -> Bounds:
            reach = reach_at_third * (0.01 / 3 / alpha) ** 0.5
            return Bounds(20, middle, middle - reach, middle + reach, alpha)

        return bounds

    found = holm({"quiet": fixed(0.02, 0.0), "slow": fixed(0.02, 0.05), "next": fixed(0.02, 0.018)}, 0.01)
    assert found["slow"].alpha == pytest.approx(0.01 / 3)
    assert found["next"].alpha == pytest.approx(0.01 / 2)
    assert found["quiet"].alpha == pytest.approx(0.01)
    assert list(found) == ["quiet", "slow", "next"]


def test_the_forecast_of_blocks_is_about_right() -> None:
    """Half of the gates that were told n more blocks are decided n blocks later, and few long before."""
    logs = simulated(normal, 300, 11, math.log(1.045), blocks=400)
    told = []
    for row in logs:
        more = settling_blocks(row[:10], ALPHA / 3, LIMITS)
        assert more is not None
        told.append(judge(paired(row[: 10 + 2 * more], ALPHA / 3), LIMITS) != "inconclusive")
    assert np.mean(told) >= 0.8
    assert settling_blocks([], ALPHA, LIMITS) is None


def test_welch_keeps_its_level_and_sees_twenty_percent_in_five_blocks() -> None:
    rng = np.random.default_rng(12)
    wrong = caught = 0
    for _ in range(2000):
        a, b = rng.normal(0, 0.03, 5), rng.normal(0, 0.03, 5)
        found = welch(a, b)
        wrong += found.low > 0 or found.high < 0
        caught += judge(welch(a, b + math.log(1.2), ALPHA / 2), LIMITS) == "regression"
    assert wrong / 2000 <= 0.016
    assert caught / 2000 >= 0.98
    assert math.isinf(welch([0.0], [0.1, 0.2]).low)
    assert welch([0.0, 0.0], [0.1, 0.1]).low == pytest.approx(0.1)
