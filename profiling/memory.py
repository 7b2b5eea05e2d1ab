"""Where the memory of a worker is read, and what its GPU did meanwhile. Standard library only: a worker loads this by path.

On a CPU it is the process's. On a GPU it is that of the runtime's allocator where the runtime tells it (torch), else what the
use of the whole GPU grew by while this worker answered (NVML): every other worker is stopped meanwhile. Bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any


def status_bytes(field: str) -> int:
    """A `VmXXX` line of /proc/self/status, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def reset_peak() -> None:
    """Peak resident size (VmHWM) starts again from the current one."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def return_free_memory() -> None:
    """What the allocator holds of freed memory goes back to the kernel (glibc's malloc_trim; others keep it)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def visible_gpu(environment: Mapping[str, str] = os.environ) -> int | str:
    """The first of CUDA_VISIBLE_DEVICES, as NVML takes it: an index in the order of the PCI bus, or a UUID; 0 without."""
    first = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    return int(first) if first.isdigit() else first or 0


PROCESS = "VmHWM above imports"
ALLOCATOR = "the runtime's allocator of GPU memory, without the CUDA context"
BOARD = "NVML: what the use of the GPU grew by while this worker ran, with its CUDA context"


class Memory:
    """Of one worker, from before its artifact is loaded. `nvml`: the module beside this one where a GPU computes, else None."""

    def __init__(self, nvml: Any = None, base_bytes: int | None = None) -> None:
        """`base_bytes`: what the process held before it loaded anything, where something was loaded already."""
        gc.collect()
        return_free_memory()
        self.nvml, self.which, self.base_bytes = nvml, visible_gpu(), base_bytes or status_bytes("VmRSS")
        self.held = self.highest = 0
        self.summary: Any = None
        self.allocated: Callable[[], tuple[int, int] | None] = lambda: None
        reset_peak()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Around each request: the GPU's memory, clocks and power meanwhile."""
        if self.nvml is None:
            yield
            return
        with self.nvml.watching(self.which) as seen:
            yield
        self.summary = seen.summary()
        used = [one.memory_used_bytes for one in seen.readings if one.memory_used_bytes is not None]
        if used:
            self.highest = max(self.highest, self.held + max(used) - used[0])
            self.held += used[-1] - used[0]

    def opened(self, session: Any) -> None:
        """The session tells what its allocator holds, where it can. ValueError where nobody tells a GPU's memory."""
        self.allocated = getattr(session, "allocated", self.allocated)
        told = self.summary is not None and self.summary.memory_used_bytes is not None
        if self.nvml is not None and self.allocated() is None and not told:
            raise ValueError(f"the GPU's memory cannot be read: {self.nvml.why_not() or 'NVML does not tell it'}")

    @property
    def source(self) -> str:
        return ALLOCATOR if self.allocated() is not None else PROCESS if self.nvml is None else BOARD

    def used(self) -> tuple[int, int]:
        """Bytes now, and at most so far."""
        if self.nvml is not None:
            return self.allocated() or (self.held, self.highest)
        return self.allocated() or (status_bytes("VmRSS") - self.base_bytes, status_bytes("VmHWM") - self.base_bytes)

    def record(self) -> dict[str, Any] | None:
        """What the GPU did during the last `watching`: the fields of nvml.Summary; None on a CPU or without NVML."""
        return None if self.summary is None else dataclasses.asdict(self.summary)
