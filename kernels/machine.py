"""What the processes of a run may use of this machine: cores and bytes, as affinity and a container's limits leave them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

PROCESS_SHARE = 0.8
"""Of the memory, that one process and what it starts may use before we end it: the kernel would take whom it likes."""


def usable_cores() -> int:
    """Cores of the affinity mask, cut to the CPU quota of the cgroup, rounded down; at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, int(min(_cpu_quotas(), default=affinity))))


def usable_memory() -> int:
    """Bytes of physical memory, or the limit of the cgroup where that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [int(text) for text in _cgroup_values("memory", "memory.max", "memory.limit_in_bytes") if text.isdigit()]
    return min([physical, *limits])


def process_memory() -> int:
    """Bytes that one process of ours may use with all that it starts; a GPU's own memory is not counted."""
    return int(usable_memory() * PROCESS_SHARE)


def _cpu_quotas() -> list[float]:
    """CPU limits in cores: `cpu.max` is "QUOTA PERIOD" (v2), `cpu.cfs_quota_us` a number (v1, −1: none)."""
    quotas = []
    for text in _cgroup_values("cpu", "cpu.max", "cpu.cfs_quota_us"):
        quota, _, period = text.partition(" ")
        if quota.isdigit() and int(quota) > 0:
            quotas.append(int(quota) / int(period or 100_000))
    return quotas


def _cgroup_values(controller: str, name_v2: str, name_v1: str, root: Path = Path("/sys/fs/cgroup")) -> Iterable[str]:
    """Every value of a limit from this process's cgroup up to the root, under either version of the hierarchy."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top, name = (root, name_v2) if not controllers else (root / controllers, name_v1)
        folder = top / path.lstrip("/")
        for place in (folder, *folder.parents):
            if not place.is_relative_to(top):
                break
            try:
                yield (place / name).read_text().strip()
            except OSError:
                continue
