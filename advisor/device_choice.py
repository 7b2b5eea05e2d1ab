"""Which device a run is of: `device: auto`, `cpu` or `cuda:N` of the spec."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from quantadvisor.documents import BadInput, Device, Workload
from quantadvisor.profiling import nvml
from quantadvisor.profiling.device import describe_device
from quantadvisor.profiling.gpus import on_gpu

from .candidates import asked_runtimes, cannot_run


def chosen_device(workload: Workload) -> Device:
    return named_device(workload.device, lambda device: usable(device, asked_runtimes(workload)), "device")


def named_device(name: str, useful: Callable[[Device], bool], where: str) -> Device:
    """`auto`: the first GPU where it is `useful`, else the CPU. BadInput at `where` for a `cuda:N` that is not here."""
    host, named = describe_device(), re.fullmatch(r"cuda(?::(\d+))?", name)
    if name == "cpu":
        return host
    if name == "auto":
        return on_gpu(host, 0) if host.gpus and useful(on_gpu(host, 0)) else host
    if named is None:
        raise BadInput(where, f"{name!r} is no device", "use auto, cpu, or cuda:0 for the first GPU")
    number = int(named[1] or 0)
    if number >= len(host.gpus):
        raise BadInput(where, f"{name!r} is not here: {missing(host)}", mend(host))
    return on_gpu(host, number)


def usable(device: Device, runtimes: Mapping[str, str]) -> bool:
    """Can one of the runtimes (each with its interpreter) compute there?"""
    return any(cannot_run(name, python, device) is None for name, python in runtimes.items())


def missing(host: Device) -> str:
    if not host.gpus:
        return f"this machine has {host.name}; {nvml.why_not() or 'CUDA_VISIBLE_DEVICES leaves no GPU'}"
    return f"NVML finds {len(host.gpus)}: {', '.join(f'cuda:{i} {gpu.name}' for i, gpu in enumerate(host.gpus))}"


def mend(host: Device) -> str:
    return f"use cuda:0 to cuda:{len(host.gpus) - 1}, or auto" if host.gpus else "use auto or cpu, or install the NVIDIA driver"
