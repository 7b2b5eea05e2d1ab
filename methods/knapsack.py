"""The multiple-choice knapsack: of every item one choice, each with a cost and a loss.

By dynamic programming over whole steps of cost (Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, chapter 11), whose one
table answers two questions: the least cost whose summed loss keeps a limit, and the least summed loss whose cost keeps a budget.
Exact where all costs are multiples of a step, as bytes are. Others (seconds) are rounded up to whole steps: the cost found is
then less than a step an item above the least, and never above the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Item = Sequence[tuple[float, float]]
"""(cost, loss) of each of its choices"""
STEPS = 1 << 16
"""Of the table, between all items' cheapest choices and all their dearest."""


class Table(NamedTuple):
    """`losses`: [C + 1], the least summed loss at so many steps of cost or fewer; `taken`: of each item [C + 1], the choice that
    this takes; `steps`: of each item its choices' steps above its cheapest; `least` and `step` in the unit of the costs."""

    losses: NDArray[np.float64]
    taken: list[NDArray[np.int8]]
    steps: list[list[int]]
    least: float
    step: float

    def choices(self, at: int) -> tuple[int, ...]:
        """One of every item, by its place among the item's choices, that together take `at` steps or fewer."""
        found: list[int] = []
        for taken, steps in zip(reversed(self.taken), reversed(self.steps), strict=True):
            found.append(int(taken[at]))
            at -= steps[found[-1]]
        return tuple(reversed(found))


def cheapest(items: Sequence[Item], most_loss: float) -> tuple[int, ...] | None:
    """The choices of the least cost whose summed loss is at most `most_loss`, of those the least loss; None where none are."""
    table = tabled(items)
    able = np.flatnonzero(table.losses <= most_loss)
    return table.choices(int(able[0])) if len(able) else None


def within(items: Sequence[Item], budget: float) -> tuple[int, ...] | None:
    """The choices of the least summed loss whose cost is at most `budget`; None where even the cheapest cost more."""
    table = tabled(items)
    left = (budget - table.least) / table.step
    return None if left < 0 else table.choices(math.floor(min(left, len(table.losses) - 1)))


def tabled(items: Sequence[Item]) -> Table:
    """The least losses by cost, items taken in one after the other."""
    least = [min(cost for cost, _ in item) for item in items]
    above = [[cost - low for cost, _ in item] for item, low in zip(items, least, strict=True)]
    step = step_of(above)
    steps = [[math.ceil(cost / step) for cost in each] for each in above]
    losses = np.zeros(1 + sum(map(max, steps)))
    taken: list[NDArray[np.int8]] = []
    for item, each in zip(items, steps, strict=True):
        tries = np.full((len(item), len(losses)), np.inf)
        for row, shift, (_, loss) in zip(tries, each, item, strict=True):
            row[shift:] = losses[: len(losses) - shift] + loss
        taken.append(tries.argmin(axis=0).astype(np.int8))
        losses = tries.min(axis=0)
    return Table(losses, taken, steps, sum(least), step)


def step_of(above: Sequence[Sequence[float]]) -> float:
    """The largest step that all costs are multiples of, if they are whole and STEPS of them are enough."""
    most = sum(map(max, above))
    costs = [cost for each in above for cost in each]
    common = math.gcd(*map(int, costs)) if all(cost.is_integer() for cost in map(float, costs)) else 0
    return max(common, most / STEPS) or 1.0
