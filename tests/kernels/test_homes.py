"""What is asked of a runtime's process, and what its failures count as."""

import sys
import time
from pathlib import Path

import pytest

from quantadvisor.documents import Device, LinearShape
from quantadvisor.kernels import homes
from quantadvisor.kernels.homes import Home
from quantadvisor.kernels.point import Kernel, Point
from quantadvisor.kernels.processes import ProbeProcess, crashed
from quantadvisor.kernels.registry import PROBES

CPU = Device(name="x", cores=2, threads=2, memory_bytes=1 << 34, fingerprint="f", last_level_cache_bytes=1 << 20)
KERNEL = Kernel("fp32_torch", PROBES["fp32_torch"], "")
POINTS = [Point(KERNEL, LinearShape(name=str(n), n=n, k=64, count=1), 1) for n in (8, 16)]
HANGS = "import time\ntime.sleep(60)"
DIES = "import os, signal, sys\nsys.stdin.readline()\nos.kill(os.getpid(), signal.SIGSEGV)"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home whose process is the child that the test writes."""
    child = tmp_path / "child.py"
    monkeypatch.setattr(homes, "ProbeProcess", lambda threads, python: ProbeProcess(threads, child, python))
    return Home("torch", CPU, cache=tmp_path / "kept")


def test_a_crash_is_found_point_by_point_counted_and_kept(home: Home, tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(DIES)
    with home:
        found = home.take(POINTS, time.monotonic() + 60)
        assert all("SIGSEGV" in str(one.refused) for one in found)
        assert "died 2 times, first: " in str(home.refusal(POINTS[0]))
        assert len(list((tmp_path / "kept").iterdir())) == 2


def test_without_time_for_that_a_crash_is_nobody_s_in_particular(home: Home, tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(DIES)
    with home:
        found = home.take(POINTS, time.monotonic())
        assert all("SIGSEGV" in str(one.refused) for one in found)
        assert home.refusal(POINTS[0]) is None, "one death"
        assert not (tmp_path / "kept").exists()


def test_a_hang_ends_and_counts(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes, "GRACE_S", 0.2)
    (tmp_path / "child.py").write_text(HANGS)
    with home:
        started = time.monotonic()
        for _ in range(2):
            assert all("no answer within" in str(one.refused) for one in home.take(POINTS, time.monotonic()))
        assert "died 2 times" in str(home.take(POINTS, time.monotonic())[0].refused)
        assert time.monotonic() - started < 30


def test_a_failed_import_is_left_to_the_points(home: Home, tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text("raise SystemExit(3)")
    with home:
        home.begin_import()
        home.end_import(time.monotonic() + 60)
        assert "exit status 3" in str(home.take(POINTS[:1], time.monotonic() + 60)[0].refused)
    assert not (tmp_path / "kept").exists(), "no crash of the kernel's"


def test_a_module_that_its_interpreter_lacks_is_named_with_its_command(home: Home, tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text("import sys\nsys.stdin.readline()\nimport none_such.part")
    with home:
        refused = str(home.take(POINTS[:1], time.monotonic() + 60)[0].refused)
    assert refused.endswith(f"No module named 'none_such': {sys.executable} -m pip install none_such")
    assert not crashed(refused) and not (tmp_path / "kept").exists()
