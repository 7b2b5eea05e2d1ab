"""NVIDIA GPUs as this process may use them, through NVML: nothing here makes a CUDA context. Never run on a GPU.

`cuda:N` is the N-th of those that CUDA_VISIBLE_DEVICES leaves, in its order; without it, the N-th of nvidia-smi (PCI order,
which CUDA keeps under CUDA_DEVICE_ORDER=PCI_BUS_ID). Whatever computes for us sees that one GPU only, as its first.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

from quantadvisor.documents import Device, Gpu

GIB = 1 << 30


def describe_gpus() -> tuple[Gpu, ...]:
    """No package or no driver is the normal case of a CPU machine: an empty tuple (`nvml.why_not` tells the reason)."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # ImportError, or any NVMLError: no driver, no permission
        return ()
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        return tuple(_described(pynvml, handle, place, driver) for place, handle in _visible(pynvml))
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def _described(nvml: Any, handle: Any, place: str, driver: str) -> Gpu:
    try:
        known = "{}.{}".format(*nvml.nvmlDeviceGetCudaComputeCapability(handle))
    except nvml.NVMLError_NotSupported:  # an instance of a GPU (MIG) may not tell
        known = None
    return Gpu(
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        compute_capability=known,
        driver=driver,
        place=place,
    )


def _visible(nvml: Any) -> Iterator[tuple[str, Any]]:
    """(what CUDA_VISIBLE_DEVICES says of it, handle). As CUDA does, the list ends at the first entry that is no GPU."""
    count = nvml.nvmlDeviceGetCount()
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    entries = [str(i) for i in range(count)] if said is None else [entry.strip() for entry in said.split(",")]
    for entry in entries:
        if entry.isdigit() and int(entry) < count:
            yield entry, nvml.nvmlDeviceGetHandleByIndex(int(entry))
        elif entry.startswith(("GPU-", "MIG-")):
            yield entry, nvml.nvmlDeviceGetHandleByUUID(entry)
        else:
            return


def on_gpu(host: Device, number: int) -> Device:
    """The machine with its N-th GPU as the device: memory is the GPU's, and its cache not known before it is measured."""
    gpu = host.gpus[number]
    identity = ("cuda", gpu.name, gpu.compute_capability, round(gpu.memory_bytes / GIB), host.fingerprint)
    return host.model_copy(
        update={
            "kind": "cuda",
            "name": gpu.name,
            "memory_bytes": gpu.memory_bytes,
            "host_memory_bytes": host.memory_bytes,
            "last_level_cache_bytes": 0,
            "gpus": (gpu,),
            "fingerprint": hashlib.sha256(repr(identity).encode()).hexdigest()[:16],
        }
    )


def environment(device: Device) -> dict[str, str]:
    """What a process needs to see the device, and no other GPU; nothing for a CPU."""
    if device.kind != "cuda":
        return {}
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": device.gpus[0].place}


def capability(device: Device) -> int:
    """90 for compute capability 9.0; 0 where it is no GPU or does not tell."""
    known = device.gpus[0].compute_capability if device.kind == "cuda" else None
    major, _, minor = (known or "0.0").partition(".")
    return 10 * int(major) + int(minor)


def device_class(device: Device) -> str:
    """The GPU's name and capability, as reports of `advisor selfcheck` have them."""
    return f"{device.name}, sm_{capability(device)}"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
