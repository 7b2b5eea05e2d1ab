"""Where a row of the activation matrix suddenly costs more: found between the M of the grid by bisection. Pure functions.

A kernel that changes its tiling or its algorithm at some M shows there a jump in time. Two M are neighbours of such a cliff
where the second costs CLIFF times more than in proportion to its rows. Between two M of the grid the search halves the
interval (in log M) and follows the steeper half, until the M are as near as RESOLUTION allows or the rise left is no cliff.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from quantadvisor.documents import Figure

Curve = Mapping[int, float]
"""M → seconds of one kernel at one (N, K)."""

CLIFF = 1.3
RESOLUTION = 1 / 16
"""Part of M within which a cliff is pinned down; at small M to a row."""


def row_factor(curve: Curve, low: int, high: int) -> float:
    """The cost of a row at `high` over that at `low`."""
    return (curve[high] / high) / (curve[low] / low)


def steepness(curve: Curve, low: int, high: int) -> float:
    """d log t / d log M between two M: 1 where time is proportional to rows."""
    return math.log(curve[high] / curve[low]) / math.log(high / low)


def cliffs(curve: Mapping[int, Figure]) -> list[tuple[int, int, float]]:
    """(M before, M after, factor) of neighbours in the curve between which a row becomes CLIFF times dearer, whatever lies
    inside the intervals of both times; the factor is that of the medians."""
    return [
        (low, high, row_factor({m: curve[m].median for m in (low, high)}, low, high))
        for low, high in pairwise(sorted(curve))
        if row_factor({low: curve[low].high, high: curve[high].low}, low, high) > CLIFF
    ]


def next_ms(curve: Curve, grid: Sequence[int], searched: Curve | None = None) -> list[int]:
    """The M to time next: the middle of the steepest step in each interval of the grid that may hide a cliff.

    An interval whose ends show one is always searched. `searched`: M → the fastest kernel's seconds, as far as it is known;
    where this kernel is the fastest at an end, a rise by CLIFF is searched too, since a cliff may hide in a curve that is
    flat before it.
    """
    found = []
    for low, high in pairwise(sorted(m for m in grid if m in curve)):
        wins = searched is not None and any(m in searched and curve[m] <= searched[m] for m in (low, high))
        if not (row_factor(curve, low, high) > CLIFF or (wins and curve[high] > CLIFF * curve[low])):
            continue
        inside = sorted(m for m in curve if low <= m <= high)
        a, b = max(pairwise(inside), key=lambda pair: steepness(curve, *pair))
        if b - a > max(1, RESOLUTION * b) and curve[b] > CLIFF * curve[a]:
            found.append(round(math.sqrt(a * b)) if a > 1 else (a + b) // 2)
    return found
