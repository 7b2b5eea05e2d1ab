"""Timings kept on disk, by device, package version, probe, option, sizes and threads. Refusals are not kept."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from pydantic import ValidationError

from quantadvisor.documents import Device, KernelTiming

FORMAT = 1
PACKAGES = {
    "torch": ("torch",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "triton": ("triton",),
}


@lru_cache
def versions(runtime: str) -> dict[str, str]:
    """Installed versions of the packages that a runtime's kernels come from."""
    found = {}
    for name in PACKAGES.get(runtime, (runtime,)):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def place(folder: Path, device: Device, probe: str, runtime: str, option: str, m: int, n: int, k: int) -> Path:
    """The file of one timing."""
    identity = [FORMAT, device.fingerprint, device.threads, versions(runtime), probe, option, m, n, k]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return folder / f"{probe}-{n}x{k}-m{m}-{digest[:20]}.json"


def load(path: Path) -> KernelTiming | None:
    """The timing, or None where there is none or it cannot be read (an older version's)."""
    try:
        return KernelTiming.read(path)
    except (OSError, ValidationError):
        return None
