"""What a process is asked of points that take turns, and what their figures mean."""

import pytest

from quantadvisor.documents import Device, LinearShape, Peaks
from quantadvisor.kernels import point as module
from quantadvisor.kernels.point import Kernel, Point, request_of, roof_s, timed_figure, turns
from quantadvisor.kernels.registry import PROBES
from quantadvisor.kernels.timing import figure

CPU = Device(name="x", cores=2, threads=2, memory_bytes=1 << 34, fingerprint="f", last_level_cache_bytes=32 << 20)
SHAPE = LinearShape(name="x", n=576, k=576, count=60)
SMALL = LinearShape(name="y", n=192, k=576, count=60)


def at(m: int, shape: LinearShape = SHAPE, cold: bool = True) -> Point:
    return Point(Kernel("fp32_torch", PROBES["fp32_torch"], "", cold), shape, m)


def test_weights_are_cold_at_small_m_only() -> None:
    asked = request_of([at(1), at(1, SMALL)], CPU)
    assert asked["shapes"] == [{"n": 576, "k": 576, "copies": 7}, {"n": 192, "k": 576, "copies": 19}]  # each exceeds 8 MiB
    touched = 4 * 576 * (7 * 576 + 19 * 192)
    assert asked["flush_bytes"] == (64 << 20) - touched, "what they read themselves need not be read besides"
    assert asked["cold"]
    large = request_of([at(512)], CPU)
    assert (large["shapes"], large["flush_bytes"], large["cold"]) == ([{"n": 576, "k": 576, "copies": 1}], 0, False)
    warm = request_of([at(1, cold=False)], CPU)
    assert (warm["flush_bytes"], warm["cold"]) == (0, False)


def test_weights_that_empty_the_caches_themselves_need_no_more() -> None:
    head = LinearShape(name="head", n=49152, k=576, count=1, lm_head=True)
    assert request_of([at(1), at(1, head)], CPU)["flush_bytes"] == 0


def test_what_does_not_fit_in_memory_together_takes_turns_in_parts() -> None:
    large = [at(1, LinearShape(name=str(n), n=n, k=4096, count=9)) for n in (11000, 12000, 13000)]  # about 190 MiB each
    assert [len(group) for group in turns([*large, at(1)])] == [2, 2]
    assert list(turns([])) == []


def test_a_huge_weight_is_timed_in_part_and_says_so() -> None:
    head = LinearShape(name="lm_head", n=150_000, k=4096, count=1, lm_head=True)
    point = at(1, head)
    assert point.rows == 16384  # 256 MiB
    found = timed_figure([1.0], point)
    assert (found.median, found.kind) == (150_000 / 16384, "modelled")
    assert "16384 of 150000 rows" in found.source


def test_an_absent_runtime_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    openvino = Point(Kernel("w4_openvino", PROBES["w4_openvino"], "f32"), SHAPE, 1)
    assert "pip install 'quantadvisor[openvino]'" in str(module.refusal(openvino, CPU))


def test_roof_is_the_longer_of_reading_and_arithmetic() -> None:
    peaks = Peaks(read_bytes_per_s=figure([10.0]), flops_per_s={"fp32": figure([100.0])})
    assert roof_s(peaks, "fp32", 1000, 200) == 100
    assert roof_s(peaks, "fp32", 10, 20000) == 200
    assert roof_s(peaks, "int8", 10, 20000) is None
    assert roof_s(None, "fp32", 10, 20000) is None


def test_a_roof_is_never_below_that_of_a_wider_number() -> None:
    """A CPU without bf16 units emulates its products: values widened to fp32 as they are read are multiplied faster."""
    peaks = Peaks(read_bytes_per_s=figure([10.0]), flops_per_s={"fp32": figure([100.0]), "bf16": figure([5.0])})
    assert roof_s(peaks, "bf16", 10, 20000) == 200
    assert roof_s(peaks, "int8", 10, 20000) is None
