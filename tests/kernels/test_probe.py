"""The sweep's own logic against children that crash, hang or answer; the real runtimes once, at a toy size."""

import sys
import time
from pathlib import Path

import pytest

from quantadvisor.documents import CandidateFailed, Device, LinearShape
from quantadvisor.kernels import homes, point, timing_cache
from quantadvisor.kernels.cliffs import cliffs
from quantadvisor.kernels.probe import NOT_REACHED, probe_kernels
from quantadvisor.kernels.processes import ProbeProcess
from quantadvisor.kernels.timing import figure

CPU = Device(name="x", cores=2, threads=2, memory_bytes=1 << 34, fingerprint="f", last_level_cache_bytes=1 << 20)
SHAPES = [
    LinearShape(name="q_proj", n=48, k=64, count=4),
    LinearShape(name="lm_head", n=300, k=64, count=1, lm_head=True),
]

LISTENS = """import json, os, signal, sys
for request in map(json.loads, sys.stdin):
    if "import" in request:
        print("{}", flush=True)
        continue
    m = request["m"]
    samples = SAMPLES
    print(json.dumps({"timings": [{"samples": samples, "operator": "op"} for _ in request["shapes"]]}), flush=True)
"""
ANSWERS = LISTENS.replace("SAMPLES", "[0.002 * m**0.5, 0.004 * m**0.5, 0.003 * m**0.5]")
CLIFF = LISTENS.replace("SAMPLES", "[m * (0.1 if m >= 20 else 0.001)] * 5")
CRASHES = LISTENS.replace("SAMPLES", "os.kill(os.getpid(), signal.SIGSEGV)").replace(
    "m = request", 'print("bad tile", file=sys.stderr, flush=True); m = request'
)
HANGS = "import sys, time\nsys.stdin.readline()\ntime.sleep(60)"


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "child.py"
    monkeypatch.setattr(homes, "ProbeProcess", lambda threads, python: ProbeProcess(threads, path, python))
    return path


def test_a_crash_is_a_refusal_with_its_reason(child: Path) -> None:
    child.write_text(CRASHES)
    found = probe_kernels(SHAPES, [1], CPU, probes=["fp32_torch", "bf16_torch"], budget_s=20)
    assert len(found) == 4
    assert all(timing.time_s is None for timing in found)
    assert "SIGSEGV" in str(found[0].refused)
    assert "bad tile" in str(found[0].refused)
    assert not any("died 2 times" in str(timing.refused) for timing in found)
    more = probe_kernels([*SHAPES, SHAPES[0]], [1, 2], CPU, probes=["fp32_torch", "bf16_torch"], budget_s=20)
    twice = [timing for timing in more if "died 2 times, first: its process died at" in str(timing.refused)]
    assert {timing.probe for timing in twice} == {"fp32_torch", "bf16_torch"}, "a kernel's deaths are its own"


def test_a_runtime_of_another_interpreter_is_timed_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the interpreter: it answers as a child, and as one that is asked for versions."""
    (tmp_path / "child.py").write_text(ANSWERS)
    other = tmp_path / "python"
    asked = """echo '{"vllm": ["7", "a build"]}'"""
    other.write_text(f'#!/bin/sh\ncase "$*" in *installed*) {asked};; *) exec {sys.executable} {tmp_path}/child.py;; esac\n')
    other.chmod(0o755)
    monkeypatch.setattr(point.importlib.util, "find_spec", lambda name: None)  # not here
    options = {"probes": ["w8a8_vllm"], "budget_s": 20, "cache": tmp_path / "kept"}
    assert "make runtime-vllm" in str(probe_kernels(SHAPES, [1], CPU, **options)[0].refused)  # type: ignore[arg-type]
    found = probe_kernels(SHAPES, [1], CPU, pythons={"vllm": str(other)}, **options)  # type: ignore[arg-type]
    assert [timing.operator for timing in found] == ["op", "op"]
    assert len(list((tmp_path / "kept").iterdir())) == 2
    assert timing_cache.versions("vllm", str(other)) == {"vllm": "7"}


def test_a_hang_is_ended(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(HANGS)
    with ProbeProcess(1, tmp_path / "child.py") as process, pytest.raises(CandidateFailed, match="no answer"):
        process.ask({"probe": "x"}, timeout_s=0.5)


def test_budget_is_kept_and_said(child: Path) -> None:
    child.write_text(ANSWERS)
    started = time.monotonic()
    found = probe_kernels(SHAPES, [1, 8], CPU, probes=["fp32_torch"], budget_s=0, extra_ms=[4])
    assert time.monotonic() - started < 5
    assert [timing.refused for timing in found] == [NOT_REACHED] * 3


def test_points_heads_extras_and_cache(child: Path, tmp_path: Path) -> None:
    child.write_text(ANSWERS)
    seen: list[str] = []
    options = {"probes": ["fp32_torch", "bf16_onnxruntime"], "budget_s": 30, "cache": tmp_path / "cache"}
    found = probe_kernels(SHAPES, [512, 1], CPU, extra_ms=[8], progress=lambda i, n, what: seen.append(what), **options)  # type: ignore[arg-type]
    timed = [(timing.m, timing.n) for timing in found if timing.time_s]
    assert timed == [(1, 48), (8, 48), (512, 48), (1, 300)]
    assert found[0].time_s == figure([0.002, 0.004, 0.003], source="fp32_torch")
    assert found[0].operator == "op"
    refused = [timing for timing in found if timing.probe == "bf16_onnxruntime"]
    assert all("not available" in str(timing.refused) for timing in refused)
    assert len(seen) == 8
    child.write_text(CRASHES)
    crashed = {"probes": ["fp32_torch"], "budget_s": 30, "cache": tmp_path / "crashed"}
    first = probe_kernels(SHAPES, [1], CPU, **crashed)  # type: ignore[arg-type]
    assert all("SIGSEGV" in str(timing.refused) for timing in first)
    child.write_text(ANSWERS)
    assert probe_kernels(SHAPES, [1], CPU, **crashed) == first, "a crash of the same build is remembered"  # type: ignore[arg-type]
    child.write_text(CRASHES)
    again = probe_kernels(SHAPES, [512, 1], CPU, extra_ms=[8], **options)  # type: ignore[arg-type]
    assert [timing.time_s for timing in again] == [timing.time_s for timing in found]
    other = CPU.model_copy(update={"fingerprint": "g"})
    assert probe_kernels(SHAPES, [1], other, **options)[0].refused  # type: ignore[arg-type]


def test_points_that_are_clear_come_back_interpolated(child: Path, tmp_path: Path) -> None:
    """A child whose time is proportional to M, without noise: the ends tell all, and a second look says the same."""
    child.write_text(LISTENS.replace("SAMPLES", "[0.001 * m] * 5"))
    options = {"probes": ["fp32_torch"], "budget_s": 30, "cache": tmp_path}
    found = probe_kernels(SHAPES[:1], [1, 4, 16], CPU, extra_ms=[8], **options)  # type: ignore[arg-type]
    kinds = {timing.m: (timing.time_s.kind, timing.time_s.median) for timing in found if timing.time_s}
    assert kinds == {1: ("measured", 0.001), 4: ("modelled", pytest.approx(0.004)), 16: ("measured", 0.016)}
    assert len(list(tmp_path.glob("fp32_torch-*.json"))) == 2, "only what was timed is kept"
    child.write_text(CRASHES)
    assert probe_kernels(SHAPES[:1], [1, 4, 16], CPU, extra_ms=[8], **options) == found  # type: ignore[arg-type]


def test_what_was_kept_is_told_though_a_rival_makes_it_needless(child: Path, tmp_path: Path) -> None:
    """The slower kernel was timed before the faster one was known. A second look finds all of it, and starts no process even
    where one file is gone, since that M no longer matters."""
    child.write_text(LISTENS.replace("SAMPLES", "[(0.1 if 'fp32' in request['probe'] else 0.001) * m**0.5] * 5"))
    options = {"probes": ["fp32_torch", "bf16_torch"], "budget_s": 30, "cache": tmp_path}
    grid = [1, 4, 16, 64, 256, 1024]
    probe_kernels(SHAPES[:1], grid, CPU, **options)  # type: ignore[arg-type]
    next(tmp_path.glob("fp32_torch-*-m64-*")).unlink()
    child.write_text(CRASHES)
    again = probe_kernels(SHAPES[:1], grid, CPU, **options)  # type: ignore[arg-type]
    timed = [one.m for one in again if one.probe == "fp32_torch" and one.time_s and one.time_s.kind == "measured"]
    assert timed == [1, 4, 16, 256, 1024]
    assert not any(one.refused for one in again)


def test_what_fails_in_turns_is_asked_alone(child: Path) -> None:
    """An error at one (N, K) is not the others'."""
    child.write_text(
        LISTENS.replace("samples = SAMPLES", "samples = [0.002] * 3").replace(
            "    m = request",
            '    if any(s["n"] == 300 for s in request["shapes"]):\n'
            '        print(json.dumps({"refused": "ValueError: too wide"}), flush=True)\n        continue\n    m = request',
        )
    )
    found = probe_kernels(SHAPES, [1], CPU, probes=["fp32_torch"], budget_s=20)
    assert [(timing.n, timing.refused) for timing in found] == [(48, None), (300, "ValueError: too wide")]


def test_cliffs_are_searched_while_timing_and_kept(child: Path, tmp_path: Path) -> None:
    """A child whose products cost a hundred times more from M = 20 on; a second look starts no process."""
    child.write_text(CLIFF)
    options = {"probes": ["fp32_torch"], "budget_s": 30, "cache": tmp_path / "cache", "search_cliffs": True}
    found = probe_kernels(SHAPES[:1], [1, 16, 256], CPU, **options)  # type: ignore[arg-type]
    curve = {timing.m: timing.time_s for timing in found if timing.time_s}
    assert [(low, high) for low, high, _ in cliffs(curve)] == [(19, 20)]
    child.write_text(CRASHES)
    assert probe_kernels(SHAPES[:1], [1, 16, 256], CPU, **options) == found  # type: ignore[arg-type]
    next((tmp_path / "cache").glob("*-m20-*")).unlink()
    less = probe_kernels(SHAPES[:1], [1, 16, 256], CPU, **options)  # type: ignore[arg-type]
    assert 20 not in {timing.m for timing in less}
    assert not any(timing.refused for timing in less)


def test_an_absent_runtime_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(point.importlib.util, "find_spec", lambda name: None)
    found = probe_kernels(SHAPES, [1], CPU, probes=["w4_openvino"], budget_s=5)
    assert "pip install 'quantadvisor[openvino]'" in str(found[0].refused)


def test_real_runtimes_answer() -> None:
    names = ["fp32_torch", "w4_onnxruntime", "w8_openvino"]
    found = probe_kernels(SHAPES[:1], [1, 16], CPU, probes=names, budget_s=200)
    assert [timing.refused is None for timing in found] == [True] * 6 + [False] * 2
    assert "bf16 needs a CPU" in str(found[-1].refused)
    found = found[:6]
    assert {timing.operator.split()[0] for timing in found} == {"aten::linear", "MatMulNBits", "FullyConnected"}
    assert all(timing.time_s and timing.time_s.median < 1 for timing in found)
