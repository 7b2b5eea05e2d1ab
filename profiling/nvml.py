"""What an NVIDIA GPU does while it is measured: clocks, power, energy, temperature, throttling, memory, MIG; through NVML.

NVML is the library under nvidia-smi (`nvidia-ml-py`, module `pynvml`). A timing without its clocks cannot be compared: a GPU
that is hot, capped in power or shared runs the same kernel slower, and says so here. Nothing is ever set, only read.

    with watching(0) as seen:          # 20 samples a second, by a thread that sleeps in between
        measure()
    seen.summary()                     # None where nothing could be read; `why_not()` is the reason

Units are in the names. What a device or a driver does not tell is None, never 0. Energy is the board's own counter (mJ
since the driver was loaded; Volta and newer) and otherwise the power summed over time, which `energy_from` says; both are
of the whole board, host CPU and memory not included. Under MIG, clocks, power and energy are those of the whole GPU.
Imports only the standard library: a worker may load this file by its path.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

T = TypeVar("T")

THROTTLING = {
    0x4: "power cap (software)",
    0x8: "slowdown (hardware)",
    0x20: "thermal slowdown (software)",
    0x40: "thermal slowdown (hardware)",
    0x80: "power brake (hardware)",
}
"""Bits of nvmlClocksEventReason* (nvml.h) that take clock from a busy GPU; idling and clocks that somebody set do not count."""


@dataclass(frozen=True)
class Reading:
    """One look. `at_s` is of `time.perf_counter`."""

    at_s: float
    sm_mhz: int | None
    memory_mhz: int | None
    power_w: float | None
    energy_j: float | None
    """Counter since the driver was loaded: only differences mean something."""
    temperature_c: int | None
    memory_used_bytes: int | None
    throttling: tuple[str, ...] | None


@dataclass(frozen=True)
class Summary:
    """An interval: the extremes matter more than means."""

    seconds: float
    readings: int
    sm_mhz: tuple[int, int, int] | None
    """(least, median, most)"""
    memory_mhz: int | None
    """median"""
    power_w: float | None
    """Energy over seconds where there is a counter, else the mean of the readings."""
    energy_j: float | None
    energy_from: str | None
    """"counter", or "power over time", which misses what happens between readings."""
    temperature_c: int | None
    """highest"""
    memory_used_bytes: int | None
    """most, of all processes on the GPU"""
    throttling: tuple[str, ...] | None
    """Every reason seen; () is a clean bill, None that the driver does not tell."""
    mig: bool | None = None
    """True: the GPU is cut into instances (MIG), and what was measured may be one of several."""


@dataclass
class Watch:
    """Collected while the block runs; read it after."""

    readings: list[Reading] = field(default_factory=list)
    mig: bool | None = None

    def summary(self) -> Summary | None:
        return summarize(self.readings, self.mig)


def why_not() -> str | None:
    """None where at least one GPU can be read; else the reason in one line."""
    try:
        with _library() as nvml:
            return None if nvml.nvmlDeviceGetCount() else "NVML finds no GPU"
    except ImportError:
        return "nvidia-ml-py is not installed: pip install nvidia-ml-py"
    except Exception as reason:  # any NVMLError: no driver, no permission, versions that do not match
        return f"NVML cannot be used: {reason}"


@contextmanager
def watching(which: int | str = 0, period_s: float = 0.05) -> Iterator[Watch]:
    """Reads before, every `period_s` during, and after the block. Where NVML cannot be used, nothing is collected.

    `which`: NVML's index (PCI order, not CUDA's), or a UUID as CUDA_VISIBLE_DEVICES and torch give it."""
    watch = Watch()
    if why_not():
        yield watch
        return
    with _library() as nvml:
        one = _handle(nvml, which)
        watch.mig = cut(nvml, one, which)
        ended = threading.Event()

        def sample() -> None:
            while not ended.wait(period_s):
                watch.readings.append(read(nvml, one))

        watch.readings.append(read(nvml, one))
        thread = threading.Thread(target=sample, name="nvml", daemon=True)
        thread.start()
        try:
            yield watch
        finally:
            ended.set()
            thread.join()
            watch.readings.append(read(nvml, one))


def cut(nvml: Any, one: Any, which: int | str) -> bool | None:
    """Is the GPU cut into instances? An instance is not asked: its UUID tells."""
    if str(which).startswith("MIG-"):
        return True
    return _told(lambda: bool(nvml.nvmlDeviceGetMigMode(one)[0] == nvml.NVML_DEVICE_MIG_ENABLE))


def read(nvml: Any, one: Any) -> Reading:
    """One reading of a device handle."""
    return Reading(
        at_s=time.perf_counter(),
        sm_mhz=_told(lambda: int(nvml.nvmlDeviceGetClockInfo(one, nvml.NVML_CLOCK_SM))),
        memory_mhz=_told(lambda: int(nvml.nvmlDeviceGetClockInfo(one, nvml.NVML_CLOCK_MEM))),
        power_w=_told(lambda: nvml.nvmlDeviceGetPowerUsage(one) / 1e3),
        energy_j=_told(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(one) / 1e3),
        temperature_c=_told(lambda: int(nvml.nvmlDeviceGetTemperature(one, nvml.NVML_TEMPERATURE_GPU))),
        memory_used_bytes=_told(lambda: int(nvml.nvmlDeviceGetMemoryInfo(one).used)),
        throttling=_told(lambda: throttling(_reasons(nvml, one))),
    )


def throttling(bits: int) -> tuple[str, ...]:
    return tuple(name for bit, name in THROTTLING.items() if bits & bit)


def summarize(readings: list[Reading], mig: bool | None = None) -> Summary | None:
    """Of readings in the order of time; None for fewer than two, which span no interval."""
    if len(readings) < 2:
        return None
    seconds = readings[-1].at_s - readings[0].at_s
    clocks = [one.sm_mhz for one in readings if one.sm_mhz is not None]
    memory_clocks = [one.memory_mhz for one in readings if one.memory_mhz is not None]
    powers = [one.power_w for one in readings if one.power_w is not None]
    energy, source = _energy(readings)
    mean_power = energy / seconds if energy is not None and seconds > 0 else statistics.fmean(powers) if powers else None
    reasons = [one.throttling for one in readings if one.throttling is not None]
    return Summary(
        seconds=seconds,
        readings=len(readings),
        sm_mhz=(min(clocks), int(statistics.median(clocks)), max(clocks)) if clocks else None,
        memory_mhz=int(statistics.median(memory_clocks)) if memory_clocks else None,
        power_w=mean_power,
        energy_j=energy,
        energy_from=source,
        temperature_c=max((one.temperature_c for one in readings if one.temperature_c is not None), default=None),
        memory_used_bytes=max((one.memory_used_bytes for one in readings if one.memory_used_bytes is not None), default=None),
        throttling=tuple(name for name in THROTTLING.values() if any(name in one for one in reasons)) if reasons else None,
        mig=mig,
    )


def _energy(readings: list[Reading]) -> tuple[float | None, str | None]:
    """Joules between the first and the last reading: of the counter, else trapezoids of power."""
    first, last = readings[0].energy_j, readings[-1].energy_j
    if first is not None and last is not None and last >= first:
        return last - first, "counter"
    known = [(one.at_s, one.power_w) for one in readings if one.power_w is not None]
    if len(known) < 2:
        return None, None
    pairs = pairwise(known)
    return sum((then - now) * (before + after) / 2 for (now, before), (then, after) in pairs), "power over time"


@contextmanager
def _library() -> Iterator[Any]:
    import pynvml

    pynvml.nvmlInit()
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _handle(nvml: Any, which: int | str) -> Any:
    if isinstance(which, int):
        return nvml.nvmlDeviceGetHandleByIndex(which)
    uuid = which if which.startswith(("GPU-", "MIG-")) else f"GPU-{which}"
    return nvml.nvmlDeviceGetHandleByUUID(uuid)


def _reasons(nvml: Any, one: Any) -> int:
    """Drivers before 535 have only the older name of the same bits."""
    try:
        return int(nvml.nvmlDeviceGetCurrentClocksEventReasons(one))
    except nvml.NVMLError_FunctionNotFound:
        return int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(one))


def _told(ask: Callable[[], T]) -> T | None:
    """None for what this device, driver or permission does not tell; any other failure is one."""
    import pynvml

    try:
        return ask()
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_NoPermission, pynvml.NVMLError_FunctionNotFound):
        return None
