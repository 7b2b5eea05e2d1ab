"""The map against closed forms (capacity is a floor, two lines cross once) and against walking every integer."""

from __future__ import annotations

import math

import pytest

from quantadvisor.advisor.completed import completed
from quantadvisor.advisor.decision_map import (
    Contender,
    breach,
    decision_map,
    field_of,
    look,
    memory_line,
    users_at,
)
from quantadvisor.advisor.map_edges import first_beyond, lines
from quantadvisor.documents import Candidate, DecisionMap, Measured, Results, Workload
from quantadvisor.profiling.ledger import bytes_of_cache

from ..reports import sample
from .documents import candidate, figure, quality, workload
from .test_scaling import inventory, phase

GIB = 2**30
CHOICE, RIVAL, BASE = "rtn-w8-g64@openvino", "rtn-w4-g64@openvino", "none-fp32@openvino"


def member(name: str, ttft_s: float, tpot_s: float, peak_bytes: float = 0.5 * GIB, **more: object) -> Candidate:
    """All of its prefill is linear in rows, all of its decode step is the cache's: laws with closed forms."""
    traffic = workload().traffic
    phases = (
        phase("prefill", 1, 512, 512, linears_s=1e-12, other_s=1.0),
        phase("decode", 1, 1, 576, linears_s=1e-12, cache_s=1.0),
    )
    measured = Measured(
        ttft_s=figure(ttft_s),
        tpot_s=figure(tpot_s),
        peak_bytes=figure(peak_bytes),
        objective=figure(ttft_s + (traffic.output_length - 1) * tpot_s),
    )
    made = candidate(name, latency=1.0, target="none" if name == BASE else "weights")
    return made.model_copy(update={"measured": measured, "phases": phases, "quality": quality(0.01), **more})


def results(*members: Candidate, work: Workload | None = None, choice: str = CHOICE) -> Results:
    whole = sample.complete()
    profile = whole.profile.model_copy(update={"inventory": inventory(), "kernels": (), "baseline": BASE})
    verdict = whole.verdict.model_copy(update={"choice": choice, "change": choice != BASE})
    return whole.model_copy(
        update={
            "workload": work or workload(memory_limit_gib=1.0),
            "candidates": members,
            "profile": profile,
            "verdict": verdict,
            "decision_map": None,
            "choice_diagnosis": None,
        }
    )


def mapped(made: Results) -> DecisionMap:
    found = decision_map(made)
    assert found is not None
    return found


def test_lines_double_around_the_declared_value() -> None:
    assert lines(640, 129, 8192) == (160, 320, 640, 1280, 2560, 5120)
    assert lines(1, 1, None) == (1, 2, 4, 8, 16, 32, 64, 128)
    assert lines(24, 1, None) == (3, 6, 12, 24, 48, 96, 192, 384)
    assert 640 in lines(640, 10_000, 20)


def test_memory_holds_whole_caches() -> None:
    """inventory: 128 values a token; openvino keeps an unquantized cache in 16 bit, so 256 bytes."""
    made = results(member(BASE, 1.0, 0.01), member(CHOICE, 0.5, 0.005))
    field = field_of(made)
    assert field is not None
    each = bytes_of_cache(inventory(), made.candidates[1].scheme, 640, 1, plain_bytes=2)
    assert each == 640 * 256
    mine = next(c for c in field.contenders if c.candidate.name == CHOICE)
    assert users_at(mine, made.workload, field.limit_bytes, 640) == (1 + math.floor(0.5 * GIB / each), "memory")
    assert breach(mine, made.workload, field.limit_bytes, 640, 1 + math.floor(0.5 * GIB / each)) is None
    assert breach(mine, made.workload, field.limit_bytes, 640, 2 + math.floor(0.5 * GIB / each)) == "memory"


def test_users_found_at_the_limit_give_the_slope() -> None:
    """24 requests take 1.8 GiB and 6 fit in 1: 0.8 GiB for 17.5 contexts (6 ran, 7 did not), whatever the format says."""
    traffic = {"prompt_tokens": 1984, "output_tokens": 64, "concurrency": 24}
    work = workload(traffic=traffic, objective="concurrency", memory_limit_gib=1.0)
    one = member(CHOICE, 10.0, 0.1, 1.8 * GIB)
    assert one.measured
    found = one.model_copy(update={"measured": one.measured.model_copy(update={"max_concurrency": figure(6)})})
    line = memory_line(found, inventory(), work, GIB)
    assert line.cache_bytes_per_token == pytest.approx(0.8 * GIB / (17.5 * 2048))
    assert line.held_bytes(2048, 24) == pytest.approx(1.8 * GIB)
    assert line.held_bytes(2048, 6) < GIB < line.held_bytes(2048, 7)


def crossing() -> Results:
    """The choice has the faster first token, the rival the faster step. TTFT grows with rows, TPOT with cached tokens."""
    return results(member(BASE, 4.0, 0.04), member(CHOICE, 0.1, 0.010), member(RIVAL, 1.5, 0.004), work=workload())


def latency(one: Candidate, context: int, flight: int) -> float:
    """TTFT and TPOT by their laws: rows, and cached tokens in the middle of the output."""
    assert one.measured and one.measured.ttft_s and one.measured.tpot_s
    prompt = context - 128
    ttft = one.measured.ttft_s.median * flight * prompt / 512
    return ttft + 127 * one.measured.tpot_s.median * flight * (prompt + 64) / 576


def test_every_cell_is_the_fastest_unless_the_choice_ties() -> None:
    made = crossing()
    found = mapped(made)
    assert len(found.cells) == len(found.contexts) * len(found.concurrencies)
    for cell in found.cells:
        times = {c.name: latency(c, cell.context_tokens, cell.concurrency) for c in made.candidates}
        best = min(times, key=lambda name: times[name])
        expected = CHOICE if times[CHOICE] <= 1.05 * times[best] else best
        assert cell.winner == expected
        assert cell.objective == pytest.approx(times[expected], rel=1e-6)
    assert {cell.winner for cell in found.cells} == {CHOICE, RIVAL}


def test_the_edge_is_where_walking_every_context_finds_it() -> None:
    made = crossing()
    found = mapped(made)
    field = field_of(made)
    assert field is not None
    walked = [context for context in range(129, found.contexts[-1] + 1) if look(field, context, 1).winner != CHOICE]
    expected = {
        below := max((c for c in walked if c < 640), default=None),
        above := min((c for c in walked if c > 640), default=None),
    } - {None}
    assert below is not None or above is not None
    assert {edge.at for edge in found.edges if edge.axis == "context_tokens"} == expected
    assert {edge.winner for edge in found.edges} == {RIVAL}
    assert {edge.why for edge in found.edges} == {"better"}


@pytest.mark.parametrize(("declared", "end", "last"), [(24, 384, 42), (24, 1, 7), (640, 5120, 641), (640, 160, 639), (5, 5, 5)])
def test_first_beyond_finds_the_neighbour(declared: int, end: int, last: int) -> None:
    inside = (lambda n: n <= last) if end > declared else (lambda n: n >= last)
    expected = None if declared == end else last + 1 if end > declared else last - 1
    assert first_beyond(declared, end, lambda numbers: [inside(n) for n in numbers]) == expected
    assert first_beyond(declared, end, lambda numbers: [True] * len(numbers)) is None


def test_where_memory_ends_the_advice_it_is_said() -> None:
    """Both of one size; past it nothing fits."""
    made = results(member(BASE, 4.0, 0.04), member(CHOICE, 0.1, 0.001), work=workload(memory_limit_gib=0.51))
    each = 640 * 256
    most = 1 + math.floor(0.01 * GIB / each)
    edge = next(edge for edge in mapped(made).edges if edge.axis == "concurrency")
    assert (edge.at, edge.winner, edge.why) == (most + 1, None, "memory")


def test_the_slo_ends_users_where_the_percentile_passes_it() -> None:
    """TPOT 10 ms, its 95th percentile 20 % above: at n users 12 n ms; 50 ms allow 4."""
    slow = figure(0.010).model_copy(update={"samples": (0.010,) * 10 + (0.012,) * 10})
    one = member(CHOICE, 0.1, 0.010)
    assert one.measured
    one = one.model_copy(update={"measured": one.measured.model_copy(update={"tpot_s": slow})})
    work = workload(slo={"tpot_ms": 50, "percentile": 95})
    field = field_of(results(member(BASE, 1.0, 0.04), one, work=work))
    assert field is not None
    mine: Contender = next(c for c in field.contenders if c.candidate.name == CHOICE)
    assert mine.stretch[1] == pytest.approx(1.2)
    assert users_at(mine, work, field.limit_bytes, 640) == (4, "tpot")
    assert (mine.known.users, mine.known.limited_by) == (4, "tpot")


def test_who_is_over_the_quality_budget_is_nowhere_advised() -> None:
    fast = member(RIVAL, 0.01, 0.0001, quality=quality(0.4))
    found = mapped(results(member(BASE, 1.0, 0.01), member(CHOICE, 0.5, 0.005), fast))
    assert RIVAL not in {cell.winner for cell in found.cells}
    assert "over the budget" in (next(c.outside for c in found.candidates if c.name == RIVAL) or "")


def test_memory_broken_only_here_is_looked_at_elsewhere() -> None:
    """Excluded at 640 tokens for its memory, the rival wins where the context is short."""
    reason = "peak memory 1.00 GiB is over the limit of 1 GiB"
    large = member(RIVAL, 0.01, 0.0001, GIB + 20_000, excluded=reason)
    found = mapped(results(member(BASE, 1.0, 0.01), member(CHOICE, 0.5, 0.005), large))
    assert next(c for c in found.cells if (c.context_tokens, c.concurrency) == (160, 1)).winner == RIVAL
    assert next(c for c in found.cells if (c.context_tokens, c.concurrency) == (640, 1)).winner == CHOICE


def test_users_are_the_objective_where_they_are_asked_for() -> None:
    work = workload(objective="concurrency", memory_limit_gib=1.0)
    found = mapped(results(member(BASE, 1.0, 0.01, 0.9 * GIB), member(CHOICE, 2.0, 0.02, 0.4 * GIB), work=work))
    known = {c.name: c for c in found.candidates}
    for cell in found.cells:
        holds = math.floor((GIB - known[CHOICE].held_bytes(0, 0)) / (256 * cell.context_tokens))
        assert cell.winner == (CHOICE if cell.concurrency <= holds else None)
        assert cell.objective == (holds if cell.winner else None)


def test_beaten_at_the_declared_point_no_edge_is_claimed() -> None:
    found = mapped(results(member(BASE, 1.0, 0.01), member(CHOICE, 0.5, 0.005), member(RIVAL, 0.1, 0.001)))
    assert found.edges == ()
    assert next(c for c in found.cells if (c.context_tokens, c.concurrency) == (640, 1)).winner == RIVAL


@pytest.mark.parametrize("change", [{"candidates": ()}, {"verdict": sample.minimal().verdict}])
def test_without_a_measured_choice_there_is_no_map(change: dict[str, object]) -> None:
    assert decision_map(crossing().model_copy(update=change)) is None


def test_completed_adds_map_and_diagnosis_once() -> None:
    made = completed(crossing())
    assert made.decision_map is not None
    assert made.choice_diagnosis is not None
    assert made.choice_diagnosis.of == CHOICE
    assert made.choice_diagnosis.decode.binds == "kv_cache"
    assert made.choice_diagnosis.capacity.total == pytest.approx(0.5 * GIB, abs=2)
    assert completed(made) == made
    assert completed(sample.minimal()) == sample.minimal()
