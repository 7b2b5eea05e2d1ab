"""Which M a kernel must be timed at, and what is known of the others. Pure functions over one kernel's times at one (N, K).

Time does not fall as rows are added, and a row gets no dearer: between two timed M, t(a) and t(b) m / b are lower bounds and
t(b) and t(a) m / a upper ones. Where the ends show that a row does get dearer, a cliff lies between them and the first of each
pair alone holds. The ends of the grid are always timed, then the middle of what is open, until every M is settled: its bracket
is no wider than CLEAR, or some other kernel is surely faster there. What is then given is an interpolation that says so, and
its interval is the bracket.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from quantadvisor.documents import Figure

from .cliffs import row_factor

Times = Mapping[int, Figure]
"""M → seconds of one kernel at one (N, K), as timed."""

CLEAR = 1.1


def neighbours(times: Times, m: int) -> tuple[int, int] | None:
    """The nearest timed M below and above `m`; None where it lies outside."""
    below, above = [one for one in times if one < m], [one for one in times if one > m]
    return (max(below), min(above)) if below and above else None


def bracket(times: Times, m: int) -> tuple[float, float] | None:
    """Seconds between which the time at `m` must lie; None where it is outside of what was timed."""
    if m in times:
        return times[m].low, times[m].high
    ends = neighbours(times, m)
    if ends is None:
        return None
    (a, b), first, last = ends, times[ends[0]], times[ends[1]]
    low, high = min(first.low, last.low), max(first.high, last.high)
    if row_factor({a: first.median, b: last.median}, a, b) <= CLEAR:
        low, high = max(low, last.low * m / b), min(high, first.high * m / a)
    return min(low, high), max(low, high)


def clear(times: Times, m: int) -> bool:
    """Is the time at `m` known as well as a timing would tell?"""
    known = bracket(times, m)
    return known is not None and known[1] <= CLEAR * known[0]


def beaten(times: Times, m: int, rivals: Iterable[Times]) -> bool:
    """Is another kernel surely faster at `m`, by more than CLEAR?"""
    mine = bracket(times, m)
    theirs = [known[1] for rival in rivals if (known := bracket(rival, m))]
    return mine is not None and bool(theirs) and CLEAR * min(theirs) < mine[0]


def next_m(times: Times, ms: Sequence[int], extra: Sequence[int] = (), rivals: Sequence[Times] = ()) -> int | None:
    """The M to time next; None when all are settled. Those of `extra` come last, and only to be clear settles them."""
    ordered = sorted(ms)
    for end in (*ordered[:1], *ordered[-1:]):
        if end not in times:
            return end
    for wanted, others in ((ordered, rivals), (sorted(extra), ())):
        open_ms = [m for m in wanted if m not in times and not clear(times, m) and not beaten(times, m, others)]
        if open_ms:
            return open_ms[len(open_ms) // 2]
    return None


def interpolated(times: Times, m: int, name: str) -> Figure | None:
    """The time at `m` by a straight line in log-log between its neighbours, held to the bracket, which is its interval."""
    ends, known = neighbours(times, m), bracket(times, m)
    if ends is None or known is None:
        return None
    (a, b), (low, high) = ends, known
    share = math.log(m / a) / math.log(b / a)
    line = math.exp((1 - share) * math.log(times[a].median) + share * math.log(times[b].median))
    source = f"{name} interpolated between M = {a} and M = {b}"
    return Figure(median=min(max(line, low), high), low=low, high=high, kind="modelled", source=source)
