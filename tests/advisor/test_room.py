"""Who is loaded side by side."""

from types import SimpleNamespace
from typing import Any

import pytest

from quantadvisor.advisor import room
from quantadvisor.advisor.prove import fastest
from quantadvisor.advisor.room import in_parts, needed_bytes
from quantadvisor.documents import Device, Gpu, Predicted
from quantadvisor.profiling.gpu_memory import CONTEXT_BYTES
from quantadvisor.profiling.measure import Round

from .documents import candidate, workload
from .test_diagnose import INVENTORY

GIB = 1 << 30


def context(kind: str, memory: int) -> Any:
    gpu = Gpu(name="g", memory_bytes=memory, place="0")
    device = Device(kind=kind, name="g", cores=1, threads=1, memory_bytes=memory, gpus=(gpu,), fingerprint="f")
    return SimpleNamespace(device=device, inventory=INVENTORY, workload=workload())


def planned(*peaks: int) -> list[Any]:
    names = [f"none-bf16@torch+{i}" for i in range(len(peaks))]
    return [
        candidate(name, 1.0).model_copy(update={"predicted": Predicted(peak_bytes=peak * GIB)})
        for name, peak in zip(names, peaks, strict=True)
    ]


def test_a_cpu_holds_what_processes_may_use_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Together: else the kernel would end one of them, where each alone stays below its limit."""
    monkeypatch.setattr(room, "process_memory", lambda: 100 * GIB)
    chosen = planned(50, 50, 50)
    assert in_parts(context("cpu", 128 * GIB), chosen) == [chosen[:2], chosen[2:]]
    assert needed_bytes(context("cpu", 128 * GIB), chosen[0]) == 50 * GIB
    assert needed_bytes(context("cpu", 128 * GIB), chosen[0].model_copy(update={"url": "http://127.0.0.1:8000"})) == 0


def test_a_gpu_holds_what_fits_below_its_limit() -> None:
    chosen = planned(30, 30, 30, 70, 5)  # and a context of 1 GiB each, within 90 % of 80
    parts = in_parts(context("cuda", 80 * GIB), chosen)
    assert [[one.name for one in part] for part in parts] == [
        [chosen[0].name, chosen[1].name], [chosen[2].name], [chosen[3].name], [chosen[4].name],
    ]  # fmt: skip


def test_one_too_large_is_tried_alone() -> None:
    assert [len(part) for part in in_parts(context("cuda", 8 * GIB), planned(90, 1))] == [1, 1]
    assert in_parts(context("cuda", 8 * GIB), []) == []


def test_without_a_prediction_weights_and_caches_count() -> None:
    made = candidate("none-bf16@torch+cuda", 1.0)
    assert needed_bytes(context("cuda", GIB), made) > CONTEXT_BYTES


def test_the_fastest_rounds_are_the_ones_to_beat() -> None:
    slow, fast = ([Round(ttft_s=seconds, itl_s=(seconds,), peak_bytes=1)] for seconds in (2.0, 1.0))
    assert fastest([(), slow, fast], workload().traffic) == fast
    assert fastest([(), ()], workload().traffic) == ()
