"""Configurations are run, checked and timed by a timer that is made up: what is chosen, what is left out, what is kept."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantadvisor.documents import GpuState
from quantadvisor.kernels import triton_tuning
from quantadvisor.kernels.triton_launch import Tile
from quantadvisor.kernels.triton_tuning import Choice, configured, kept, tune

PROBLEM = ("w8a8", (1, 40, 192))
USUAL, WIDE, DEEP = Tile(16, 64, 128, 4, 4), Tile(16, 128, 128, 4, 3), Tile(16, 32, 256, 4, 3)
VERSIONS = {"triton": "3"}


class Timer:
    """Seconds by the beginning of a configuration's name, others take 10; remembers what it was given."""

    def __init__(self, **seconds: float) -> None:
        self.seconds, self.given = seconds, list[list[str]]()

    def __call__(self, calls: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, list[float]], dict[str, str]]:
        self.given.append(list(calls))
        found = {name: next((s for start, s in self.seconds.items() if name.startswith(start)), 10.0) for name in calls}
        return {name: [0.9 * one, one, 1.1 * one] * 5 for name, one in found.items()}, {}


IDLE = GpuState(readings=2, sm_mhz=(210, 210, 210), memory_mhz=405, power_w=30.0, temperature_c=31,
                memory_used_bytes=0, throttling=(), mig=False)  # fmt: skip


def idle(run: Callable[[], Choice]) -> tuple[Choice, GpuState | None]:
    """An observer that saw an idle GPU."""
    return run(), IDLE


@pytest.fixture(autouse=True)
def with_two_more_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTADVISOR_CACHE", str(tmp_path))
    monkeypatch.setattr(triton_tuning, "admitted", lambda kernel, sm: [WIDE, DEEP])


@pytest.mark.parametrize("kernel", ["w4a16-g64", "w8a16-g0", "w8a16-g32", "fp8"])
def test_every_product_can_be_timed(kernel: str) -> None:
    """The static choice gives right numbers on what it is timed with, under the name that its launch asks for."""
    found = choice(Timer(), (kernel, (1, 40, 192)))
    assert (found.time_s, found.usual_s) == (10.0, 10.0)
    assert all(not name.startswith(Tile(*found.tile).label) for name in found.left_out)


def choice(timer: Timer, problem: Any = PROBLEM) -> Choice:
    (found,) = tune([problem], "Made-up GPU", VERSIONS, 90, 8, timer, idle, on="cpu")
    return found


def test_the_fastest_is_chosen_kept_and_not_timed_again() -> None:
    timer = Timer(**{WIDE.label: 2.0, DEEP.label: 3.0})
    found = choice(timer)
    assert (Tile(*found.tile), found.time_s, found.usual_s) == (WIDE, 2.0, 10.0)
    assert found.splits in (1, 2) and found.left_out == {}
    assert {name.split("-k")[0] for name in timer.given[0]} == {USUAL.label, WIDE.label, DEEP.label}
    assert choice(timer) == found == kept("Made-up GPU", VERSIONS)[0]
    assert found.gpu == IDLE
    assert len(timer.given) == 1
    other = tune([PROBLEM, ("w8a8", (16, 40, 192))], "Made-up GPU", VERSIONS, 90, 8, timer, idle, on="cpu")
    assert len(timer.given) == 2
    assert kept("Made-up GPU", VERSIONS) == other


def test_what_is_faster_within_noise_is_not() -> None:
    found = choice(Timer(**{WIDE.label: 9.5}))
    assert (Tile(*found.tile), found.time_s) == (USUAL, 10.0)


def test_what_is_wrong_or_does_not_launch_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = triton_tuning.subject_of

    def planted(*given: Any) -> Any:
        subject = real(*given)

        def run() -> Any:
            tile = triton_tuning.forced.get()[1][0]  # type: ignore[index]
            if tile == DEEP:
                raise RuntimeError("out of resource: shared memory")
            return subject.run() * (2 if tile == WIDE else 1)

        return replace(subject, run=run)

    monkeypatch.setattr(triton_tuning, "subject_of", planted)
    timer = Timer(**{WIDE.label: 1.0, DEEP.label: 1.0})
    found = choice(timer)
    assert Tile(*found.tile) == USUAL
    assert all(name.startswith(USUAL.label) for name in timer.given[0])
    reasons = {name.split("-k")[0]: reason for name, reason in found.left_out.items()}
    assert "times what the formats allow" in reasons[WIDE.label]
    assert reasons[DEEP.label] == "RuntimeError: out of resource: shared memory"


def test_where_nothing_can_be_timed_the_static_choice_stands_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise MemoryError("CUDA out of memory")

    monkeypatch.setattr(triton_tuning, "subject_of", full)
    timer = Timer()
    found = choice(timer)
    assert (Tile(*found.tile), found.time_s, found.usual_s, timer.given) == (USUAL, None, None, [])
    assert set(found.left_out.values()) == {"MemoryError: CUDA out of memory"}
    assert choice(timer) == found  # and is not tried again


def test_a_configuration_is_what_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the number of programs: N = 40 in tiles of 32 takes two, K = 192 in one part."""
    from quantadvisor.kernels import triton_w8a8

    grids = []
    run = triton_w8a8.w8a8_kernel.run
    monkeypatch.setattr(triton_w8a8.w8a8_kernel, "run", lambda *a, grid, **k: (grids.append(grid), run(*a, grid=grid, **k)))
    with configured("w8a8", DEEP, 1):
        triton_tuning.subject_of(*PROBLEM, "cpu").run()
    assert grids == [(2, 1, 1)]


def test_attention_has_its_tile_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_tuning, "TOKENS", 150)
    monkeypatch.setattr(triton_tuning, "admitted", lambda kernel, sm: [Tile(16, 128, 64, 8, 2), Tile(16, 128, 128, 8, 2)])
    found = choice(Timer(**{"16x128x64": 1.0}), ("decode-attention-int8", (2, 3, 64)))
    assert (found.tile, found.splits, found.tried) == ((16, 128, 64, 8, 2), None, 2)
