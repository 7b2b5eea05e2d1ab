"""Where the memory of a worker is read, and what its GPU did meanwhile. Standard library only: a worker loads this by path.

On a CPU it is the process's. On a GPU it is that of the runtime's allocator where the runtime tells it (torch), else what the
use of the whole GPU grew by while this worker answered (NVML): every other worker is stopped meanwhile. Bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
from collections.abc import Iterator
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


def visible_gpu() -> int | str:
    """The first of CUDA_VISIBLE_DEVICES, as NVML takes it: an index in the order of the PCI bus, or a UUID; 0 without."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    return int(first) if first.isdigit() else first or 0


class ProcessMemory:
    """Resident size of this process above what it was after the imports."""

    source = "VmHWM above imports"

    def __init__(self) -> None:
        gc.collect()
        self.base_bytes = status_bytes("VmRSS")
        reset_peak()

    def ask(self, session: Any) -> None:
        """The session is open now."""

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        yield

    def now(self) -> int:
        return status_bytes("VmRSS") - self.base_bytes

    def peak(self) -> int:
        return status_bytes("VmHWM") - self.base_bytes

    def record(self) -> None:
        """There is no GPU that did anything."""


class GpuMemory:
    """Memory on one GPU, and its clocks, power and throttling during the last `watching`. `nvml`: the module beside this one."""

    def __init__(self, nvml: Any) -> None:
        self.nvml, self.which, self.base_bytes = nvml, visible_gpu(), status_bytes("VmRSS")
        self.held = self.highest = 0
        self.allocator: Any = None
        self.summary: Any = None

    @property
    def source(self) -> str:
        if self.allocator is not None:
            return str(self.allocator.source)
        return "NVML: what the use of the GPU grew by while this worker ran, its CUDA context with it"

    def ask(self, session: Any) -> None:
        """The runtime's own allocator, where the session has one; ValueError where nobody tells the memory."""
        self.allocator = getattr(session, "allocator", None)
        if self.allocator is None and (self.summary is None or self.summary.memory_used_bytes is None):
            raise ValueError(f"the GPU's memory cannot be read: {self.nvml.why_not() or 'NVML does not tell it'}")

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        with self.nvml.watching(self.which) as seen:
            yield
        self.summary = seen.summary()
        used = [one.memory_used_bytes for one in seen.readings if one.memory_used_bytes is not None]
        if used:
            self.highest = max(self.highest, self.held + max(used) - used[0])
            self.held += used[-1] - used[0]

    def now(self) -> int:
        return int(self.allocator.now()) if self.allocator is not None else self.held

    def peak(self) -> int:
        return int(self.allocator.peak()) if self.allocator is not None else self.highest

    def record(self) -> dict[str, Any] | None:
        """Of the last `watching`: the fields of nvml.Summary; None where NVML cannot be used."""
        return None if self.summary is None else dataclasses.asdict(self.summary)
