"""The gate's outputs: hostile names and reasons stay text in every format, and each format says what failed."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from quantadvisor.documents import Against, Factor, Gate, GateMetric
from quantadvisor.reports import gate as words

from . import chromium

HOSTILE = 'a|b <script>alert(1)</script>\n::error::x`[l](http://e)"\x00'


def metric(state: str, name: str = "tpot_s", **more: object) -> GateMetric:
    data = {"of": "rtn@onnxruntime", "name": name, "kind": "time", "state": state, "reason": f"{state} it is"}
    return GateMetric.model_validate(data | {"baseline": 0.01, "candidate": 0.0105, "ratio": 1.05, "low": 1.02} | more)


def gate(*metrics: GateMetric, state: str = "regression", **more: object) -> Gate:
    data = {
        "created_at": "2026-01-01T00:00:00+00:00",
        "mode": "live",
        "baseline": "a",
        "candidate": "b",
        "device": "CPU",
        "workload": "m, 8 prompt + 4 output tokens, 1 in flight",
        "state": state,
        "exit_code": 1,
        "threshold": 0.025,
        "alpha": 0.01,
        "metrics": metrics,
        "blocks": 12,
        "seconds": 30.0,
    }
    return Gate.model_validate(data | more)


MIXED = gate(
    metric("pass", "ttft_s", high=1.04, noise_floor=0.01, self_against_self=Against(ratio=1.001, low=0.99, high=1.01)),
    metric("regression"),
    metric("inconclusive", "itl_s"),
    metric("anomalous", "output", kind="quality"),
    factors=(Factor(name="onnxruntime", baseline="1.0", candidate="2.0"),),
    notes=("drift is not covered",),
    rejected_blocks=3,
)


def test_junit_has_a_failure_for_each_regressed_metric() -> None:
    suite = ElementTree.fromstring(words.junit(MIXED))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors"), suite.get("skipped")) == ("4", "1", "1", "1")
    assert [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None] == ["tpot_s"]
    assert suite.findtext("testcase/failure")


def test_the_text_says_what_failed_the_noise_floor_and_what_differs() -> None:
    said = "\n".join([words.headline(MIXED), *words.facts(MIXED)])
    for part in ("regression: tpot_s", "noise floor: ttft_s ±1.0%", "onnxruntime 1.0 → 2.0", "3 rejected", "not covered"):
        assert part in said
    table = words.cells(words.ordered(MIXED))
    assert table[1][0] == "✗"
    assert "candidate" not in table[0]
    assert any("1.001 [0.990, 1.010]" in line for line in table)
    assert any("1.050 [1.020, ?]" in line for line in table)


def test_two_candidates_have_a_column_for_their_names() -> None:
    assert "candidate" in words.cells([metric("pass"), metric("pass", of="other")])[0]


def test_annotations_are_one_line_each_and_passes_have_none() -> None:
    lines = words.workflow_commands(MIXED)
    assert [line.split(" ")[0] for line in lines] == ["::error", "::error", "::warning"]
    assert all("\n" not in line for line in lines)


@pytest.mark.parametrize("field", ["of", "reason", "name"])
def test_hostile_text_stays_text(field: str) -> None:
    made = gate(metric("regression", **{field: HOSTILE}), metric("pass", of="other"), candidate=HOSTILE)
    page, text = words.page(made), words.markdown(made)
    assert "<script" not in page + text
    assert not re.search(r"(href|src)=", page)
    assert "default-src 'none'" in page
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 3
    assert len({len(re.split(r"(?<!\\)\|", line)) for line in rows}) == 1
    ElementTree.fromstring(words.junit(made))
    assert len(words.workflow_commands(made)) == 1
    assert "\n" not in words.workflow_commands(made)[0]


def test_the_same_document_gives_the_same_bytes() -> None:
    again = Gate.model_validate_json(MIXED.model_dump_json(by_alias=True))
    assert again == MIXED
    assert words.page(again) == words.page(MIXED)
    assert words.markdown(again) == words.markdown(MIXED)


def recorded(many: int) -> list[Gate]:
    """One regression among passes, at another time each."""
    made = []
    for i in range(many):
        state = "regression" if i == 3 else "pass"
        times = [
            metric(state, name, ratio=1.0 + 0.01 * i, low=0.98, high=None if i == 2 else 1.04) for name in ("ttft_s", "tpot_s")
        ]
        made.append(gate(*times, state=state, created_at=f"2026-01-{i + 1:02d}T00:00:00+00:00"))
    return made


def test_the_history_is_drawn_and_told() -> None:
    history = recorded(6)
    page = words.page(history[-1], history)
    drawings = page.split("<svg")[1:]
    assert len(drawings) == 4  # two metrics, each for a desk and for a phone
    for drawing in drawings:
        assert drawing.count("<circle") == 5
        assert drawing.count("<polygon") == 1  # the regression is another shape, not only another colour
        assert "of 6 gates" in drawing
    assert page.count("2026-01-04T00:00:00+00:00") >= 1 + 2 * 2
    assert "1.020 [0.980, ?]" in page
    assert not re.search(r"(href|src|style)=", page)
    root = ElementTree.fromstring(f"<svg{drawings[0].split('</svg>')[0]}</svg>")
    heights = [float(c.get("cy", "")) for c in root.iter("circle")]
    assert heights == sorted(heights, reverse=True)  # higher ratios lie higher


def test_only_what_can_be_compared_is_drawn() -> None:
    history = recorded(4)
    elsewhere = [one.model_copy(update={"device": "another"}) for one in recorded(3)]
    assert "of 4 gates" in words.page(history[-1], [*elsewhere, *history])
    assert "<svg" not in words.page(history[-1], [*elsewhere, history[-1]])
    assert words.page(history[-1]) == words.page(history[-1], [history[-1]])


def test_a_hostile_history_stays_text() -> None:
    history = [one.model_copy(update={"candidate": HOSTILE}) for one in recorded(3)]
    page = words.page(history[-1], history)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


LOOK = """
  return {scroll: root.scrollWidth, client: root.clientWidth, paper: view.getComputedStyle(frame.body).backgroundColor,
    drawn: all("svg").filter((item) => item.checkVisibility()).length};
"""


@pytest.mark.slow
@chromium.needed
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1600])
def test_in_a_browser_nothing_is_refused_sticks_out_or_cannot_be_read(tmp_path: Path, width: int, dark: bool) -> None:
    """Every state and a history; the policy admits the style sheet (else the console says so), axe-core finds nothing."""
    made = MIXED.model_copy(update={"candidate": "/models/" + "endless-" * 60 + "<script>alert(1)</script>"})
    page = words.page(made, [*recorded(5), made])
    seen, console = chromium.look(page, tmp_path, width, LOOK, dark)
    assert console == []
    assert width - 20 <= seen["client"] <= width, "all but a scroll bar"
    assert seen["scroll"] == seen["client"]
    assert seen["paper"] == ("rgb(21, 23, 26)" if dark else "rgb(251, 250, 247)")
    assert seen["drawn"] == 2, "of each metric the drawing for this width"
    assert chromium.violations(page, tmp_path, width, dark) == []
