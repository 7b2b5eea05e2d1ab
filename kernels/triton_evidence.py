"""What one pass of a model on our Triton kernels launched, and how long its linears, attention and cache took.

Linears, attention and cache updates run inside named ranges of torch's profiler. On a GPU a range's time is that of the
kernels launched inside it; the profiler looks at a step that the host launches, since a replayed CUDA graph enters no range,
and the kernels are the same. In the interpreter it is CPU time, which says nothing of a GPU. Never run on a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

PARTS = ("linears", "attention", "cache")
RANGE = "quantadvisor."
LINEAR = frozenset({"w4a16_kernel", "w8a8_kernel", "fp8_kernel"})
"""Kernels that multiply quantized weights."""
UNSEEN = "torch's profiler saw no kernel on the device (CUPTI not permitted?): counts are of launches, and no time is known"


@dataclass
class Launched:
    count: int = 0
    seconds: float = 0.0
    """On the device; of a launch alone, where the profiler does not see the device: on the host."""


class Seen(NamedTuple):
    kernels: dict[str, Launched]
    parts: dict[str, float]
    """PARTS -> seconds of the pass."""
    notes: list[str]

    @property
    def busy_s(self) -> float:
        return sum(one.seconds for one in self.kernels.values())


def observed(model: Any, run: Callable[[], Any], *, on_gpu: bool) -> Seen:
    """One `run` of the model, looked at."""
    import torch

    activity = torch.profiler.ProfilerActivity
    activities = [activity.CPU, *([activity.CUDA] if on_gpu else [])]
    with ranges(model), launches() as launched, torch.profiler.profile(activities=activities) as profile:
        run()
        if on_gpu:
            torch.cuda.synchronize()
    return seen_in(profile.events(), launched, on_gpu=on_gpu)


def seen_in(events: Iterable[Any], launched: Mapping[str, Launched], *, on_gpu: bool) -> Seen:
    """events: torch's FunctionEvents, times in µs."""
    parts = dict.fromkeys(PARTS, 0.0)
    kernels: dict[str, Launched] = {}
    for event in events:
        on_device = event.device_type.name != "CPU"
        if event.name.startswith(RANGE):  # the device's copy of a range is an annotation, which holds the gaps too
            if not on_device:
                spent = event.device_time_total if on_gpu else event.cpu_time_total
                parts[event.name.removeprefix(RANGE)] += spent / 1e6
        elif on_device:
            one = kernels.setdefault(event.name, Launched())
            one.count += 1
            one.seconds += event.device_time_total / 1e6
    if on_gpu and kernels:
        return Seen(kernels, parts, [])
    return Seen(dict(launched), parts, [UNSEEN] if on_gpu else ["in triton's interpreter: CPU times, which say nothing of a GPU"])


@contextmanager
def launches() -> Iterator[dict[str, Launched]]:
    """The Triton kernels that are launched inside the block, as triton launches them. A graph's replay launches none."""
    from triton.runtime.jit import KernelInterface

    seen: dict[str, Launched] = {}
    shipped = KernelInterface.__getitem__

    def counted(self: Any, grid: Any) -> Any:
        launch, one = shipped(self, grid), seen.setdefault(str(self.fn.__name__), Launched())

        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            result = launch(*arguments, **options)
            one.count += 1
            one.seconds += time.perf_counter() - began
            return result

        return timed

    KernelInterface.__getitem__ = counted
    try:
        yield seen
    finally:
        KernelInterface.__getitem__ = shipped


@contextmanager
def ranges(model: Any) -> Iterator[None]:
    """Inside the block every linear, every cache update and our attention run in a range of torch's profiler."""
    import torch
    from transformers import AttentionInterface, Cache

    from .triton_modules import NAME, attention

    def in_range(part: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            with torch.profiler.record_function(RANGE + part):
                return inner(*arguments, **options)

        return run

    linears = [one for one in model.modules() if isinstance(one, torch.nn.Linear) or hasattr(one, "kernel")]
    update = Cache.update
    for one in linears:
        one.forward = in_range("linears", one.forward)
    Cache.update = in_range("cache", update)
    AttentionInterface.register(NAME, in_range("attention", attention))
    try:
        yield
    finally:
        AttentionInterface.register(NAME, attention)
        Cache.update = update
        for one in linears:
            del one.forward
