"""Kernel times on a GPU before any is probed, against the tables they come from and a baseline of planted slowness."""

import math

import pytest

from quantadvisor.advisor.gpu_kernels import (
    SAME,
    calibrated,
    curve,
    looked_up,
    reading_binds,
    sheet_of,
    table_scheme,
    table_timings,
    without_probed,
)
from quantadvisor.advisor.predict import Probes, predict
from quantadvisor.advisor.serving_times import PRIOR
from quantadvisor.documents import (
    Device,
    Figure,
    Ghost,
    Gpu,
    Inventory,
    KernelFactors,
    KernelTiming,
    LinearShape,
    Peaks,
    PhaseTime,
)
from quantadvisor.kernels.gpu_devices import gpus
from quantadvisor.kernels.gpu_tables import product_s
from quantadvisor.methods.schemes import scheme

from .documents import candidate, figure, workload
from .test_diagnose import INVENTORY

H100 = gpus()["h100_sxm"]
BASE = (scheme("bf16"), "torch", ("cuda",))
SHAPES = (
    LinearShape(name="q", n=4096, k=4096, count=64, layers=32),
    LinearShape(name="up", n=16384, k=4096, count=32, layers=32),
    LinearShape(name="lm_head", n=32768, k=4096, count=1, lm_head=True),
)
BIG = INVENTORY.model_copy(update={"linears": SHAPES})
ROWS, PROMPT = 4, 8192
"""A decode step of 4 rows is bound by reading, a prefill of 8,192 by arithmetic."""


def device(name: str = "NVIDIA H100 80GB HBM3", peaks: Peaks | None = None) -> Device:
    gpu = Gpu(name=name, memory_bytes=80 << 30, compute_capability="9.0", place="0")
    memory = {"memory_bytes": 80 << 30, "gpus": (gpu,), "peaks": peaks}
    return Device(kind="cuda", name=name, cores=1, threads=1, fingerprint="f", **memory)


def phases(read: float, peak: float, inventory: Inventory = BIG) -> tuple[PhaseTime, PhaseTime]:
    """A baseline whose linears take the tables' time x `read` in decode, x `peak` in prefill."""
    timings = table_timings(H100, inventory.linears, [BASE], (ROWS, PROMPT))
    probes = Probes(timings, inventory, 0.5)

    def phase(kind: str, tokens: int, factor: float) -> PhaseTime:
        seconds = probes.linears_s(*BASE, tokens, ROWS)
        assert seconds
        linears = seconds * factor
        return PhaseTime(
            phase=kind, batch=ROWS, tokens=tokens, context_tokens=2048, wall_s=figure(2 * linears), linears_s=linears,
            attention_s=0.0, other_s=linears, residue_s=0.0,
        )  # fmt: skip

    return phase("prefill", PROMPT, peak), phase("decode", ROWS, read)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("bf16", "bf16"), ("fp16", "bf16"), ("fp32", None), ("w4-g64-bf16", "w4a16"), ("w8-g64-bf16", "w8a16"),
        ("w8a8-bf16", "w8a8-int8"), ("fp8-bf16", "fp8"), ("fp8-block", "fp8-block"), ("w4a8-g64", None),
        ("nf4-b64", None), ("q8_0", "w8a16"), ("bf16-kv8", "bf16"),
    ],
)  # fmt: skip
def test_schemes_of_the_tables(name: str, known: str | None) -> None:
    assert table_scheme(scheme(name)) == known


def test_a_time_is_the_tables_and_says_so() -> None:
    for made, runtime, kind in (
        ("fp8-bf16", "vllm", "measured"),
        ("bf16", "torch", "measured"),
        ("w4-g64-bf16", "vllm", "roofline"),
    ):
        found = looked_up(H100, runtime, scheme(made), 256, 4096, 4096)
        theirs = product_s(H100, "vllm", table_scheme(scheme(made)) or "", 256, 4096, 4096)
        launch = PRIOR.launch_s if kind == "roofline" else 0.0
        assert found == (theirs.seconds + launch, kind)
    assert looked_up(gpus()["a100_sxm"], "vllm", scheme("fp8-bf16"), 16, 4096, 4096) is None  # no FP8 arithmetic there


def test_the_sides_of_the_roofline() -> None:
    assert reading_binds(H100, "bf16", ROWS, 4096, 4096)
    assert not reading_binds(H100, "bf16", PROMPT, 4096, 4096)


def test_the_baseline_calibrates_each_side_by_its_phase() -> None:
    found = calibrated(H100, BIG, BASE, phases(read=1.4, peak=2.0))
    assert found.reading == pytest.approx(1.4, rel=0.02)
    assert found.arithmetic == pytest.approx(2.0, rel=0.02)
    assert "prefill x2.00, decode x1.40" in found.source


def test_a_phase_without_linears_calibrates_nothing() -> None:
    nothing = [one.model_copy(update={"linears_s": 0.0}) for one in phases(1.0, 1.0)]
    assert calibrated(H100, BIG, BASE, nothing) == SAME
    only = calibrated(H100, BIG, BASE, [phases(1.5, 1.0)[1]])
    assert (only.reading, only.arithmetic) == (pytest.approx(1.5), pytest.approx(1.5))


def test_calibrated_times_follow_their_side() -> None:
    by = KernelFactors(reading=3.0, arithmetic=0.5, source="planted")
    for m, factor in ((ROWS, 3.0), (PROMPT, 0.5)):
        plain, scaled = (table_timings(H100, SHAPES[:1], [BASE], (m,), one)[0] for one in (SAME, by))
        assert plain.time_s
        assert scaled.time_s
        assert scaled.time_s.median == pytest.approx(factor * plain.time_s.median)
        assert scaled.time_s.kind == "modelled"
        assert f"x{factor:.2f} by the baseline" in scaled.time_s.source


def test_a_gpu_without_tables_is_measured_roofs() -> None:
    roofs = Peaks(read_bytes_per_s=figure(1e12), flops_per_s={"bf16": figure(1e14), "int8": figure(2e14)})
    sheet = sheet_of(device("NVIDIA GeForce RTX 4090", roofs))
    assert sheet
    assert (sheet.read_bytes_per_s, sheet.flops_per_s) == (1e12, {"bf16": 1e14, "int8": 2e14})
    found = looked_up(sheet, "vllm", scheme("w8a8-bf16"), 1, 4096, 4096)
    assert found
    assert found.kind == "roofline"
    assert 0.5 < 4096 * 4096 / 1e12 / found.seconds < 1
    assert looked_up(sheet, "vllm", scheme("fp8-bf16"), 1, 4096, 4096) is None
    assert sheet_of(device("NVIDIA GeForce RTX 4090")) is None
    assert sheet_of(device()) == H100


def test_what_was_probed_here_stands() -> None:
    tables = table_timings(H100, SHAPES, [BASE, (scheme("fp8-bf16"), "vllm", ("cuda",))], (1, 256))
    probed = KernelTiming(
        probe="p", scheme=scheme("bf16"), runtime="torch", option="cuda", m=1, n=4096, k=4096, time_s=figure(1.0)
    )
    both = without_probed(tables, [probed])
    assert [one for one in both if curve(one) == curve(probed)] == [probed]
    assert len(both) == len(tables) - 2 + 1


def test_predictions_say_where_their_kernels_times_come_from() -> None:
    """A ghost of bf16 on vLLM; FP8 by measured tables between points, INT4 by the roofline; the ghost itself is measured."""
    vllm = ("vllm", ("cuda",))
    uses = [(scheme(name), *vllm) for name in ("bf16", "fp8-bf16", "w4-g64-bf16")]
    probes = Probes(table_timings(H100, SHAPES, uses, (1, 3, 4, 512, 2048)), BIG, 0.5)
    linears = probes.linears_s(scheme("bf16"), *vllm, 1, 1)
    prompt = probes.linears_s(scheme("bf16"), *vllm, 512, 1)
    assert linears
    assert prompt
    ghost = Ghost(
        scheme="bf16", runtime="vllm", options=("cuda",), depth=32, ttft_s=figure(prompt + 1e-3), tpot_s=figure(linears + 1e-3),
        peak_bytes=1 << 34,
    )  # fmt: skip
    schemes = {made.name: made for made, *_ in uses}
    sources = {}
    for name in ("none-bf16", "fp8-fp8-bf16", "gptq-w4-g64-bf16"):
        found = predict(candidate(f"{name}@vllm+cuda", 1.0), workload(), probes, [ghost], schemes)
        assert found
        assert found.tpot_s
        own = probes.linears_s(schemes[name.partition("-")[2]], *vllm, 1, 1)
        assert own
        assert found.tpot_s == pytest.approx(own + 1e-3)
        sources[name] = (found.kernels, found.basis)
    assert sources["none-bf16"] == ("measured", "ghost")
    assert sources["fp8-fp8-bf16"][0] in ("interpolated", "roofline")
    assert sources["gptq-w4-g64-bf16"] == (
        "roofline", "ghost of bf16 in this runtime, linears exchanged by the roofline, calibrated on the baseline",
    )  # fmt: skip


def test_figures_are_finite() -> None:
    for one in table_timings(H100, SHAPES, [BASE], (1, PROMPT)):
        assert isinstance(one.time_s, Figure)
        assert math.isfinite(one.time_s.median)
