"""The table against every combination there is."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from quantadvisor.methods import knapsack
from quantadvisor.methods.knapsack import Item, cheapest, within


def total(items: list[Item], choices: tuple[int, ...]) -> tuple[float, float]:
    """(cost, loss)"""
    chosen = [item[place] for item, place in zip(items, choices, strict=True)]
    return math.fsum(cost for cost, _ in chosen), math.fsum(loss for _, loss in chosen)


def all_totals(items: list[Item]) -> list[tuple[float, float]]:
    return [total(items, choices) for choices in itertools.product(*(range(len(item)) for item in items))]


def random_items(seed: int, whole: bool) -> list[Item]:
    """Two to four choices of an item, the dearer not always the better, some with equal costs."""
    draw = random.Random(seed)
    sizes = [draw.uniform(0.5, 3) for _ in range(3)]

    def cost() -> float:
        return float(6 * draw.randint(0, 20)) if whole else draw.choice(sizes) * draw.choice((4, 8, 5.5))

    return [[(cost(), draw.expovariate(1)) for _ in range(draw.randint(2, 4))] for _ in range(draw.randint(1, 6))]


@pytest.mark.parametrize("seed", range(30))
def test_whole_costs_give_what_every_combination_gives(seed: int) -> None:
    items = random_items(seed, whole=True)
    totals = all_totals(items)
    for most in (0, 0.5, 1, 2, 4, 100):
        able = [(cost, loss) for cost, loss in totals if loss <= most]
        found = cheapest(items, most)
        assert (found and total(items, found)) == (pytest.approx(min(able)) if able else None)
    for budget in (0, 30, 60, 90.5, 120, 1000, math.inf):
        able = [(loss, cost) for cost, loss in totals if cost <= budget]
        found = within(items, budget)
        assert (found is None) == (not able)
        if found is not None:
            assert total(items, found)[0] <= budget
            assert total(items, found)[1] == pytest.approx(min(able)[0])


@pytest.mark.parametrize("seed", range(30))
def test_seconds_are_off_by_less_than_a_step_an_item(seed: int) -> None:
    """Of random times two sums are hardly ever that near, so that even here the best is found; a budget is never broken."""
    items = random_items(seed, whole=False)
    totals = all_totals(items)
    most_cost = sum(max(c for c, _ in item) - min(c for c, _ in item) for item in items)
    room = len(items) * most_cost / knapsack.STEPS
    for most in (0.5, 1, 2, 4, 100):
        able = [cost for cost, loss in totals if loss <= most]
        found = cheapest(items, most)
        assert (found is None) == (not able)
        if found is not None:
            cost, loss = total(items, found)
            assert loss <= most + 1e-12
            assert min(able) - 1e-9 <= cost <= min(able) + room + 1e-9
    for share in (0.01, 0.2, 0.5, 0.8, 1):
        budget = sum(min(c for c, _ in item) for item in items) + share * most_cost
        found = within(items, budget)
        assert found is not None
        cost, loss = total(items, found)
        assert cost <= budget + 1e-9
        assert loss <= min(loss for cost, loss in totals if cost <= budget - room) + 1e-9


def test_greedy_by_loss_per_cost_is_beaten() -> None:
    """Greedy would take b first (2 per cost, then needs a too, 11 in all); a alone, at 10, is enough."""
    items: list[Item] = [[(0, 10.0), (10, 0.0)], [(0, 2.0), (1, 0.0)]]
    assert cheapest(items, 2.0) == (1, 0)


def test_what_is_better_and_no_dearer_is_always_taken() -> None:
    items: list[Item] = [[(2e-3, 0.5), (1.9e-3, 0.1)], [(1e-3, 0.5), (1e-3, 0.1)], [(1e-3, 0.5), (2e-3, 0.1)]]
    assert cheapest(items, 100.0) == (1, 1, 0)
    assert within(items, 4e-3) == (1, 1, 0)
    assert within(items, 1e-3) is None


def test_a_deep_model_takes_no_time_and_bytes_stay_exact() -> None:
    """80 layers of five linears: sizes whose common step is small enough are not rounded."""
    sizes = [10240, 8192, 28672, 28672, 28672]
    items: list[Item] = [[(size * 4096, 1 / (layer + 1)), (size * 8192, 0.0)] for layer in range(80) for size in sizes]
    found = cheapest(items, 3.0)
    assert found is not None
    table = knapsack.tabled(items)
    assert table.step == 4096 * 2048
    assert len(table.losses) == 1 + 80 * sum(sizes) // 2048
    assert total(items, found)[1] <= 3.0 + 1e-9
