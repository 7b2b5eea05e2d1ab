"""What one pass of the triton runtime launched, and how long its linears, attention and cache updates took.

On a GPU by torch's profiler, as the other runtimes on torch (`torch_cuda.py`); of a step that the host launches, since a replayed
CUDA graph enters no scope, and the kernels are the same. In triton's interpreter by CPU time. Never run on a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from . import torch_cuda

LINEAR = frozenset({"w4a16_kernel", "w8a16_kernel", "w8a8_kernel", "codebook_kernel", "llm_int8_kernel"})
"""Kernels that multiply quantized weights."""
INTERPRETED = "in triton's interpreter: CPU times, which say nothing of a GPU"
UNSEEN = "the profiler showed no kernel on the GPU: linears, attention and cache are not taken apart"
Row = dict[str, Any]
"""name, count, provider, time_s of an operator"""


class Seen(NamedTuple):
    rows: list[Row]
    """Most expensive first."""
    parts: dict[str, float]
    """torch_cuda.PARTS -> seconds of the pass."""
    note: str


def observed(model: Any, run: Callable[[], Any], wall_s: float, *, on_gpu: bool) -> Seen:
    """One `run` of the model, looked at; the host's gap is what `wall_s` leaves of the kernels' own time."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch_cuda.scopes(places(model)), launches() as launched, profile(activities=activities) as seen:
        run()
        if on_gpu:
            torch.cuda.synchronize()
    if not on_gpu:
        rows = [{"name": name, "count": len(took), "provider": "CPU", "time_s": sum(took)} for name, took in launched.items()]
        return Seen(sorted(rows, key=lambda row: -row["time_s"]), cpu_parts(seen.events()), INTERPRETED)
    return on_device(torch_cuda.kernels(seen.events()), wall_s)


def on_device(rows: list[Row], wall_s: float) -> Seen:
    """rows: of `torch_cuda.kernels`, each with its part."""
    parts = {part: sum(row["time_s"] for row in rows if row["part"] == part) for part in torch_cuda.PARTS}
    busy_s = sum(row["time_s"] for row in rows)
    return Seen(rows, parts, f"kernels busy for {busy_s:.2e} s of {wall_s:.2e} s; the host's gap is in other" if rows else UNSEEN)


def cpu_parts(events: Iterable[Any]) -> dict[str, float]:
    found = dict.fromkeys(torch_cuda.PARTS, 0.0)
    for event in events:
        if event.name.startswith(torch_cuda.SCOPE):
            found[event.name.removeprefix(torch_cuda.SCOPE)] += event.cpu_time_total / 1e6
    return found


def places(model: Any) -> list[torch_cuda.Place]:
    """Linears, ours and torch's; the attention that transformers calls; the cache's updates, whose quantizer they hold."""
    import torch
    from transformers import Cache

    from quantadvisor.kernels import triton_modules

    linears = [one for one in model.modules() if isinstance(one, torch.nn.Linear) or hasattr(one, "kernel")]
    return [
        *((one, "forward", "linears") for one in linears),
        (triton_modules, "attention", "attention"),
        (Cache, "update", "cache"),
    ]


@contextmanager
def launches() -> Iterator[dict[str, list[float]]]:
    """Seconds on the host of each Triton kernel that is launched inside the block. A graph's replay launches none."""
    from triton.runtime.jit import KernelInterface

    seen: dict[str, list[float]] = {}
    shipped = KernelInterface.__getitem__

    def counted(self: Any, grid: Any) -> Any:
        launch = shipped(self, grid)

        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            result = launch(*arguments, **options)
            seen.setdefault(str(self.fn.__name__), []).append(time.perf_counter() - began)
            return result

        return timed

    KernelInterface.__getitem__ = counted
    try:
        yield seen
    finally:
        KernelInterface.__getitem__ = shipped
