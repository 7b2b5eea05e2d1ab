"""Was the machine ours while a block ran? CPU time of others from /proc/stat, thermal throttling from sysfs (Linux).

A block that was disturbed is left out and counted. Both sides of it are: leaving it out favours neither.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

LOAD_OF_OTHERS = 0.25
"""Cores, on average over a block, that others may use: a desktop's background is under it, a build is not."""


class Snapshot(NamedTuple):
    at: float
    machine_s: float | None
    """CPU seconds used by everybody since boot, stolen ones included; None where /proc/stat does not say."""
    ours_s: float
    throttled: int


def snapshot(pids: Sequence[int]) -> Snapshot:
    """Now; `pids` are our workers."""
    times = os.times()
    ours = times.user + times.system + sum(process_s(pid) for pid in pids)
    return Snapshot(time.monotonic(), machine_s(), ours, throttle_events())


def disturbance(before: Snapshot, after: Snapshot) -> str | None:
    """Why the time between two snapshots was not ours alone; None where it was, or where nobody can know."""
    if after.throttled > before.throttled:
        return f"the CPU throttled {after.throttled - before.throttled} times"
    if before.machine_s is None or after.machine_s is None or after.at <= before.at:
        return None
    others = (after.machine_s - before.machine_s - (after.ours_s - before.ours_s)) / (after.at - before.at)
    return f"others used {others:.2f} cores" if others > LOAD_OF_OTHERS else None


def blind() -> bool:
    """Can nobody know here what others use?"""
    return machine_s() is None


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


def throttle_events(root: Path = Path("/sys/devices/system/cpu")) -> int:
    """Thermal throttling of all cores since boot; 0 where the kernel does not count it."""
    total = 0
    for path in root.glob("cpu[0-9]*/thermal_throttle/*_throttle_count"):
        try:
            total += int(path.read_text())
        except (OSError, ValueError):
            continue
    return total
