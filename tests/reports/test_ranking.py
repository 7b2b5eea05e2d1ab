"""Every candidate has a place and a reason, from the run's own words or from what was measured."""

from __future__ import annotations

import pytest

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


def test_a_breach_is_read_off_the_measurement_where_the_run_did_not_say_it() -> None:
    whole = sample.complete()
    silent = tuple(item.model_copy(update={"excluded": None}) for item in whole.candidates)
    found = reasons(whole.model_copy(update={"candidates": silent}))
    assert found["rtn-w4-g64@onnxruntime"] == ("excluded", "mean KL 0.46 is above the budget of 0.05")


@pytest.mark.parametrize(
    ("changed", "name", "reason"),
    [
        ({"memory_limit_gib": 0.9}, "none-fp32@torch", "peak memory 0.99 GiB is above the limit of 0.9 GiB"),
        ({"slo": {"tpot_ms": 15}}, "none-fp32@openvino+bf16", "TPOT 16.06 ms at p95 is above 15 ms"),
        (
            {"quality": {"top1_agreement_min": 0.95}},
            "mixed-w4w8-g64@onnxruntime",
            "top-1 agreement 91.0% is below 95.0%",
        ),
    ],
)
def test_each_constraint(changed: dict[str, object], name: str, reason: str) -> None:
    assert reasons(sample.complete(workload=sample.workload(**changed)))[name] == ("excluded", reason)


def test_faster_than_the_advice_is_said_plainly() -> None:
    whole = sample.complete()
    alone = whole.verdict.model_copy(update={"tied_with": (), "runner_up": None})
    found = reasons(whole.model_copy(update={"verdict": alone}))
    assert found[sample.TIED] == ("slower", "1.05× faster than the advice, seen after the choice was frozen")
