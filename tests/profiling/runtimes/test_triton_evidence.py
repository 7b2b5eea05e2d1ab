"""How a pass is read. What a GPU's profiler would show is made up here; none was ever seen."""

import pytest
import torch

from quantadvisor.profiling.runtimes import torch_cuda
from quantadvisor.profiling.runtimes.triton_evidence import UNSEEN, cpu_parts, on_device


def row(name: str, part: str, seconds: float) -> dict[str, object]:
    return {"name": name, "part": part, "count": 1, "provider": "CUDA", "precision": "", "time_s": seconds}


def test_on_a_gpu_kernels_count_and_the_hosts_gap_does_not() -> None:
    seen = on_device([row("w8a8_kernel", "linears", 5e-3), row("attend_kernel", "attention", 1e-3),
                      row("elementwise", "other", 2e-3)], 20e-3)  # fmt: skip
    assert seen.parts == pytest.approx({"linears": 5e-3, "attention": 1e-3, "cache": 0.0})
    assert seen.note == "kernels busy for 8.00e-03 s of 2.00e-02 s; the host's gap is in other"
    assert on_device([], 20e-3).note == UNSEEN


def test_on_a_cpu_the_time_of_a_part_is_that_of_its_scopes() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(2):
            with torch.profiler.record_function(torch_cuda.SCOPE + "cache"):
                torch.ones(64, 64) @ torch.ones(64, 64)
        torch.ones(3).sum()
    parts = cpu_parts(profile.events())
    inside = sum(one.cpu_time_total for one in profile.events() if one.name == "aten::matmul") / 1e6
    assert parts["cache"] >= inside > 0
    assert parts["linears"] == parts["attention"] == 0
