"""The maps say what the document says: each cell in its place, each sum checked against arithmetic done here."""

from __future__ import annotations

import re

import pytest

from quantadvisor.documents import Results
from quantadvisor.reports import charts, map_plots, wording

from . import sample, sample_map
from .sample_profile import MIB


@pytest.fixture(scope="module")
def results() -> Results:
    return sample.complete()


def test_each_point_is_in_the_table_with_its_winner(results: Results) -> None:
    picture = map_plots.decision_map(results)
    assert picture is not None
    assert len(picture.rows) == len(sample_map.CONTEXTS) * len(sample_map.FLIGHTS)
    for context, flight, winner, fits, _, kind in picture.rows:
        tokens = int(context.replace(",", "")) * int(flight.partition(",")[0])
        expected = sample_map.CHOICE if tokens <= 12_000 else sample_map.RIVAL if tokens <= 25_000 else "nothing fits"
        assert (winner, kind) == (expected, "modelled")
        assert int(fits) == (tokens <= 9_000) + (tokens <= 12_000) + (tokens <= 25_000)
    assert sum("declared" in row[1] for row in picture.rows) == 1
    assert next(row for row in picture.rows if "declared" in row[1])[:2] == ("640", "1, declared")


def test_cells_carry_a_letter_and_not_colour_alone(results: Results) -> None:
    picture = map_plots.decision_map(results)
    assert picture is not None
    letters = re.findall(r'class="inside"[^>]*>([A-Z])\b', picture.wide)
    won = sum(cell.winner is not None for cell in sample_map.decision_map().cells)
    assert len(letters) == won
    assert [entry.label[0] for entry in picture.legend if ": " in entry.label and entry.label[1] == ":"] == ["A", "B", "–"]
    assert picture.wide.count('class="declared"') == 1


def test_contexts_do_not_run_into_each_other() -> None:
    """Eight columns on a phone are 35 px apart: 18.43k beside 36.86k would be one word."""
    ticks = ((288, "288", "288"), (9_216, "9216", "9216"), (18_432, "18k", "18.43k"), (131_072, "131k", "131.1k"))
    for tokens, narrow, wide in ticks:
        assert map_plots.across(tokens, 35.0) == narrow
        assert map_plots.across(tokens, 70.0) == wide


def test_higher_concurrency_is_drawn_higher(results: Results) -> None:
    picture = map_plots.decision_map(results)
    assert picture is not None
    places = {}
    for context, flight, _ in [(c.context_tokens, c.concurrency, c.winner) for c in sample_map.decision_map().cells]:
        hint = f"{context:,} tokens, {flight:,} in flight: "
        found = re.search(rf'<rect class="cell [^"]+" x="([\d.]+)" y="([\d.]+)"[^>]*><title>{re.escape(hint)}', picture.wide)
        assert found is not None, hint
        places[context, flight] = float(found.group(1)), float(found.group(2))
    assert places[640, 1][1] > places[640, 128][1]
    assert places[160, 1][0] < places[5120, 1][0]


def test_memory_is_weights_rest_and_tokens(results: Results) -> None:
    picture = map_plots.memory_grid(results)
    assert picture is not None
    row = next(row for row in picture.rows if row[:2] == ("2,560", "4"))
    each = (1024 - 388) / 12_000
    assert row[2] == "143 MiB"
    assert float(row[3].split()[0]) == pytest.approx(2560 * 4 * each, rel=5e-3)
    assert float(row[5].split()[0]) == pytest.approx(388 + 2560 * 4 * each, rel=5e-3)
    assert row[6] == f"{(388 + 2560 * 4 * each) / 1024 * 100:.0f} %"


def test_over_the_limit_is_marked(results: Results) -> None:
    picture = map_plots.memory_grid(results)
    assert picture is not None
    over = sum(c * f > 12_000 for c in sample_map.CONTEXTS for f in sample_map.FLIGHTS)
    assert picture.wide.count('class="cell over"') == over


def test_users_name_what_ends_them(results: Results) -> None:
    picture = charts.users(results)
    assert picture is not None
    assert picture.rows[0][:3] == (sample_map.RIVAL, str(25_000 // 640), "memory is full")
    assert "none-fp32@torch" not in {row[0] for row in picture.rows}


def test_how_far_it_holds_is_said(results: Results) -> None:
    concurrency, context = wording.holds(results)
    assert concurrency == (
        f"Holds until 18 requests in flight (18.0× the declared 1); then {sample_map.RIVAL} wins: the advice's memory is full."
    )
    assert context == (
        "Holds until 5,120 tokens of context (8.00× the declared 640), as far as was looked. "
        "Below 201 tokens of context none-bf16@torch wins."
    )


def test_nothing_more_is_said_than_holds(results: Results) -> None:
    drawn = sample_map.decision_map()
    lost = tuple(
        c.model_copy(update={"winner": sample_map.RIVAL}) if (c.context_tokens, c.concurrency) == (640, 1) else c
        for c in drawn.cells
    )
    beaten = results.model_copy(update={"decision_map": drawn.model_copy(update={"cells": lost, "edges": ()})})
    assert wording.holds(beaten.model_copy(update={"regret": None})) == [
        f"It does not hold at the declared point: by what was measured afterwards, {sample_map.RIVAL} is better."
    ]
    assert results.regret
    fresh = results.regret.model_copy(update={"best": results.regret.advised})
    assert wording.holds(beaten.model_copy(update={"regret": fresh})) == [
        f"In rounds at another time {sample_map.RIVAL} was better; side by side with it, measured afresh, the advice is."
    ]
    tied = beaten.verdict.model_copy(update={"tied_with": (sample_map.RIVAL,)})
    assert wording.holds(beaten.model_copy(update={"verdict": tied})) == [
        f"At the declared point {sample_map.RIVAL} ties with it: no difference that counts."
    ]


def test_results_without_a_map_draw_none(results: Results) -> None:
    old = results.model_copy(update={"decision_map": None})
    assert map_plots.decision_map(old) is None
    assert map_plots.memory_grid(old) is None
    users = charts.users(old)
    assert users is not None
    assert users.head == ("Candidate", "Users", "Over the baseline", "Class")


@pytest.mark.parametrize(("share", "said"), [(0.853, "85%"), (1.0, "1×"), (3.21, "3.2×"), (57.4, "57×"), (None, "–")])
def test_shares_in_little_room(share: float | None, said: str) -> None:
    assert map_plots.share_short(share) == said


def test_sizes_are_bytes() -> None:
    known = sample_map.member(sample_map.CHOICE, 143, 245)
    assert known.held_bytes(12_000, 1) == pytest.approx(1024 * MIB)
