"""`advisor kernels` on a GPU that is not there: who wins at which M, of the roofline how much, and where a cliff lies; and what
`advisor runtimes` says by such times."""

import json
import sys
import time
from pathlib import Path

import pytest

from quantadvisor.advisor import device_choice, first_contact, gpu_home, listings, rival_homes
from quantadvisor.advisor.catalogue import NOMINAL, SchemeHere
from quantadvisor.advisor.kernel_truth import DEFAULT_MS, KernelTruth, probes_here, time_kernels
from quantadvisor.advisor.stages import Quiet
from quantadvisor.advisor.tables import kernels_table, truth_tables
from quantadvisor.documents import BadInput, LinearShape
from quantadvisor.kernels.point import Point
from quantadvisor.kernels.rivals import MARLIN
from quantadvisor.profiling import gpu_peaks

from . import virtual_cuda, virtual_rivals
from .test_device_choice import CPU
from .test_gpu_probe import DEVICE, MODEL

RIVAL, CLIFF = "torchao INT8 dynamic", 100
N, K = 64, 48
SHAPES = (LinearShape(name="q", n=N, k=K, count=2, layers=2), LinearShape(name="lm_head", n=96, k=K, count=1, lm_head=True))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """INT8 and FP8 products are cleared and torchao is installed, on the GPU of virtual_cuda.py."""
    monkeypatch.setenv("QA_TIMED", str(tmp_path / "timed"))
    monkeypatch.setenv("QA_ROOFS", json.dumps([virtual_cuda.READ_BYTES_PER_S, virtual_cuda.FLOPS_PER_S]))
    monkeypatch.setattr(gpu_home, "CHILD", Path(__file__).with_name("virtual_kernels.py"))
    monkeypatch.setattr(gpu_peaks, "CHILD", Path(__file__).with_name("virtual_peaks.py"))
    monkeypatch.setattr(gpu_home, "cleared", lambda kernels, _: None if set(kernels) <= {"w8a8", "fp8"} else "never checked")
    monkeypatch.setattr(
        gpu_home, "missing", lambda rival, _: None if rival.package in ("torchao", "gemlite") else "not installed"
    )
    return tmp_path / "timed"


def found(cache: Path, budget_s: float = 120.0) -> KernelTruth:
    return time_kernels("tiny", MODEL.model_copy(update={"linears": SHAPES}), DEVICE, cache, budget_s)


def test_winners_shares_changes_and_cliffs_are_the_planted_ones(timed: Path, tmp_path: Path) -> None:
    body, head = (truth := found(tmp_path / "cache")).shapes
    by_m = {one.m: one for one in body.winners}
    assert set(by_m) == {1, 4, 16, 64, 256, 1024, 4096}
    for m, one in by_m.items():
        own, fp8 = (virtual_cuda.product_s(kind, m, N, K) for kind in ("int-quantized", "float-quantized"))
        planted = {f"w8a8+{RIVAL}": own * (0.5 if m < CLIFF else 2), "w8a8+triton": own, "fp8+triton": fp8}
        assert one.kernel in {name for name, seconds in planted.items() if seconds <= min(planted.values()) * 1.0001}
        assert one.time_s == pytest.approx(min(planted.values()), rel=0.11 if one.interpolated else 1e-6)
    assert by_m[1].kernel == f"w8a8+{RIVAL}"
    assert [one.before for one in body.changes] == [f"w8a8+{RIVAL}"]
    cliff = next(one for one in body.cliffs if one.kernel == f"w8a8+{RIVAL}")
    assert cliff.after_m < CLIFF <= cliff.m
    assert cliff.m - cliff.after_m <= CLIFF / 12
    assert {one.m for one in head.winners} == {1}  # of the head one row a sequence
    plain = next(t for t in truth.timings if (t.probe, t.m, t.n) == ("16 bit", 1, N))
    roof = max(2 * N * K / virtual_cuda.READ_BYTES_PER_S, 2 * N * K / virtual_cuda.FLOPS_PER_S["bf16"])
    assert plain.roofline_share == pytest.approx(roof / virtual_cuda.product_s("bfloat16", 1, N, K))


def test_what_cannot_be_timed_says_why(timed: Path, tmp_path: Path) -> None:
    reasons = {f"{one.probe}+{one.option}": one.refused for one in found(tmp_path / "cache").timings if one.time_s is None}
    assert reasons["w8a8+GemLite A8W8 INT8 dynamic"] == "planted: not here"
    assert reasons["fp8+torchao FP8 dynamic"] == "not timed"
    assert reasons[f"w4a16-g64-asymmetric+{MARLIN}"] == "not installed"
    assert reasons["w4a16-g64-asymmetric+triton"] == "never checked"


def test_who_fails_at_several_m_is_asked_no_more(timed: Path, tmp_path: Path) -> None:
    home, kinds = gpu_home.GpuHome(DEVICE, tmp_path), {one.option: one for one in gpu_home.all_contenders(DEVICE)}
    with home:
        for name, asked in (("torchao FP8 dynamic", [1, 4, 16]), (RIVAL, [1, 4, 16, 64, 256])):
            points = [Point(kinds[name], SHAPES[0], m) for m in (1, 4, 16, 64, 256)]
            taken = home.take(points, time.monotonic() + 60)
            assert [one.refused for one in taken] == ["not timed" if name != RIVAL else None] * 5
            assert timed.read_text().splitlines() == [f"{points[0].kernel.name} [{m}, {N}, {K}]" for m in asked]
            timed.unlink()


def test_a_second_look_takes_what_is_kept_and_what_is_left(timed: Path, tmp_path: Path) -> None:
    nothing = found(tmp_path / "cache", budget_s=0.0)
    assert nothing.counts.get("timed") is None
    assert nothing.counts["untimed"] > 0
    first = found(tmp_path / "cache")
    asked = timed.read_text().splitlines()
    assert len(asked) == len(set(asked))  # one question tells of all contenders of a kind
    again = found(tmp_path / "cache")
    grid = [t for t in first.timings if t.m in DEFAULT_MS and t.time_s and t.time_s.samples]
    kept = {(t.probe, t.option, t.m, t.n): t.time_s for t in grid}
    assert kept.items() <= {(t.probe, t.option, t.m, t.n): t.time_s for t in again.timings}.items()
    assert [(one.m, one.kernel) for one in again.shapes[0].winners] == [(one.m, one.kernel) for one in first.shapes[0].winners]
    new = timed.read_text().splitlines()[len(asked) :]
    assert not any(line.startswith("16 bit") for line in new)  # whoever had no time is asked again
    table = truth_tables(again)[0]
    assert f"w8a8+{RIVAL}" in str(table.caption)
    assert kernels_table(again).row_count == len(again.probes)


def test_without_fp8_products_there_are_none(timed: Path) -> None:
    old = DEVICE.model_copy(update={"gpus": (DEVICE.gpus[0].model_copy(update={"compute_capability": "8.0"}),)})
    refused = {one.probe: one.refused for one in probes_here(old) if one.option == "triton"}
    assert refused["w8a8"] is None
    assert "has no FP8 products" in str(refused["fp8"])


def test_a_package_is_timed_in_the_interpreter_that_the_spec_names(
    timed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM is in an environment of the user's alone: Marlin is a contender there, at every size, and kept by it."""
    own = tmp_path / "python"
    own.symlink_to(sys.executable)
    pythons = {"vllm": str(own)}
    monkeypatch.setenv("QA_ASKED", str(tmp_path / "asked"))
    monkeypatch.setattr(rival_homes, "CHILD", Path(virtual_rivals.__file__))
    for module in (gpu_home, rival_homes):
        monkeypatch.setattr(module, "missing", lambda rival, given: None if rival.package in given else "not installed")

    def marlin(given: dict[str, str]) -> dict[int, str | float | None]:
        truth = time_kernels("tiny", MODEL.model_copy(update={"linears": SHAPES}), DEVICE, tmp_path / "cache", 120.0, None, given)
        timings = [one for one in truth.timings if (one.option, one.n) == (MARLIN, N) and one.m in DEFAULT_MS]
        return {one.m: one.time_s.median if one.time_s else one.refused for one in timings}

    assert set(marlin({}).values()) == {"not installed"}
    assert not (tmp_path / "asked").exists()
    assert marlin(pythons) == dict.fromkeys(DEFAULT_MS, virtual_rivals.SECONDS)
    assert {one.option: one.refused for one in probes_here(DEVICE, pythons)}[MARLIN] is None


def test_rows_of_the_gpu_are_judged_by_its_kernels(timed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`advisor runtimes --model M --device D`: INT8 and FP8 are cleared and twice as fast in decode, INT4 was never checked."""
    monkeypatch.setenv("QUANTADVISOR_CACHE", str(tmp_path / "cache"))
    (tmp_path / "config.json").write_text(json.dumps(NOMINAL))
    for module in (listings, device_choice):
        monkeypatch.setattr(module, "describe_device", lambda: CPU.model_copy(update={"gpus": DEVICE.gpus}))
    monkeypatch.setattr(listings, "sizes_of", lambda _: (tmp_path, MODEL.model_copy(update={"linears": SHAPES})))
    monkeypatch.setattr(listings, "probe_kernels", lambda *_, **__: ())
    monkeypatch.setattr(listings, "contrasts_here", lambda *_: ())
    monkeypatch.setattr(first_contact, "cleared", lambda kernels, *_: gpu_home.cleared(kernels, DEVICE))
    for name in ("torch", "triton"):
        monkeypatch.setattr(f"quantadvisor.profiling.runtimes.{name}.refuse", lambda *_: None)

    def listed(device: str) -> dict[str, str]:
        asked = listings.Asked("tiny", {"torch": sys.executable, "triton": sys.executable})
        rows = json.loads(listings.runtimes(asked, Quiet(), device).document)
        return {one["name"]: SchemeHere.model_validate(one).status for row in rows for one in row["schemes"]}

    for device in ("cuda:0", "auto"):
        found = listed(device)
        assert found["dynamic_int8-w8a8-bf16@triton"] == found["fp8-fp8-bf16@triton"] == "ready"
        assert found["gptq-w4-g64-bf16@triton"] == "not timed"
        assert found["llm_int8-w8a8-outlier-fp16@triton"] != "ready", "it has a second product"
        assert {"none-bf16@torch", "none-bf16@torch+cuda"} <= found.keys(), "what runs on the CPU is listed too"
    asked = timed.read_text().splitlines()
    assert f"w8a8 [1, {N}, {K}]" in asked and f"fp8 [1024, {N}, {K}]" in asked
    assert not any(line.startswith("w4a16") for line in asked)
    assert listed("cpu")["dynamic_int8-w8a8-bf16@triton"] == "not timed"
    assert timed.read_text().splitlines() == asked, "nothing of the GPU is timed for the CPU's rows"
    with pytest.raises(BadInput, match="--device: 'cuda:1' is not here"):
        listed("cuda:1")
