"""The last `advisor selfcheck` of each GPU model, kept beside timings: what was wrong or too slow there is never picked."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from quantadvisor.documents import KernelCheck, SelfCheck

from .point import COLD_M

SHIPPED = Path(__file__).parent / "gpu_reports"
"""Reports that users sent: `selfcheck.json` of `advisor selfcheck` on a GPU, one file a GPU model."""


def place(device: str, kind: str = "selfcheck") -> Path:
    """`device`: as SelfCheck has it, name and capability. `kind`: the folder of what is kept."""
    root = Path(os.environ.get("QUANTADVISOR_CACHE") or Path.home() / ".cache" / "quantadvisor")
    return root / kind / f"{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"


def keep(found: SelfCheck) -> None:
    """Of a GPU only: the interpreter says nothing of a device."""
    if found.proof == "gpu":
        place(found.device).parent.mkdir(parents=True, exist_ok=True)
        found.write(place(found.device))


def shipped(folder: Path = SHIPPED) -> tuple[SelfCheck, ...]:
    """The reports of GPUs that are in the repository, by file name; ValidationError for a file that is none."""
    found = (SelfCheck.read(path) for path in sorted(folder.glob("*.json")))
    return tuple(one for one in found if one.proof == "gpu")


def ran(runtime: str, options: tuple[str, ...], reports: Iterable[SelfCheck]) -> tuple[str, ...]:
    """Devices on whose GPU those reports saw the runtime, with these very options, compute what it should."""
    found = ((report.device, one) for report in reports for one in report.runtimes)
    return tuple(sorted({device for device, one in found if (one.name, one.options) == (runtime, options) and one.right}))


def known(device: str, versions: dict[str, str]) -> SelfCheck | None:
    """What was checked on the device with these versions; None where nothing was."""
    try:
        found = SelfCheck.read(place(device))
    except (OSError, ValidationError):
        return None
    return found if found.versions == versions else None


def refusal(device: str, kernels: Iterable[str], versions: dict[str, str], rows: Collection[int] | None = None) -> str | None:
    """Why none of these kernels may be picked on the device for products of so many `rows`; None where all passed, with these
    versions. Without `rows`: what is wrong, or slower at every size, may be picked nowhere."""
    try:
        found = SelfCheck.read(place(device))
    except (OSError, ValidationError):
        return f"its kernels were never checked on {device}: advisor selfcheck"
    if found.versions != versions:
        return f"its kernels were checked on {device} with other versions ({found.versions}): advisor selfcheck"
    for kernel in kernels:
        checks = [one for one in found.kernels if one.name == kernel]
        if not checks:
            return f"{kernel} was not checked on {device}: advisor selfcheck"
        if wrong := next((one for one in checks if not one.right), None):
            return f"{kernel} is wrong on {device} ({wrong.shape}): {wrong.reason}"
        timed = [one for one in checks if one.speed is not None]
        counted = timed if rows is None else deciding(timed, rows)
        slow = [one for one in counted if one.speed == "slower"]
        if slow and (rows is not None or slow == timed):
            where = "at every size that was timed" if slow == timed else f"at {' and '.join(one.shape for one in slow)}"
            return f"{kernel} is slower on {device} than the 16-bit operator that it replaces, {where}"
    return None


def deciding(timed: Sequence[KernelCheck], rows: Iterable[int]) -> list[KernelCheck]:
    """The checks that speak for products of so many rows: of those on the same side of COLD_M, where reading or arithmetic
    binds, the next larger M, else the largest. A check without an M, of attention, always does."""
    of = {one.shape: int(found[1]) if (found := re.match(r"M (\d+)", one.shape)) else None for one in timed}
    counts: set[int | None] = {None}
    for m in rows:
        side = [one for one in of.values() if one is not None and (one <= COLD_M) == (m <= COLD_M)]
        counts.add(min((one for one in side if one >= m), default=max(side, default=None)))
    return [one for one in timed if of[one.shape] in counts]
