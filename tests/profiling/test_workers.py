"""The worker protocol with a virtual runtime: known times are measured, planted faults become reasons, nobody is left over."""

import time
from pathlib import Path

import numpy as np
import pytest

from quantadvisor.documents import CandidateFailed
from quantadvisor.kernels.machine import process_memory
from quantadvisor.profiling import nvml, workers
from quantadvisor.profiling.memory import ALLOCATOR, PROCESS
from quantadvisor.profiling.workers import Allowance, RunningWorker

RUNTIME = Path(__file__).with_name("virtual_runtime.py")
PROMPT = np.arange(8, dtype=np.int64)[None]


def worker(*options: str, **more: object) -> RunningWorker:
    return RunningWorker(RUNTIME, Path("nowhere"), options, 1, **more)  # type: ignore[arg-type]


def test_known_times_are_measured() -> None:
    with worker() as running:
        made = running.generate(PROMPT, 6)
    assert made.ttft_s == pytest.approx(0.05, rel=0.5)
    assert np.median(made.itl_s) == pytest.approx(0.01, rel=0.5)
    assert made.generated == [[7] * 6]
    assert len(made.itl_s) == 5


def test_recorded_cache_is_decoded_at_the_batch() -> None:
    with worker() as running:
        steady = running.steady(PROMPT, 5, 3)
    assert steady.rows_equal
    assert len(steady.itl_s) == 3


def test_memory_is_what_the_sessions_allocator_says_else_the_process() -> None:
    with worker("allocator") as running:
        assert running.loaded.loaded_bytes == 111
        assert running.generate(PROMPT, 2).peak_bytes == running.steady(PROMPT, 2, 2).peak_bytes == 222
    with worker() as running:
        assert running.generate(PROMPT, 2).peak_bytes not in (111, 222)


def test_who_told_the_memory_is_said() -> None:
    with worker() as running:
        made = running.generate(PROMPT, 2)
    assert (running.loaded.memory_from, made.memory_from, made.gpu) == (PROCESS, PROCESS, None)
    with worker("gpu", "allocator") as running:
        assert running.loaded.memory_from == ALLOCATOR
        assert running.steady(PROMPT, 2, 2).memory_from == ALLOCATOR


@pytest.mark.skipif(nvml.why_not() is None, reason="this machine has a GPU")
def test_a_gpu_whose_memory_nobody_tells_is_a_reason() -> None:
    with pytest.raises(CandidateFailed, match="the GPU's memory cannot be read: NVML cannot be used"), worker("gpu"):
        pass


def test_score_against_itself_is_zero(tmp_path: Path) -> None:
    windows = np.arange(12, dtype=np.int64).reshape(2, 6)
    with worker() as running:
        running.write_reference(windows, tmp_path / "reference.npy")
        scores = running.score(windows, tmp_path / "reference.npy", 4)
    assert scores.shape == (3, 12)
    assert scores[1] == pytest.approx(0.0, abs=1e-4)
    assert (scores[2] == 1).all()
    logits = np.arange(32) / 10
    closed_form = np.log(np.exp(logits).sum()) - logits[windows[:, 1:]]
    assert scores[0].reshape(2, 6)[:, :-1] == pytest.approx(closed_form, abs=1e-4)
    assert np.isnan(scores[0].reshape(2, 6)[:, -1]).all()


@pytest.mark.parametrize(
    ("option", "reason"),
    [("crash", "SIGSEGV"), ("nan", "NaN"), ("no-load", "another runtime")],
)
def test_a_fault_is_a_reason(option: str, reason: str) -> None:
    with pytest.raises(CandidateFailed, match=reason), worker(option) as running:
        running.generate(PROMPT, 2)


def test_a_hang_ends_at_the_time_limit() -> None:
    started = time.monotonic()
    with pytest.raises(CandidateFailed, match="within 1 s"), worker("hang") as running:
        running.time_limit_s = 1.0
        try:
            running.generate(PROMPT, 2)
        finally:
            assert running._process.wait() < 0  # it hangs no longer while others are measured
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("option", ["garbage", "list", "deep", "bytes"])
def test_garbage_on_the_pipe_is_a_reason(option: str) -> None:
    with pytest.raises(CandidateFailed, match="the worker printed garbage"), worker(option) as running:
        running.generate(PROMPT, 2)


@pytest.mark.parametrize(
    ("option", "reason"), [("nan-time", r"prefill\.wall_s: .*finite"), ("no-phases", "prefill: Field required")]
)
def test_operators_that_are_no_evidence_are_a_reason(option: str, reason: str) -> None:
    with pytest.raises(CandidateFailed, match=reason), worker(option) as running:
        running.operators(PROMPT)


def test_a_partial_line_ends_at_the_time_limit() -> None:
    with pytest.raises(CandidateFailed, match="no answer to generate within 1 s"), worker("partial") as running:
        running.time_limit_s = 1.0
        running.generate(PROMPT, 2)


@pytest.mark.parametrize("option", ["hog", "grandchild"])
def test_too_much_memory_is_killed_by_our_limit(option: str) -> None:
    """Its own, or that of a process which it started."""
    with (
        pytest.raises(CandidateFailed, match=r"generate used .* more than its limit of 0.29 GiB"),
        worker(option, memory_limit_bytes=300 << 20) as running,
    ):
        running.generate(PROMPT, 2)


def test_without_a_limit_of_its_own_a_worker_has_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    with worker() as running:
        assert running.memory_limit_bytes == process_memory()
    monkeypatch.setattr(workers, "process_memory", lambda: 300 << 20)
    with pytest.raises(CandidateFailed, match=r"generate used .* more than its limit of 0.29 GiB"), worker("hog") as running:
        running.generate(PROMPT, 2)


def test_one_that_is_slow_in_small_portions_ends_at_its_candidates_allowance() -> None:
    """No answer takes long; together they do, and another process of the candidate has nothing left."""
    allowance, said = Allowance(1.0, "a larger budget gives it more"), "when the 1 s of one candidate were over; a larger budget"
    started = time.monotonic()
    with worker() as running:
        running.allowance = allowance  # not before: a start may take longer on a busy machine
        with pytest.raises(CandidateFailed, match=f"generate was not done {said}"):
            for _ in range(600):
                running.generate(PROMPT, 6)
        assert running._process.wait() < 0
    assert 1.0 < time.monotonic() - started < 30
    assert allowance.left_s <= 0
    with pytest.raises(CandidateFailed, match=f"imports was not done {said}"), worker(allowance=allowance):
        pass


def test_what_is_no_program_is_a_reason() -> None:
    with (
        pytest.raises(CandidateFailed, match=r"exit code 127\): /nowhere/python cannot be started"),
        worker(python="/nowhere/python"),
    ):
        pass


def test_another_artifact_takes_the_place_of_the_first(tmp_path: Path) -> None:
    """Its peak is counted above the imports too, not above what the first left."""
    with worker() as running:
        first = running.loaded
        second = running.load(str(tmp_path), (), 1)
        assert second.base_bytes == first.base_bytes
        running.generate(PROMPT, 2)
        with pytest.raises(CandidateFailed, match="another runtime"):
            running.load(str(tmp_path), ("no-load",), 1)
        with pytest.raises(CandidateFailed, match="NoneType"):
            running.generate(PROMPT, 2)
