"""What a GPU did while something ran, over a fake of NVML."""

import pynvml
import pytest

from quantadvisor.profiling.gpu_state import state_of, with_state

from .fake_nvml import fake


def test_what_runs_is_seen_by_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlLib", fake())
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    found, state = with_state(lambda: 7)
    assert found == 7
    assert state is not None and state.readings >= 2 and state.sm_mhz is not None and state.power_w


def test_without_nvml_it_runs_and_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    library = fake(nvmlInitWithFlags=lambda _: pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    assert with_state(lambda: 7) == (7, None)
    assert state_of([None]) is None
