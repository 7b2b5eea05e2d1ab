"""NVML's readings over a fake of the library: the real binding (`pynvml`) calls C functions that are written here."""

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pynvml
import pytest

from quantadvisor.profiling import nvml
from quantadvisor.profiling.nvml import Reading, summarize, throttling, watching, why_not

from . import fake_nvml
from .fake_nvml import NOT_SUPPORTED, OK, fake, gives


@pytest.mark.skipif(why_not() is not None, reason="no GPU whose NVML can be read")
def test_a_real_gpu_is_read() -> None:
    with watching(0) as seen:
        time.sleep(0.5)
    found = seen.summary()
    assert found is not None and found.readings >= 5
    assert found.energy_j is None or found.energy_j > 0
    assert found.sm_mhz is None or 0 < found.sm_mhz[0] <= found.sm_mhz[2]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def use(**changed: Any) -> None:
        monkeypatch.setattr(pynvml, "nvmlLib", fake(**changed))
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})

    return use


@pytest.mark.parametrize(
    ("which", "said", "mig"),
    [
        (0, fake_nvml.mig, True),
        (0, lambda _, current, pending: fake_nvml.mig(_, pending, current) or fake_nvml.gives(0)(current), False),
        (0, lambda *_: NOT_SUPPORTED, None),
        ("MIG-9", lambda *_: pynvml.NVML_ERROR_INVALID_ARGUMENT, True),
    ],
    ids=["cut", "whole", "too old for it", "an instance"],
)
def test_a_gpu_that_is_cut_into_instances_is_recorded(
    library: Callable[..., None], which: int | str, said: Any, mig: bool | None
) -> None:
    library(nvmlDeviceGetMigMode=said)
    assert why_not() is None
    with watching(which) as seen:
        pass
    found = seen.summary()
    assert found is not None
    assert found.mig is mig


def test_a_uuid_is_completed(library: Callable[..., None]) -> None:
    asked: list[str] = []

    def by_uuid(uuid: Any, out: Any) -> int:
        asked.append(uuid.value.decode())
        return OK

    library(nvmlDeviceGetHandleByUUID=by_uuid)
    for which in ("1b2c", "MIG-9"):
        with watching(which):
            pass
    assert asked == ["GPU-1b2c", "MIG-9"]


def test_what_a_gpu_did_meanwhile(library: Callable[..., None]) -> None:
    library()
    with watching(0, period_s=0.01) as seen:
        time.sleep(0.1)
    found = seen.summary()
    assert found is not None
    assert found.readings == len(seen.readings) >= 4
    assert found.seconds >= 0.1
    assert (found.sm_mhz, found.memory_mhz, found.temperature_c) == ((1410, 1410, 1410), 2619, 61)
    assert (found.energy_j, found.energy_from) == (found.readings - 1, "counter")
    assert found.power_w == pytest.approx((found.readings - 1) / found.seconds)
    assert found.memory_used_bytes == 7 << 30
    assert found.throttling == ("power cap (software)", "thermal slowdown (hardware)")


def test_what_a_gpu_does_not_tell_is_none(library: Callable[..., None]) -> None:
    silent = dict.fromkeys(
        ("nvmlDeviceGetTemperature", "nvmlDeviceGetClockInfo", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMigMode"),
        lambda *_: NOT_SUPPORTED,
    )
    library(nvmlDeviceGetTotalEnergyConsumption=None, **silent)
    with watching(0, period_s=0.01) as seen:
        time.sleep(0.05)
    found = seen.summary()
    assert found is not None
    assert (found.sm_mhz, found.temperature_c, found.memory_used_bytes, found.mig) == (None, None, None, None)
    assert found.energy_from == "power over time"
    assert found.energy_j == pytest.approx(250.5 * found.seconds)


def test_an_older_driver_names_the_reasons_otherwise(library: Callable[..., None]) -> None:
    library(nvmlDeviceGetCurrentClocksEventReasons=None, nvmlDeviceGetCurrentClocksThrottleReasons=gives(0x80))
    with watching(0) as seen:
        pass
    assert seen.readings[0].throttling == ("power brake (hardware)",)


def test_a_lost_gpu_is_an_error(library: Callable[..., None]) -> None:
    library(nvmlDeviceGetPowerUsage=lambda *_: pynvml.NVML_ERROR_GPU_IS_LOST, nvmlErrorString=None)
    with pytest.raises(pynvml.NVMLError_GpuIsLost), watching(0):
        pass


def test_the_block_s_own_error_passes_and_the_thread_ends(library: Callable[..., None]) -> None:
    library()
    with pytest.raises(ZeroDivisionError), watching(0, period_s=0.01):
        raise ZeroDivisionError
    import threading

    assert "nvml" not in {thread.name for thread in threading.enumerate()}


def test_no_gpu_has_a_reason(library: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    library(nvmlDeviceGetCount_v2=gives(0))
    assert why_not() == "NVML finds no GPU"
    library(nvmlInitWithFlags=lambda _: pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    assert why_not() == "NVML cannot be used: Driver Not Loaded"
    with watching(0) as seen:
        pass
    assert seen.summary() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in str(why_not())


def test_power_over_time_is_trapezoids() -> None:
    def at(second: float, watt: float | None) -> Reading:
        return Reading(second, None, None, watt, None, None, None, None)

    found = summarize([at(0, 100), at(1, 200), at(2, None), at(3, 400)])
    assert found is not None
    assert found.energy_j == 150 + 600
    assert found.power_w == 250
    assert found.throttling is None
    assert summarize([at(0, 1)]) is None


def test_idle_and_set_clocks_are_no_throttling() -> None:
    assert throttling(0x1 | 0x2 | 0x10 | 0x100) == ()


def test_import_is_light() -> None:
    code = f"import runpy, sys; runpy.run_path({nvml.__file__!r}); print('pynvml' in sys.modules, 'pydantic' in sys.modules)"
    shown = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False False"
