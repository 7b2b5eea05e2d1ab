"""The functions of libnvidia-ml.so.1 that we call, for one H100: the real binding (`pynvml`) calls them."""

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pynvml

OK, NOT_SUPPORTED = 0, 3
Call = Callable[..., int]


def gives(value: int) -> Call:
    """A C function that writes `value` to its last argument, a pointer."""

    def call(*given: Any) -> int:
        given[-1]._obj.value = value
        return OK

    return call


def clock(_: Any, kind: Any, out: Any) -> int:
    out._obj.value = {pynvml.NVML_CLOCK_SM: 1410, pynvml.NVML_CLOCK_MEM: 2619}[kind.value]
    return OK


def memory(_: Any, out: Any) -> int:
    out._obj.total, out._obj.used = 80 << 30, 7 << 30
    return OK


def capability(_: Any, major: Any, minor: Any) -> int:
    major._obj.value, minor._obj.value = 9, 0
    return OK


def mig(_: Any, current: Any, pending: Any) -> int:
    current._obj.value = pending._obj.value = 1
    return OK


def text(value: bytes) -> Call:
    def call(*given: Any) -> int:
        next(one for one in given if isinstance(one, ctypes.Array)).value = value
        return OK

    return call


def counting() -> Call:
    """Energy in mJ: a joule more with every call."""
    seen = [0]

    def call(_: Any, out: Any) -> int:
        seen[0] += 1
        out._obj.value = 1_000 * seen[0]
        return OK

    return call


def fake(**changed: Any) -> SimpleNamespace:
    """The functions of libnvidia-ml.so.1 that are called, for one H100; `changed`: others, or None for one that is missing."""
    functions = {
        "nvmlInitWithFlags": lambda _: OK,
        "nvmlShutdown": lambda: OK,
        "nvmlDeviceGetCount_v2": gives(1),
        "nvmlDeviceGetHandleByIndex_v2": lambda *_: OK,
        "nvmlDeviceGetHandleByUUID": lambda *_: OK,
        "nvmlSystemGetDriverVersion": text(b"575.57.08"),
        "nvmlDeviceGetName": text(b"NVIDIA H100 80GB HBM3"),
        "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetCudaComputeCapability": capability,
        "nvmlDeviceGetMigMode": mig,
        "nvmlDeviceGetClockInfo": clock,
        "nvmlDeviceGetPowerUsage": gives(250_500),
        "nvmlDeviceGetTotalEnergyConsumption": counting(),
        "nvmlDeviceGetTemperature": gives(61),
        "nvmlDeviceGetCurrentClocksEventReasons": gives(0x1 | 0x4 | 0x40),
        **changed,
    }
    return SimpleNamespace(**{name: function for name, function in functions.items() if function is not None})
