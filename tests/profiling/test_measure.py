"""How rounds become figures: TPOT's definition, recorded caches, the search for the largest batch, the linear check."""

from itertools import count
from typing import Any

import numpy as np
import pytest

from quantadvisor.documents import CandidateFailed, GpuState, Traffic
from quantadvisor.profiling import measure
from quantadvisor.profiling.measure import (
    Round,
    clear_losers,
    interleave,
    largest_batch,
    linear_check,
    measured_from_rounds,
    next_guess,
    objective_value,
    prompt_batch,
    recorded,
    recorded_length,
    run_round,
)
from quantadvisor.profiling.nvml import Summary
from quantadvisor.profiling.rapl import Counter
from quantadvisor.profiling.workers import Steady

from ..advisor.documents import workload
from .test_workers import PROMPT, worker

TRAFFIC = Traffic(prompt_tokens=8, output_tokens=4, concurrency=2)


def planted(rows: int) -> Steady:
    """A process whose peak is 100 + 10 bytes a row."""
    return Steady(prefill_row_s=0.1, itl_s=[0.01, 0.01], peak_bytes=100 + 10 * rows, rows_equal=True)


@pytest.mark.parametrize("known", [{}, {10: 200}, {24: 340}, {20: 300}])
@pytest.mark.parametrize("guess", [1, 7, 19, 20, 21, 60])
def test_the_largest_batch_is_found_and_measured(guess: int, known: dict[int, int]) -> None:
    found, _ = largest_batch(planted, 300, None, guess, known)
    assert 18 <= found.median <= 20
    assert found.kind == "measured"


@pytest.mark.parametrize(("start_s", "most"), [(0.0, 5), (0.02, 3)])
@pytest.mark.parametrize("slow", [True, False])
def test_where_time_ends_it_few_tries_find_it(slow: bool, start_s: float, most: int) -> None:
    """10 ms a row beside what a step takes anyway, and 55 ms allowed; 24 rows fit memory."""
    tried: list[int] = []

    def run(rows: int) -> Steady:
        tried.append(rows)
        return planted(rows).model_copy(update={"itl_s": [start_s + 0.01 * rows] * 2})

    known, over = ({24: 340}, {24: start_s + 0.24}) if slow else ({}, {})
    found, _ = largest_batch(run, 340, 0.055, 24, known, over)
    assert (found.median, found.kind) == (most, "measured")
    assert len(tried) <= 5 and (24 not in tried) is slow


@pytest.mark.parametrize("known", [{}, {10: 200}])
@pytest.mark.parametrize("tpot_s", [None, 0.055])
def test_the_search_goes_on_below_what_breaks(known: dict[int, int], tpot_s: float | None) -> None:
    """A process that is ended at 15 rows, as by our own limit on memory."""

    def run(rows: int) -> Steady:
        if rows >= 15:
            raise CandidateFailed("used 19 GiB")
        return planted(rows)

    found, notes = largest_batch(run, 300, tpot_s, 25, known)
    assert 13 <= found.median <= 14
    assert notes[0] == "25 rows: used 19 GiB"


def test_what_was_measured_at_the_declared_rows_counts_within_an_slo() -> None:
    """Nothing else runs."""

    def run(rows: int) -> Steady:
        raise CandidateFailed("no")

    assert largest_batch(run, 300, 0.055, 25, {10: 200})[0].median == 10
    assert largest_batch(run, 300, 0.055, 25, {10: 200}, {10: 0.06})[0].median == 0


def test_a_recorded_cache_is_as_long_as_in_the_middle_of_decode() -> None:
    def at(prompt: int, output: int) -> int:
        return recorded_length(Traffic(prompt_tokens=prompt, output_tokens=output, concurrency=32))

    assert at(1024, 1024) == 1024 + (1024 - 6) // 2
    assert at(1984, 64) == 1984  # 2 % longer: not worth a second prefill


def test_recorded_rounds_follow_a_warm_prefill_of_one_row() -> None:
    asked: list[tuple[object, ...]] = []

    class Fake:
        def generate(self, prompts: np.ndarray, tokens: int) -> None:
            asked.append(("generate", prompts.shape, tokens))

        def steady(self, prompts: np.ndarray, rows: int, steps: int, at: int) -> Steady:
            asked.append(("steady", rows, steps, at))
            return planted(rows)

    traffic = Traffic(prompt_tokens=1000, output_tokens=400, concurrency=24)
    worker: Any = Fake()
    rows, failed = interleave({"x": worker}, np.zeros((24, 1000), np.int64), traffic, 2)
    assert (len(rows["x"]), failed) == (2, {})
    assert asked == [("generate", (1, 1000), 4), *[("steady", 24, 6, 1197)] * 2]


def test_a_limit_nothing_fits_is_not_measured() -> None:
    found, _ = largest_batch(planted, 50, None, 4, {})
    assert found.median == 0
    assert found.kind == "modelled"


def test_the_next_guess_lies_between_what_fits_and_what_does_not() -> None:
    assert 10 < next_guess(10, 20, {10: 200, 20: 300}, 260) < 20


def test_tpot_is_latency_less_ttft_over_output_less_one() -> None:
    made = Round(ttft_s=1.0, itl_s=(0.1, 0.2, 0.3), peak_bytes=1)
    assert made.tpot_s == pytest.approx((1.6 - 1.0) / 3)
    assert objective_value("latency", TRAFFIC, 1.0, made.tpot_s) == pytest.approx(1.6)
    assert objective_value("throughput", TRAFFIC, 1.0, made.tpot_s) == pytest.approx(2 * 4 / 1.6)


def test_rows_of_a_batch_are_real_and_differ() -> None:
    rows = prompt_batch(np.arange(100), TRAFFIC)
    assert rows.shape == (2, 8)
    assert (rows[0] != rows[1]).any()
    assert not recorded(TRAFFIC)
    assert recorded(Traffic(prompt_tokens=2000, output_tokens=4, concurrency=24))


def test_candidates_are_interleaved_and_a_fault_is_a_reason() -> None:
    with worker() as good, worker("nan") as bad:
        rows, failed = interleave({"good": good, "bad": bad}, np.repeat(PROMPT, 2, 0), TRAFFIC, 3)
    assert len(rows["good"]) == 3
    assert "NaN" in failed["bad"]
    assert "bad" not in rows


def test_energy_is_of_whole_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter that goes on by 3 J at each look: 1.5 J for each of the two requests of a round."""
    values = count(0, 3_000_000)
    monkeypatch.setattr(measure, "counters", lambda: {"intel-rapl:0": Counter(next(values), 1 << 40)})
    with worker() as running:
        whole = run_round(running, np.repeat(PROMPT, 2, 0), TRAFFIC)
        short = run_round(running, np.repeat(PROMPT, 2, 0), TRAFFIC, 2)
    assert whole.request_j == pytest.approx(1.5)
    assert whole.token_j == pytest.approx(1.5 / TRAFFIC.output_length)
    assert (short.request_j, short.token_j) == (None, None)
    spec = workload(traffic=TRAFFIC.model_dump())
    energy = measured_from_rounds([whole, whole], spec, [0.2]).request_j
    assert energy and (energy.median, energy.source) == (1.5, "RAPL, all CPU packages")
    assert measured_from_rounds([short], spec, [0.2]).request_j is None


def test_what_the_gpu_did_goes_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks with TPOT, the board's energy beside the CPU's, and who told the memory."""

    def did(low: int, high: int, *throttling: str) -> Summary:
        return Summary(1.0, 3, (low, low, high), 2619, 300.0, 8.0, "counter", 60, 1 << 30, throttling)

    def made(gpu: Summary) -> Round:
        joules, source = measure.energy(2.0, gpu)
        assert joules == 10
        told = {"request_j": joules, "token_j": joules / 4, "energy_from": source, "memory_from": "NVML", "gpu": gpu}
        return Round(ttft_s=1, itl_s=(1,), peak_bytes=5, **told)

    found = measured_from_rounds([made(did(1400, 1900)), made(did(1300, 1800, "power cap"))], workload(), [])
    assert found.tpot_s and found.tpot_s.source == "mean gap per round; SM clock 1300 to 1900 MHz; throttled: power cap"
    assert found.gpu == GpuState(
        readings=6, sm_mhz=(1300, 1350, 1900), memory_mhz=2619, power_w=300.0, temperature_c=60, memory_used_bytes=1 << 30,
        throttling=("power cap",),
    )  # fmt: skip
    assert found.request_j and found.token_j
    assert (found.request_j.median, found.token_j.median) == (10, 2.5)
    assert found.token_j.source == found.request_j.source
    assert found.request_j.source == "RAPL, all CPU packages + NVML, the GPU's board (counter)"
    assert found.peak_bytes and found.peak_bytes.source == "NVML"
    assert measure.energy(None, did(1, 2)) == (8.0, "NVML, the GPU's board (counter)")
    assert measure.energy(None, None)[0] is None


def rounds_of(*seconds: float) -> list[Round]:
    return [Round(ttft_s=s, itl_s=(), peak_bytes=1) for s in seconds]


def test_who_is_clearly_behind_needs_no_more_rounds() -> None:
    seen = {"best": rounds_of(1.0, 1.1, 0.9), "near": rounds_of(1.3, 1.2, 1.15), "behind": rounds_of(2.0, 1.9, 2.1)}
    assert clear_losers(seen, "latency", TRAFFIC) == {"behind"}
    assert clear_losers({name: rows[:2] for name, rows in seen.items()}, "latency", TRAFFIC) == set()
    twice = {"best": rounds_of(1.0, 1.1), "far": rounds_of(2.3, 2.4), "behind": rounds_of(2.1, 2.4)}
    assert clear_losers(twice, "latency", TRAFFIC) == {"far"}
    assert clear_losers({name: rows[:1] for name, rows in twice.items()}, "latency", TRAFFIC) == set()
    assert clear_losers({"near": seen["near"]}, "latency", TRAFFIC) == set()
    assert clear_losers({"near": seen["near"]}, "latency", TRAFFIC, rounds_of(0.5, 0.5, 0.5)) == {"near"}
    assert clear_losers(seen, "concurrency", TRAFFIC) == set(seen)


def test_the_linear_check_against_a_constant_time() -> None:
    with worker() as running:
        assert linear_check(running, PROMPT, 0.05) == pytest.approx(0.5, rel=0.3)
