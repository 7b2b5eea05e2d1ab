"""Which device a run is of: `device: auto`, `cpu` or `cuda:N` of the spec."""

from __future__ import annotations

import re
from collections.abc import Mapping

from quantadvisor.documents import BadInput, Device, Workload
from quantadvisor.profiling import nvml
from quantadvisor.profiling.device import describe_device
from quantadvisor.profiling.gpus import on_gpu

from .candidates import asked_runtimes, cannot_run


def chosen_device(workload: Workload) -> Device:
    return named_device(workload.device, asked_runtimes(workload), "device")


def named_device(name: str, runtimes: Mapping[str, str], where: str) -> Device:
    """`auto`: the first GPU where one of the runtimes (each with its interpreter) can compute, else the CPU, with the reasons
    as its note. BadInput at `where` for a `cuda:N` that is not here."""
    host, named = describe_device(), re.fullmatch(r"cuda(?::(\d+))?", name)
    if name == "cpu":
        return host
    if name == "auto":
        return first_gpu(host, runtimes) if host.gpus else host
    if named is None:
        raise BadInput(where, f"{name!r} is no device", "use auto, cpu, or cuda:0 for the first GPU")
    number = int(named[1] or 0)
    if number >= len(host.gpus):
        raise BadInput(where, f"{name!r} is not here: {missing(host)}", mend(host))
    return on_gpu(host, number)


def first_gpu(host: Device, runtimes: Mapping[str, str]) -> Device:
    gpu, reasons = on_gpu(host, 0), dict[str, list[str]]()
    for name, python in runtimes.items():
        reason = cannot_run(name, python, gpu)
        if reason is None:
            return gpu
        reasons.setdefault(reason, []).append(name)
    why = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    return unused(host, gpu, why) if why else host  # servers alone are asked for


def unused(host: Device, gpu: Device, why: str) -> Device:
    return host.model_copy(update={"notes": (f"device: auto leaves {gpu.name} unused: {why}",)})


def missing(host: Device) -> str:
    if not host.gpus:
        return f"this machine has {host.name}; {nvml.why_not() or 'CUDA_VISIBLE_DEVICES leaves no GPU'}"
    return f"NVML finds {len(host.gpus)}: {', '.join(f'cuda:{i} {gpu.name}' for i, gpu in enumerate(host.gpus))}"


def mend(host: Device) -> str:
    return f"use cuda:0 to cuda:{len(host.gpus) - 1}, or auto" if host.gpus else "use auto or cpu, or install the NVIDIA driver"
