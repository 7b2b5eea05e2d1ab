"""Roofs of a GPU on a planted clock: torch computes on the CPU, and its CUDA events tell the time that the test says."""

from typing import Any

import pynvml
import pytest
import torch

from quantadvisor.documents import Device, Gpu
from quantadvisor.kernels.gpu_devices import gpus, known_gpu
from quantadvisor.profiling import gpu_peaks
from quantadvisor.profiling.gpu_peaks import answer, event_seconds, measured, product, reading, with_peaks

from .fake_nvml import fake

H100 = "NVIDIA H100 80GB HBM3"


def device(name: str = H100, memory: int = 80 << 30) -> Device:
    gpu = Gpu(name=name, memory_bytes=memory, compute_capability="9.0", place="0")
    return Device(kind="cuda", name=name, cores=1, threads=1, memory_bytes=memory, gpus=(gpu,), fingerprint="f")


class Clock:
    """CUDA events of a GPU on which the k-th call takes k milliseconds."""

    calls = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = Clock.calls

    def elapsed_time(self, last: Any) -> float:
        return float(sum(range(self.at + 1, last.at + 1)))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock.calls = 0
    monkeypatch.setattr(torch.cuda, "Event", Clock)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


def test_each_call_is_between_its_own_events(clock: None) -> None:
    def call() -> None:
        Clock.calls += 1

    found = event_seconds(call, rounds=3)
    first = gpu_peaks.WARM_ROUNDS + 1
    assert found == pytest.approx([1e-3 * (first + i) for i in range(3)])


def test_work_is_what_the_calls_do() -> None:
    read = reading(1 << 20, "cpu")
    assert read.work == 1 << 20
    assert float(read.call()) == (1 << 20) / 4  # type: ignore[arg-type]
    for number in ("fp32", "bf16", "fp16", "int8"):
        one = product(number, 32, "cpu")
        assert one.work == 2 * 32**3
        assert one.call().shape == (32, 32)  # type: ignore[attr-defined]


def test_measured_roofs(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch with a GPU, read by NVML, whose FP8 products fail, and events that say 2 ms for everything."""
    properties = type("P", (), {"L2_cache_size": 50 << 20})()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(pynvml, "nvmlLib", fake())
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(Clock, "elapsed_time", lambda *_: 2.0)
    sides: list[int] = []

    def planted(number: str, side: int, where: str) -> gpu_peaks.Timed:
        assert where == "cuda"
        sides.append(side)
        if number == "fp8":
            raise RuntimeError("torch._scaled_mm is only supported on devices with compute capability >= 8.9\nmore")
        return gpu_peaks.Timed(number, lambda: None, 2.0 * side**3)

    monkeypatch.setattr(gpu_peaks, "product", planted)
    monkeypatch.setattr(gpu_peaks, "reading", lambda size, where: gpu_peaks.Timed("r", lambda: None, float(size)))
    found = answer()
    peaks = measured(found)
    assert set(sides) == {8192}  # 64 MiB of INT8 exceed the L2 cache of 50
    assert peaks.read_bytes_per_s.median == pytest.approx((1 << 30) / 2e-3)
    assert peaks.flops_per_s["bf16"].median == pytest.approx(2 * 8192**3 / 2e-3)
    assert peaks.flops_per_s["bf16"].kind == "measured"
    assert peaks.refused == {"fp8": "torch._scaled_mm is only supported on devices with compute capability >= 8.9"}
    assert found["l2_bytes"] == 50 << 20
    assert peaks.gpu and (peaks.gpu.sm_mhz, peaks.gpu.mig) == ((1410, 1410, 1410), True)


def test_without_cuda_the_data_sheet_is_cited() -> None:
    """The child really runs here, and its torch has no GPU."""
    if torch.cuda.is_available():
        pytest.skip("torch has a GPU here")
    known = with_peaks(device())
    assert known.peaks is not None
    assert known.peaks.read_bytes_per_s.median == gpus()["h100_sxm"].read_bytes_per_s
    assert {one.kind for one in (known.peaks.read_bytes_per_s, *known.peaks.flops_per_s.values())} == {"cited"}
    assert "h100_sxm; not measured: torch" in known.peaks.read_bytes_per_s.source
    assert with_peaks(device("NVIDIA GeForce RTX 4090")).peaks is None


@pytest.mark.parametrize(
    ("name", "gib", "known"),
    [
        (H100, 79.6, "h100_sxm"),
        (H100, 10.0, None),  # an instance of one (MIG)
        ("NVIDIA A100-SXM4-40GB", 40.0, None),
        ("NVIDIA A100-SXM4-80GB", 80.0, "a100_sxm"),
        ("NVIDIA H200", 140.4, "h200_sxm"),
        ("NVIDIA H100 NVL", 93.6, None),
    ],
)
def test_known_gpus(name: str, gib: float, known: str | None) -> None:
    found = known_gpu(name, int(gib * 2**30))
    assert (found.name if found else None) == known
