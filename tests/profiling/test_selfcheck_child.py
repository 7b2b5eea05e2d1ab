"""The verdict on one kernel, over kernels that are made up: wrong, silent, not repeating, timed by made-up clocks."""

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from quantadvisor.documents import GpuState
from quantadvisor.kernels import gpu_timing
from quantadvisor.kernels.triton_subjects import Subject, excess
from quantadvisor.profiling import nvml
from quantadvisor.profiling import selfcheck_child as child
from quantadvisor.profiling.nvml import Summary

TRUE = torch.tensor([1.0, -2.0], dtype=torch.float64)


def subject(run: Any, plain: Any = None) -> Subject:
    return Subject("w8a8", "M 1", run, lambda: TRUE, lambda true: 0.01 * true.abs(), plain)


def test_within_what_is_allowed() -> None:
    found = child.checked(subject(lambda: torch.tensor([1.005, -2.0])), timed=False, repeats=3)
    assert found.right
    assert found.error == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ([1.02, -2.0], "2 times what the formats allow"),
        ([float("nan"), -2.0], "NaN"),
        ([float("inf"), -2.0], "NaN, an infinity"),
        ([1.0], "a wrong shape"),
    ],
    ids=["wrong", "nan", "infinite", "shape"],
)
def test_what_is_wrong(result: list[float], reason: str) -> None:
    found = child.checked(subject(lambda: torch.tensor(result)), timed=True, repeats=1)
    assert not found.right
    assert reason in found.reason
    assert found.times_s == {}


def test_what_does_not_launch_is_wrong_with_its_reason() -> None:
    def run() -> None:
        raise RuntimeError("out of resource: shared memory\nmore")

    found = child.checked(subject(run), timed=True, repeats=1)
    assert (found.right, found.reason) == (False, "RuntimeError: out of resource: shared memory")


def test_bits_that_do_not_repeat_are_wrong() -> None:
    runs = iter([torch.tensor([1.0, -2.0]), torch.tensor([1.0, -2.0]), torch.tensor([1.0, -2.001])])
    found = child.checked(subject(lambda: next(runs)), timed=False, repeats=3)
    assert (found.right, found.reason) == (False, "3 runs on the same inputs gave different bits")


@pytest.mark.parametrize("summary", [None, Summary(2.0, 9, (1, 2, 3), None, 250.0, None, None, 70, 8 << 30, (), True)])
def test_right_kernels_are_timed_against_what_they_replace(monkeypatch: pytest.MonkeyPatch, summary: Summary | None) -> None:
    def interleaved(calls: dict[str, Any]) -> Any:
        assert list(calls) == ["triton", "16 bit"]
        return {"triton": [3e-6, 3.1e-6, 2.9e-6], "16 bit": [9e-6, 9.1e-6, 8.9e-6]}, {}

    monkeypatch.setattr(gpu_timing, "interleaved", interleaved)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="none"))
    monkeypatch.setattr(nvml, "watching", lambda _: contextlib.nullcontext(SimpleNamespace(summary=lambda: summary)))
    found = child.checked(subject(lambda: TRUE.float(), plain=lambda: TRUE), timed=True, repeats=2)
    assert (found.speed, found.fastest) == ("faster", "triton")
    assert found.times_s["triton"].samples == (3e-6, 3.1e-6, 2.9e-6)
    state = GpuState(
        readings=9, sm_mhz=(1, 2, 3), power_w=250.0, temperature_c=70, memory_used_bytes=8 << 30, throttling=(), mig=True
    )
    assert found.gpu == (state if summary else None)


def test_an_empty_result_is_right() -> None:
    empty = torch.empty(0, 3)
    nothing = Subject("w8a8", "M 0", lambda: empty, lambda: empty.double(), lambda true: true)
    assert excess(empty, nothing) == 0


def test_it_refuses_where_torch_has_no_device() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "CUDA" in child.answer({"probe": "list", "interpreted": False})["failed"]
