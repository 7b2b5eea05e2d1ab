"""Which device a run is of: `device: auto`, `cpu` or `cuda:N` of the spec."""

from __future__ import annotations

import re

from quantadvisor.documents import BadInput, Device, Workload
from quantadvisor.profiling import nvml
from quantadvisor.profiling.device import describe_device
from quantadvisor.profiling.gpus import on_gpu

from .candidates import asked_runtimes, cannot_run


def chosen_device(workload: Workload) -> Device:
    """`auto`: the first GPU where a runtime that is asked for can use it, else the CPU. BadInput where `cuda:N` is not here."""
    host, named = describe_device(), re.fullmatch(r"cuda(?::(\d+))?", workload.device)
    if workload.device == "cpu":
        return host
    if workload.device == "auto":
        return on_gpu(host, 0) if host.gpus and usable(on_gpu(host, 0), workload) else host
    if named is None:
        raise BadInput("device", f"{workload.device!r} is no device", "use auto, cpu, or cuda:0 for the first GPU")
    number = int(named[1] or 0)
    if number >= len(host.gpus):
        raise BadInput("device", f"{workload.device!r} is not here: {missing(host)}", mend(host))
    return on_gpu(host, number)


def usable(device: Device, workload: Workload) -> bool:
    return any(cannot_run(name, python, device) is None for name, python in asked_runtimes(workload).items())


def missing(host: Device) -> str:
    if not host.gpus:
        return f"this machine has {host.name}; {nvml.why_not() or 'CUDA_VISIBLE_DEVICES leaves no GPU'}"
    return f"NVML finds {len(host.gpus)}: {', '.join(f'cuda:{i} {gpu.name}' for i, gpu in enumerate(host.gpus))}"


def mend(host: Device) -> str:
    return f"use cuda:0 to cuda:{len(host.gpus) - 1}, or auto" if host.gpus else "use auto or cpu, or install the NVIDIA driver"
