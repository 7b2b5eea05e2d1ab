"""Memory of a worker whose GPU is NVML's functions written here: what its use grew by while the worker ran is the worker's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from quantadvisor.profiling import nvml
from quantadvisor.profiling.memory import ALLOCATOR, BOARD, PROCESS, Memory, visible_gpu

from .fake_nvml import NOT_SUPPORTED, OK, fake

MIB = 1 << 20


class Board:
    """A GPU with so many bytes in use."""

    def __init__(self, used: int) -> None:
        self.used = used

    def tell(self, _: Any, out: Any) -> int:
        out._obj.total, out._obj.used = 80 << 30, self.used
        return OK


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    one = Board(500 * MIB)
    monkeypatch.setattr(pynvml, "nvmlLib", fake(nvmlDeviceGetMemoryInfo=one.tell))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return one


def test_a_gpus_memory_is_what_it_grew_by_while_the_worker_ran(board: Board) -> None:
    memory = Memory(nvml)
    with memory.watching():
        board.used += 300 * MIB
    memory.opened(object())
    assert (memory.used(), memory.source) == ((300 * MIB, 300 * MIB), BOARD)
    board.used += 4000 * MIB  # another worker, while this one is stopped
    with memory.watching():
        board.used += 20 * MIB
    assert memory.used() == (320 * MIB, 320 * MIB)
    with memory.watching():
        board.used -= 120 * MIB
    assert memory.used() == (200 * MIB, 320 * MIB)
    record = memory.record()
    assert record and record["sm_mhz"] == (1410, 1410, 1410)


def test_an_allocator_is_asked_first(board: Board) -> None:
    memory = Memory(nvml)
    with memory.watching():
        board.used += 300 * MIB
    memory.opened(SimpleNamespace(allocated=lambda: (7, 9)))
    assert (memory.used(), memory.source) == ((7, 9), ALLOCATOR)


def test_a_gpu_that_tells_no_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlLib", fake(nvmlDeviceGetMemoryInfo=lambda *_: NOT_SUPPORTED))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    memory = Memory(nvml)
    with memory.watching():
        pass
    with pytest.raises(ValueError, match="NVML does not tell it"):
        memory.opened(object())


def test_of_a_cpu_it_is_the_process() -> None:
    memory = Memory()
    kept = bytearray(64 * MIB)  # written by bytearray itself: no second copy in the peak
    now, peak = memory.used()
    assert len(kept) - MIB < now <= peak < 128 * MIB  # the kernel counts pages in batches, core by core
    assert (memory.source, memory.record()) == (PROCESS, None)


@pytest.mark.parametrize(("said", "which"), [(None, 0), ("", 0), ("3,1", 3), ("GPU-1b2c", "GPU-1b2c"), ("MIG-9", "MIG-9")])
def test_the_first_visible_gpu_is_watched(monkeypatch: pytest.MonkeyPatch, said: str | None, which: int | str) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if said is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    assert visible_gpu() == which
