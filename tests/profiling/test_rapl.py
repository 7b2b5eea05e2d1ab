"""RAPL counters over a tree of files as the kernel has them."""

from pathlib import Path

import pytest

from quantadvisor.profiling.rapl import counters, joules_between


def package(root: Path, name: str, energy_uj: int, largest: int = 1_000_000_000) -> None:
    (root / name).mkdir(exist_ok=True)
    (root / name / "energy_uj").write_text(f"{energy_uj}\n")
    (root / name / "max_energy_range_uj").write_text(f"{largest}\n")


def test_packages_are_summed_and_their_parts_are_not(tmp_path: Path) -> None:
    for name, start in (("intel-rapl:0", 5_000_000), ("intel-rapl:1", 0), ("intel-rapl:0:0", 0), ("dtpm", 0)):
        package(tmp_path, name, start)
    before = counters(tmp_path)
    assert set(before) == {"intel-rapl:0", "intel-rapl:1"}
    package(tmp_path, "intel-rapl:0", 7_500_000)
    package(tmp_path, "intel-rapl:1", 1_000_000)
    package(tmp_path, "intel-rapl:0:0", 9_000_000)
    assert joules_between(before, counters(tmp_path)) == pytest.approx(3.5)


def test_a_counter_that_started_again(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", 9_000_000, largest=10_000_000)
    before = counters(tmp_path)
    package(tmp_path, "intel-rapl:0", 2_000_000, largest=10_000_000)
    assert joules_between(before, counters(tmp_path)) == pytest.approx(3.0)


def test_what_cannot_be_read_is_none_and_not_nought(tmp_path: Path) -> None:
    assert counters(tmp_path / "nowhere") == {}
    assert joules_between({}, {}) is None
    package(tmp_path, "intel-rapl:0", 1)
    (tmp_path / "intel-rapl:1").mkdir()  # no counter in it
    assert counters(tmp_path) == {}
