"""Every candidate has a place and a reason, from the run's own words or from what was measured."""

from __future__ import annotations

from quantadvisor.documents import Results
from quantadvisor.reports.ranking import grouped, rank

from . import sample


def reasons(results: Results) -> dict[str, tuple[str, str]]:
    return {row.name: (row.status, row.reason) for row in rank(results)}


def test_the_order_and_the_groups() -> None:
    rows = rank(sample.complete())
    assert [row.number for row in rows] == list(range(1, 15))
    assert (rows[0].name, rows[0].status) == (sample.CHOICE, "advised")
    assert [name for name, _ in grouped(rows)] == [
        "Feasible",
        "Predicted only",
        "Outside the constraints",
        "Refused: cannot run here",
    ]


def test_faster_than_the_advice_is_said_plainly() -> None:
    whole = sample.complete()
    alone = whole.verdict.model_copy(update={"tied_with": (), "runner_up": None})
    found = reasons(whole.model_copy(update={"verdict": alone}))
    assert found[sample.TIED] == ("slower", "1.05× faster than the advice, seen after the choice was frozen")
