"""Kernels timed on a GPU that is not there, at the sizes of a model."""

from pathlib import Path

import pynvml
import pytest

from quantadvisor.advisor import gpu_home
from quantadvisor.advisor.gpu_probe import BF16, PLAIN, points_of, timed_here, whole
from quantadvisor.advisor.predict import Probes
from quantadvisor.documents import Device, Gpu, KernelTiming, LinearShape
from quantadvisor.kernels import triton_products
from quantadvisor.kernels.triton_subjects import product_at
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling import gpu_kernels_child

from ..profiling.fake_nvml import fake
from . import virtual_cuda
from .test_diagnose import INVENTORY

GPU = Gpu(name="NVIDIA Virtual V1", memory_bytes=80 << 30, compute_capability="9.0", place="5")
DEVICE = Device(kind="cuda", name=GPU.name, cores=1, threads=1, memory_bytes=80 << 30, gpus=(GPU,), fingerprint="f")
SHAPES = (
    LinearShape(name="q", n=64, k=64, count=2, layers=2),
    LinearShape(name="k", n=32, k=64, count=4, layers=2),
    LinearShape(name="lm_head", n=128, k=64, count=1, lm_head=True),
)
MODEL = INVENTORY.model_copy(update={"linears": SHAPES})
KERNELS = {"fp8": scheme("fp8-bf16"), "w4a16-g64": scheme("w4-g64-bf16")}


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("QA_TIMED", str(tmp_path / "timed"))
    monkeypatch.setenv("QUANTADVISOR_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(gpu_home, "CHILD", Path(__file__).with_name("virtual_kernels.py"))
    return tmp_path / "timed"


def run(cache: Path, budget_s: float = 60.0) -> tuple[KernelTiming, ...]:
    return timed_here(MODEL, DEVICE, KERNELS, [2, 9000], cache, lambda _: None, budget_s)


def test_times_are_the_planted_ones_at_the_model_s_sizes(timed: Path, tmp_path: Path) -> None:
    found = Probes(run(tmp_path / "cache"), MODEL, 0.5)
    for runtime, options in (("torch", ("cuda",)), ("vllm", ("cuda",)), ("triton", ())):
        linears = found.linears_s(scheme("bf16"), runtime, options, 2, 2)
        planted = sum(one.count * virtual_cuda.product_s("bfloat16", 2, one.n, one.k) for one in SHAPES)
        assert linears == pytest.approx(planted)
        assert found.source(scheme("bf16"), runtime, options) == "measured"
    ours = found.linears_s(scheme("fp8-bf16"), "triton", (), 2, 2)
    body = sum(one.count * virtual_cuda.product_s("float-quantized", 2, one.n, one.k) for one in SHAPES[:2])
    assert ours == pytest.approx(body + virtual_cuda.product_s("bfloat16", 2, 128, 64))
    assert found.linears_s(scheme("w4-g64-bf16"), "triton", (), 2, 2) is None  # it does not launch
    sizes = {line.split(" [")[1] for line in timed.read_text().splitlines()}
    assert {"2, 64, 64]", "4096, 32, 64]", "2, 128, 64]"} <= sizes  # many rows are cut
    assert "4096, 128, 64]" not in sizes  # of the head one row a sequence


def test_a_package_that_is_faster_stands_for_ours(timed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchao's planted INT8 product takes half of our time at few rows, and twice at many."""
    monkeypatch.setattr(gpu_home, "missing", lambda *_: None)
    found = timed_here(MODEL, DEVICE, {"w8a8": scheme("w8a8-bf16")}, [2, 512], tmp_path / "cache", lambda _: None)
    rival = "torchao INT8 dynamic"
    times = {(one.m, one.n): one for one in found if one.scheme.name == "w8a8-bf16"}
    assert {(place, one.operator) for place, one in times.items()} == {
        ((2, 64), rival), ((2, 32), rival), ((512, 64), "triton"), ((512, 32), "triton"),
    }  # fmt: skip
    for (m, n), one in times.items():
        assert (one.runtime, one.option) == ("triton", "")
        assert one.time_s and one.time_s.median == pytest.approx(
            virtual_cuda.product_s("int-quantized", m, n, 64) * (0.5 if m == 2 else 1)
        )
    kept = triton_products.kept("NVIDIA Virtual V1, sm_90")
    assert {(one.m, one.n, one.product, round(one.factor, 3)) for one in kept} == {
        (2, 64, rival, 2.0), (2, 32, rival, 2.0), (512, 64, "triton", 1.0), (512, 32, "triton", 1.0),
    }  # fmt: skip


def test_a_second_run_takes_what_is_kept(timed: Path, tmp_path: Path) -> None:
    first = run(tmp_path / "cache")
    before = timed.read_text().splitlines()
    assert run(tmp_path / "cache") == first
    after = timed.read_text().splitlines()[len(before) :]
    assert {line.partition(" ")[0] for line in after} == {"w4a16-g64"}  # failures are tried again


def test_half_a_curve_is_left_out(timed: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "cache", budget_s=0.0) == ()
    taken = run(tmp_path / "cache")
    points = points_of(MODEL, {PLAIN: BF16, "fp8": scheme("fp8-bf16")}, [2, 4096])
    assert whole(taken, points) == list(taken)
    few = [one for one in taken if one.scheme.name == "bf16" or (one.m, one.n) != (4096, 32)]
    assert {one.scheme.name for one in whole(few, points)} == {"bf16"}


def test_the_child_times_ours_beside_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over stand-ins of gpu_timing and NVML: what is handed on, and what becomes of a kernel that no graph can hold."""
    monkeypatch.setattr(pynvml, "nvmlLib", fake())
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    seen = {}

    def interleaved(calls: dict[str, object], rounds: int, warm_s: float) -> object:
        seen.update(calls)
        return {name: [1e-6] * rounds for name in calls}, {}

    monkeypatch.setattr(gpu_kernels_child.gpu_timing, "interleaved", interleaved)
    monkeypatch.setattr(
        gpu_kernels_child,
        "calls",
        lambda *_, others, package: ({"triton": print, PLAIN: print}, {"another": "not installed"} if others else {}),
    )
    said = gpu_kernels_child.answer({"probe": "w8a8", "sizes": [1, 8, 8], "rivals": True})
    assert said["without"] == {"another": "not installed"}
    assert set(said["samples"]) == set(seen) == {"triton", PLAIN}
    assert said["gpu"]["readings"] == 2
    assert said["gpu"]["sm_mhz"] == [1410, 1410, 1410]
    monkeypatch.setattr(gpu_kernels_child.gpu_timing, "interleaved", lambda *_: ({}, {"triton": "no CUDA graph can hold it"}))
    assert gpu_kernels_child.answer({"probe": "w8a8", "sizes": [1, 8, 8]}) == {"refused": "no CUDA graph can hold it"}


def test_unknown_products_are_an_error() -> None:
    with pytest.raises(ValueError, match="no quantized product"):
        product_at("hadamard-int8", "cpu", (1, 8, 8))


def test_a_head_of_the_size_of_another_linear_is_timed_as_that_one() -> None:
    twin = LinearShape(name="up", n=128, k=64, count=2, layers=2)
    for shapes in ((*SHAPES, twin), (twin, *SHAPES)):
        points = points_of(MODEL.model_copy(update={"linears": shapes}), {PLAIN: BF16}, [2, 4096])
        assert {(2, 128, 64), (4096, 128, 64)} <= {(one.m, one.n, one.k) for one in points}
