"""The plan's page: what it says is the plan's, it loads nothing, and Chromium and axe-core find nothing wrong with it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from quantadvisor.advisor.gpu_plan import plan
from quantadvisor.advisor.plan_command import FITTED
from quantadvisor.advisor.serving_fit import Parameters
from quantadvisor.documents import CapacityPlan, Workload
from quantadvisor.reports.plan import effects, headline, render_plan

from . import chromium

EVIL = "<script>alert(1)</script>"


def made(devices: tuple[str, ...] = ("h100", "l40s", "a100"), **more: object) -> CapacityPlan:
    spec = {
        "schema": "quantadvisor/workload/1",
        "model": "meta-llama/Llama-3.1-70B",
        "traffic": {"prompt_tokens": 2000, "output_tokens": 500, "concurrency": 32},
        "slo": {"ttft_ms": 4000, "tpot_ms": 40},
        "price_per_hour": 3.0,
        "family": ["meta-llama/Llama-3.1-8B"],
    }
    return plan(Workload.model_validate(spec | more), devices, Parameters.read(FITTED))


@pytest.fixture(scope="module")
def whole() -> CapacityPlan:
    return made()


def rows_of(page: str, device: int) -> list[str]:
    table = page.split(f'id="d{device}-table"')[1].split("</table>")[0]
    return re.findall(r'<tr role="row" class="st-.*?</tr>', table, re.DOTALL)


def test_every_candidate_is_on_the_page_with_its_reason(whole: CapacityPlan) -> None:
    page = render_plan(whole)
    for place, one in enumerate(whole.devices, start=1):
        timed = [c for c in one.candidates if c.refused is None]
        rows = rows_of(page, place)
        assert len(rows) == len(timed)
        for row, candidate in zip(rows, timed, strict=True):
            assert f"<code>{candidate.name}</code>" in row
            assert candidate.excluded is None or f'<span class="reason">{candidate.excluded}</span>' in row
            assert f"{candidate.users_within_slo:,}</span>" in row
            assert f"{candidate.cost_per_million_tokens:,.2f}</span>" in row
        refused = page.split(f"Refused on {one.device}")[1].split("</dl>")[0]
        assert {c.name for c in one.candidates if c.refused} <= set(re.findall(r"<code>([^<]+)</code>", refused))


def test_the_parts_that_a_planner_asks_for(whole: CapacityPlan) -> None:
    page = render_plan(whole)
    for words in ("80 % interval", "Users under the SLO", "tok/s", "Cost per million tokens", "Decision map over context",
                  "Holds until", "Speed", "Capacity", "arXiv:2212.09720", 'class="badge b-cited"', "Bits"):  # fmt: skip
        assert words in page, words
    best = next(one for one in whole.devices if one.device == "h100_sxm")
    assert [word for word, _ in effects(best)] == ["Speed", "Capacity"]
    assert "8 h100_sxm" in headline(whole)


def test_the_best_device_is_that_of_the_best_objective() -> None:
    assert "b200" in headline(made(("a100", "b200", "h100")))
    assert headline(made(("l40s",))).startswith("No device named serves")


def test_it_loads_nothing_and_is_the_same_again(whole: CapacityPlan) -> None:
    page = render_plan(whole)
    assert page == render_plan(CapacityPlan.model_validate_json(whole.model_dump_json()))
    assert not re.search(r"(?:href|src)\s*=\s*[\"']?\s*(?:https?:)?//", page)
    assert "default-src &#39;none&#39;" in page
    assert page.count("<script>") == 1
    assert "style=" not in page


def test_a_models_name_is_text() -> None:
    whole = made(("h100",))
    named = whole.model_copy(update={"workload": whole.workload.model_copy(update={"model": EVIL}), "notes": (EVIL,)})
    assert EVIL not in render_plan(named)


MEASURE = """
  const wide = all("main *").filter((e) => e.getBoundingClientRect().right > root.clientWidth + 1 && !e.closest(".scroll"));
  return {scroll: root.scrollWidth, client: root.clientWidth, wide: wide.map((e) => e.outerHTML.slice(0, 120))};
"""


@pytest.mark.slow
@chromium.needed
@pytest.mark.parametrize("width", [390, 1600])
def test_no_error_and_no_overflow(whole: CapacityPlan, tmp_path: Path, width: int) -> None:
    seen, console = chromium.look(render_plan(whole), tmp_path, width, MEASURE)
    assert console == []
    assert seen["scroll"] == seen["client"], seen
    assert seen["wide"] == []


@pytest.mark.slow
@chromium.needed
@pytest.mark.parametrize(("width", "dark"), [(390, True)])
def test_axe_finds_nothing(tmp_path: Path, width: int, dark: bool) -> None:
    small = made(("h100", "l40s"), runtimes=["trtllm"], parallel={"tensor": 8})
    assert chromium.violations(render_plan(small), tmp_path, width, dark) == []


def test_the_family_says_which_size_to_take(whole: CapacityPlan) -> None:
    """Of 70B and 8B the larger wins where it holds; what does not hold says why."""
    page = render_plan(whole)
    first = whole.family[0]
    assert first.rank == 1
    assert f"{first.model} at {first.bits} bit" in page
    out = next(one for one in whole.family if not one.fits)
    assert str(out.why_not) in page
