"""How a profile is read: which events are kernels, which are ranges. A GPU's events are made up here; none was ever seen."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from quantadvisor.kernels.triton_evidence import UNSEEN, Launched, Seen, seen_in

CPU, CUDA = SimpleNamespace(name="CPU"), SimpleNamespace(name="CUDA")


def event(name: str, device: Any, device_us: float, cpu_us: float = 0.0) -> Any:
    return SimpleNamespace(name=name, device_type=device, device_time_total=device_us, cpu_time_total=cpu_us)


EVENTS = [
    event("quantadvisor.linears", CPU, 30.0, 900.0),
    event("quantadvisor.linears", CPU, 20.0, 800.0),
    event("quantadvisor.attention", CPU, 8.0, 400.0),
    event("quantadvisor.linears", CUDA, 700.0),  # the annotation: from the first kernel's start to the last one's end
    event("aten::mul", CPU, 5.0, 70.0),
    event("w8a8_kernel", CUDA, 30.0),
    event("w8a8_kernel", CUDA, 20.0),
    event("attend_kernel", CUDA, 8.0),
    event("elementwise_kernel", CUDA, 5.0),
]


def test_on_a_gpu_kernels_count_and_gaps_do_not() -> None:
    seen = seen_in(EVENTS, {"w8a8_kernel": Launched(2, 0.5)}, on_gpu=True)
    assert seen.parts == pytest.approx({"linears": 50e-6, "attention": 8e-6, "cache": 0.0})
    assert {name: one.count for name, one in seen.kernels.items()} == {
        "w8a8_kernel": 2, "attend_kernel": 1, "elementwise_kernel": 1,
    }  # fmt: skip
    assert seen.busy_s == pytest.approx(63e-6)
    assert seen.notes == []


def test_a_profiler_that_may_not_look_says_so() -> None:
    seen = seen_in([event("quantadvisor.linears", CPU, 0.0, 900.0)], {"w8a8_kernel": Launched(2)}, on_gpu=True)
    assert seen == Seen({"w8a8_kernel": Launched(2)}, dict.fromkeys(("linears", "attention", "cache"), 0.0), [UNSEEN])


def test_what_torchs_own_events_are_called_is_what_is_read() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        with torch.profiler.record_function("quantadvisor.cache"):
            torch.ones(64, 64) @ torch.ones(64, 64)
        torch.ones(3).sum()
    seen = seen_in(profile.events(), {}, on_gpu=False)
    inside = next(one for one in profile.events() if one.name == "aten::matmul")
    assert seen.parts["cache"] >= inside.cpu_time_total / 1e6 > 0
    assert seen.parts["linears"] == seen.parts["attention"] == 0
    assert all(hasattr(one, "device_time_total") for one in profile.events())
