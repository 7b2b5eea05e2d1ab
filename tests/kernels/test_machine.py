"""What a container leaves of the machine."""

from pathlib import Path

import pytest

from quantadvisor.kernels import machine


def test_cgroup_limits_up_to_the_root(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    values = list(machine._cgroup_values("cpu", "cpu.max", "cpu.cfs_quota_us", root=tmp_path))
    assert set(values) <= {"150000 100000"}


def test_quota_is_rounded_down_to_whole_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cgroup_values", lambda *_: ["150000 100000", "max 100000", "-1"])
    assert machine._cpu_quotas() == [1.5]
    assert machine.usable_cores() == 1


def test_a_process_may_use_most_of_the_memory_that_the_container_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cgroup_values", lambda *_: ["max", str(100 << 20)])
    assert machine.usable_memory() == 100 << 20
    assert machine.process_memory() == 80 << 20
