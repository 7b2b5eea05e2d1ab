"""A runtime's GPU path is right only where its numbers are, and where its own evidence shows the GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantadvisor.advisor import selfcheck_runtimes
from quantadvisor.advisor.candidates import gpu_places
from quantadvisor.advisor.selfcheck_runtimes import LIMIT, PLACES, check, checks, line
from quantadvisor.documents import CandidateFailed
from quantadvisor.profiling.runtimes.registry import runtime

WINDOWS = np.zeros((2, 48), np.int64)


class Worker:
    """A runtime that says what a test wants."""

    kl: tuple[float, float] = (1e-4, 1e-4)
    provider = "CUDA"
    fault: Exception | None = None

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> Worker:
        if self.fault is not None:
            raise self.fault
        return self

    def __exit__(self, *_: object) -> None: ...

    def score(self, windows: Any, reference: Path, chunk: int | None) -> Any:
        return np.full((3, windows.size), self.kl[chunk is not None])

    def operators(self, windows: Any) -> dict[str, Any]:
        rows = [{"name": "gemm", "provider": self.provider}, {"name": "Gather", "provider": "CPUExecutionProvider"}]
        return {"prefill": {"operators": rows}, "decode": {"operators": rows}}

    def generate(self, windows: Any, output_tokens: int) -> Any:
        return type("Made", (), {"memory_from": "the allocator"})


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A check of torch on a GPU that is taken to be there, with a worker that is changed so."""
    applied = type("Method", (), {"refuse": lambda *_: None, "apply": lambda *_: ()})()
    monkeypatch.setattr(selfcheck_runtimes, "refusal", lambda *_: None)
    monkeypatch.setattr(selfcheck_runtimes, "method", lambda _: applied)

    def run(**changes: Any) -> Any:
        monkeypatch.setattr(selfcheck_runtimes, "RunningWorker", type("Changed", (Worker,), changes))
        return check(tmp_path, tmp_path, WINDOWS, "torch", "fp32", ("cuda",))

    return run


def test_right_numbers_on_the_gpu(found: Any) -> None:
    one = found()
    assert (one.right, one.failed, one.on_gpu, one.memory_from) == (True, False, ("gemm",), "the allocator")
    assert one.kl == pytest.approx(1e-4)
    assert "1 kernels on the GPU; the allocator" in line(one)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kl": (2 * LIMIT, 0.0)}, "KL of 0.02 nats"),
        ({"kl": (0.0, 2 * LIMIT)}, "KL of 0.02 nats"),
        ({"kl": (float("nan"), 0.0)}, "KL of nan nats"),
        ({"provider": "CPUExecutionProvider"}, "nothing of it was seen to run on the GPU"),
        ({"fault": CandidateFailed("the worker died (signal SIGSEGV)")}, "SIGSEGV"),
        ({"fault": RuntimeError("no kernel image")}, "RuntimeError: no kernel image"),
    ],
    ids=["wrong", "wrong cache", "NaN", "fell back", "crash", "error"],
)
def test_what_is_not_right(found: Any, changes: dict[str, Any], reason: str) -> None:
    one = found(**changes)
    assert one.failed
    assert reason in one.reason
    assert "✗" in line(one)


def test_every_runtime_with_a_gpu_path_is_checked() -> None:
    from quantadvisor.profiling.runtimes.registry import RUNTIMES

    with_path = {name for name in RUNTIMES if hasattr(runtime(name), "on_gpu")}
    assert {name for name, _, _ in PLACES} == with_path
    assert {"+".join((name, *options)) for name, _, options in PLACES} == {one for name in RUNTIMES for one in gpu_places(name)}
    for name, _, options in PLACES:
        assert runtime(name).on_gpu(options)  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore:.*(torch\.jit|`torch_dtype`|swigvarlink|SwigPy).*")
def test_the_tiny_model_runs_for_real_and_the_cpu_is_not_taken_for_a_gpu() -> None:
    plain, half, missing = checks((("torch", "fp32", ()), ("torch", "bf16", ()), ("torch", "fp32", ("nonsense",))))
    assert plain.kl is not None and half.kl is not None
    assert plain.kl < 1e-5 < half.kl < LIMIT / 10
    assert {plain.reason, half.reason} == {"nothing of it was seen to run on the GPU"}
    assert "no option 'nonsense'" in str(missing.refused)
