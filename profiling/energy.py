"""Energy of a part of a request, read by the worker around that part alone: RAPL's counters, and NVML's where a GPU computes.

Standard library only: a worker loads this by path.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from . import rapl


@contextlib.contextmanager
def metering(nvml: Any, which: int | str) -> Iterator[dict[str, Any]]:
    """The fields of workers.Spent, there when the block has ended. `nvml`: the module beside this one, None on a CPU."""
    spent: dict[str, Any] = {}
    with nvml.watching(which) if nvml else contextlib.nullcontext() as seen:
        before = rapl.counters()
        yield spent
        spent["cpu_j"] = rapl.joules_between(before, rapl.counters())
    summary = seen.summary() if seen else None
    spent["gpu"] = summary and dataclasses.asdict(summary)
