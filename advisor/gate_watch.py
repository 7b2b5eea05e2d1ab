"""Was the machine ours while a block ran, and at one speed? CPU time of others from /proc/stat, thermal throttling and
clocks from sysfs (Linux), GPU clocks and slowdowns through NVML.

A block that was disturbed is left out and counted. Both sides of it are: leaving it out favours neither.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

CPUS = Path("/sys/devices/system/cpu")
LOAD_OF_OTHERS = 0.25
"""Cores, on average over a block, that others may use: a desktop's background is under it, a build is not."""
CLOCK_DROP = 0.1
"""A clock may be lower at the end of a block than at the end of the one before by this share."""
SLOWDOWNS = {0x08: "hardware slowdown", 0x20: "software thermal", 0x40: "hardware thermal", 0x80: "power brake"}
"""NVML's bits of reasons for which a GPU runs below its clocks; a power cap is the normal state of a busy one."""


class Snapshot(NamedTuple):
    at: float
    machine_s: float | None
    """CPU seconds used by everybody since boot, stolen ones included; None where /proc/stat does not say."""
    ours_s: float
    throttled: int
    clocks_mhz: Mapping[str, float] = {}
    """By the name of what has a clock: `CPU` (mean over cores), `GPU 0`."""
    slowdowns: tuple[str, ...] = ()


def snapshot(pids: Sequence[int]) -> Snapshot:
    """Now; `pids` are our workers."""
    times = os.times()
    ours = times.user + times.system + sum(process_s(pid) for pid in pids)
    gpus = list(gpu_clocks())
    clocks = dict(cpu_clock()) | {name: mhz for name, mhz, _ in gpus}
    slow = tuple(f"{name}: {reason}" for name, _, reasons in gpus for reason in reasons)
    return Snapshot(time.monotonic(), machine_s(), ours, throttle_events(), clocks, slow)


def disturbance(before: Snapshot, after: Snapshot) -> str | None:
    """Why the time between two snapshots was not ours alone at one speed; None where it was, or where nobody can know."""
    if after.throttled > before.throttled:
        return f"the CPU throttled {after.throttled - before.throttled} times"
    if after.slowdowns:
        return f"slowed down: {', '.join(after.slowdowns)}"
    for name, was in before.clocks_mhz.items():
        now = after.clocks_mhz.get(name, was)
        if now < was * (1 - CLOCK_DROP):
            return f"the clock of {name} fell from {was:.0f} to {now:.0f} MHz"
    if before.machine_s is None or after.machine_s is None or after.at <= before.at:
        return None
    others = (after.machine_s - before.machine_s - (after.ours_s - before.ours_s)) / (after.at - before.at)
    return f"others used {others:.2f} cores" if others > LOAD_OF_OTHERS else None


def unwatched() -> tuple[str, ...]:
    """What cannot be read here, so that no block was rejected for it."""
    reads = {
        "the load by others": machine_s() is not None,
        "the CPU's clock": bool(cpu_clock(CPUS)),
        "thermal throttling of the CPU": any(CPUS.glob("cpu[0-9]*/thermal_throttle/*_throttle_count")),
    }
    return tuple(what for what, read in reads.items() if not read)


def machine_s(stat: Path = Path("/proc/stat")) -> float | None:
    try:
        fields = [int(text) for text in stat.read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    if len(fields) < 8 or not any(fields):
        return None
    user, nice, system, _, _, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def process_s(pid: int) -> float:
    """CPU seconds of a process and its threads."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def throttle_events(root: Path = CPUS) -> int:
    """Thermal throttling of all cores since boot; 0 where the kernel does not count it."""
    return sum(whole_numbers(root.glob("cpu[0-9]*/thermal_throttle/*_throttle_count")))


def cpu_clock(root: Path = CPUS) -> dict[str, float]:
    """Mean clock of the cores, MHz; empty where the kernel does not tell (most virtual machines)."""
    kilohertz = list(whole_numbers(root.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")))
    return {"CPU": sum(kilohertz) / len(kilohertz) / 1000} if kilohertz else {}


def whole_numbers(paths: Iterable[Path]) -> Iterable[int]:
    for path in paths:
        try:
            yield int(path.read_text())
        except (OSError, ValueError):
            continue


def gpu_clocks() -> Iterable[tuple[str, float, tuple[str, ...]]]:
    """(name, clock of the multiprocessors in MHz, why it is slowed down) of each NVIDIA GPU."""
    nvml = opened_nvml()
    if nvml is None:
        return
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            bits = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
            clock = float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
        except nvml.NVMLError:
            continue
        yield f"GPU {index}", clock, tuple(name for bit, name in SLOWDOWNS.items() if bits & bit)


@functools.cache
def opened_nvml() -> Any:
    """The module, initialised once; None without a driver, which is the normal case of a CPU machine."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # ImportError, or any NVMLError
        return None
    return pynvml
