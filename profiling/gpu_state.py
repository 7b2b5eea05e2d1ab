"""What a GPU did over several measurements, as one document."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TypeVar

from quantadvisor.documents import GpuState

from . import nvml
from .memory import visible_gpu
from .nvml import Summary

T = TypeVar("T")


def state_of(seen: Sequence[Summary | None]) -> GpuState | None:
    """Extremes over all, power by time; None where nothing was read (a CPU, or no NVML)."""
    told = [one for one in seen if one is not None]
    if not told:
        return None
    clocks, powered = of(told, lambda one: one.sm_mhz), [one for one in told if one.power_w is not None]
    reasons, cut = of(told, lambda one: one.throttling), of(told, lambda one: one.mig)
    seconds = sum(one.seconds for one in powered)
    return GpuState(
        readings=sum(one.readings for one in told),
        sm_mhz=(min(c[0] for c in clocks), int(statistics.median(c[1] for c in clocks)), max(c[2] for c in clocks))
        if clocks
        else None,
        memory_mhz=int(statistics.median(memory)) if (memory := of(told, lambda one: one.memory_mhz)) else None,
        power_w=sum((one.power_w or 0.0) * one.seconds for one in powered) / seconds if seconds else None,
        temperature_c=max(of(told, lambda one: one.temperature_c), default=None),
        memory_used_bytes=max(of(told, lambda one: one.memory_used_bytes), default=None),
        throttling=tuple(sorted({reason for one in reasons for reason in one})) if reasons else None,
        mig=any(cut) if cut else None,
    )


def with_state(run: Callable[[], T]) -> tuple[T, GpuState | None]:
    """What `run` gives, and what the GPU that this process sees did meanwhile."""
    with nvml.watching(visible_gpu()) as seen:
        found = run()
    return found, state_of([seen.summary()])


def of(told: Sequence[Summary], field: Callable[[Summary], T | None]) -> list[T]:
    """A field of those that have it."""
    return [value for one in told if (value := field(one)) is not None]
