"""`make bench-gate`: what it plants, what it counts, what it counts against the bars. The gates themselves are real runs."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
MARK = {"code": "c", "device": "d", "versions": {"onnxruntime": "1"}, "commit": "x"}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/gate_bench.py, which finds its neighbours in its own folder."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("gate_bench", "slowed_runtime", "gate_artifact"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("gate_bench", ROOT / "benchmarks" / "gate_bench.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def line(bench: ModuleType, kind: str = "A/A", state: str = "pass", **more: Any) -> Any:
    data = {
        "kind": kind, "state": state, "regressed": ("tpot_s",) if state == "regression" else (), "blocks": 12, "rejected": 0,
        "ratios": {"tpot_s": (1, 0.9, 1.1)}, "effect": 0.05 if kind == "planted" else None, "void": False, "seconds": 50.0,
        "whole_s": 70.0, "notes": (), "at": "now", "seed": 1,
    }  # fmt: skip
    return bench.Line.model_validate(data | MARK | more)


class Clock:
    """Each reading takes 2 µs; a real decode takes 10 ms, and 20 ms every third time."""

    now, decoded = 0.0, 0

    def perf_counter(self) -> float:
        self.now += 2e-6
        return self.now

    def decode(self, tokens: Any) -> Any:
        self.decoded += 1
        self.now += 0.02 if self.decoded % 3 == 0 else 0.01
        return tokens

    def prefill(self, tokens: Any, capacity: int) -> str:
        return "prefilled"


@pytest.mark.parametrize("share", [0.05, 0.20])
def test_what_is_planted_is_measured(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    clock, slowed = Clock(), bench.slowed_runtime
    monkeypatch.setattr(slowed, "time", clock)
    session = slowed.SlowedSession(clock, share, tmp_path)
    assert session.prefill(None, 8) == "prefilled"  # the rest is the real session's
    assert [session.decode(i) for i in range(30)] == list(range(30))
    assert slowed.planted(tmp_path) == pytest.approx(share, rel=0.01)
    assert clock.now == pytest.approx(0.4 * (1 + share), rel=0.01)
    (tmp_path / "none").mkdir()
    assert slowed.planted(tmp_path / "none") == 0.0


def test_void_gates_are_repeated_and_both_kinds_keep_pace(bench: ModuleType) -> None:
    lines: list[Any] = []
    for _ in range(60):
        kind = bench.next_kind(lines)
        void = kind == "planted" and len(lines) % 7 == 0
        lines.append(line(bench, kind, void=void))
    counts = {kind: len(bench.counted(lines, kind)) for kind in bench.WANTED}
    assert abs(counts["A/A"] / 60 - counts["planted"] / 40) <= 1 / 40
    lines += [line(bench, kind) for kind, wanted in bench.WANTED.items() for _ in range(wanted)]
    assert bench.next_kind(lines) is None


def test_lines_of_other_code_are_not_counted(bench: ModuleType) -> None:
    assert bench.same(line(bench), MARK)
    assert bench.same(line(bench, commit="y"), MARK)
    for name, other in (("code", "z"), ("device", "z"), ("versions", {"onnxruntime": "2"})):
        assert not bench.same(line(bench, **{name: other}), MARK)


def all_of(bench: ModuleType, alarms: int = 0, missed: int = 0, undecided: int = 0, seconds: float = 50.0) -> list[Any]:
    aa = ["regression"] * alarms + ["inconclusive"] * undecided
    planted = ["pass"] * missed
    made = [line(bench, "A/A", state, seconds=seconds) for state in [*aa, *["pass"] * (60 - len(aa))]]
    return made + [line(bench, "planted", state, seconds=seconds) for state in [*planted, *["regression"] * (40 - len(planted))]]


@pytest.mark.parametrize(
    ("faults", "holds"),
    [
        ({}, True),
        ({"alarms": 1, "missed": 2, "undecided": 6, "seconds": 90.0}, True),
        ({"alarms": 2}, False),
        ({"missed": 3}, False),
        ({"undecided": 7}, False),
        ({"seconds": 91.0}, False),
    ],
)
def test_the_bars(bench: ModuleType, faults: dict[str, Any], holds: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.summary(all_of(bench, **faults)) is holds
    assert ("**no**" in capsys.readouterr().out) is not holds


def test_a_regression_of_something_else_does_not_count_as_caught(bench: ModuleType) -> None:
    lines = all_of(bench)
    lines[-3:] = [line(bench, "planted", "regression", regressed=("ttft_s",))] * 3
    assert bench.summary(lines) is False


def test_clopper_pearson_is_the_papers(bench: ModuleType) -> None:
    """0 of n: 1 − (α/2)^(1/n), in closed form; and their table's 10 of 20."""
    assert bench.clopper_pearson(0, 60) == (0.0, pytest.approx(1 - 0.025 ** (1 / 60)))
    low, high = bench.clopper_pearson(10, 20)
    assert (low, high) == (pytest.approx(0.272, abs=5e-4), pytest.approx(0.728, abs=5e-4))
    assert bench.clopper_pearson(0, 0) == (0.0, 1.0)


def test_a_rerun_goes_on(bench: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "gates.jsonl"
    assert list(bench.read_lines(file)) == []
    for _ in range(2):
        bench.append(file, line(bench))
    assert [bench.Line.model_validate_json(text) for text in bench.read_lines(file)] == [line(bench)] * 2
