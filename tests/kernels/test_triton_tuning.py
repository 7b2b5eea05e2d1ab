"""Which configurations are tried on a device, and what is remembered. Choosing by time: interpreted/check_tuning.py."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantadvisor.kernels import triton_tuning
from quantadvisor.kernels.triton_compile import GOLDEN, TARGETS, TRIED, broken_rules
from quantadvisor.kernels.triton_launch import Tile, planned
from quantadvisor.kernels.triton_tuning import Choice, Choices, admitted, chosen, configurations, configured, kept, rounded

VERSIONS = {"torch": "2", "triton": "3"}
GPU, CPU = SimpleNamespace(is_cuda=True), SimpleNamespace(is_cuda=False)
WIDE = Tile(16, 128, 128, warps=4, stages=3)
CHOICE = Choice(
    kernel="w8a8", sizes=(16, 512, 1024), tile=(16, 128, 128, 4, 3), splits=2, time_s=1.0, usual_s=2.0, tried=9, left_out={}
)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTADVISOR_CACHE", str(tmp_path))


def keep(**change: Any) -> Path:
    given: dict[str, Any] = {"versions": VERSIONS, "table": triton_tuning.table_mark()} | change
    path = triton_tuning.place("Made-up GPU, sm_90", "tuning")
    path.parent.mkdir(parents=True, exist_ok=True)
    Choices(device="Made-up GPU, sm_90", choices=(CHOICE,), **given).write(path)
    return path


def test_a_choice_belongs_to_a_device_its_versions_and_a_golden_table() -> None:
    path = keep()
    assert kept("Made-up GPU, sm_90", VERSIONS) == (CHOICE,)
    assert kept("Made-up GPU, sm_89", VERSIONS) == ()
    assert kept("Made-up GPU, sm_90", VERSIONS | {"triton": "4"}) == ()
    keep(table="another")
    assert kept("Made-up GPU, sm_90", VERSIONS) == ()
    path.write_text("{")
    assert kept("Made-up GPU, sm_90", VERSIONS) == ()


def test_a_launch_takes_what_was_chosen_for_the_next_larger_m(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_tuning, "on_this_gpu", lambda: {("w8a8", (16, 512, 1024)): (WIDE, 2)})
    assert chosen("w8a8", (5, 512, 1024), GPU) == (WIDE, 2)
    assert [chosen(*one) for one in (("w8a8", (1, 512, 1024), GPU), ("w8a8", (17, 512, 1024), GPU), ("fp8", (5, 512, 1024), GPU),
                                     ("w8a8", (5, 512, 1025), GPU), ("w8a8", (5, 512, 1024), CPU))] == [None] * 5  # fmt: skip
    usual = Tile(16, 64, 128)
    assert planned("w8a8", GPU, (5, 512, 1024), usual, None, None) == (WIDE, (4, 1, 2))
    assert planned("w8a8", GPU, (5, 512, 1024), usual, usual, 3) == (usual, (8, 1, 3))  # what the caller says goes first
    assert planned("w8a8", GPU, (5, 512, 1024), usual, None, 3) == (usual, (8, 1, 3))
    assert [rounded((m, 2, 3))[0] for m in (1, 2, 16, 65, 4096, 9999)] == [1, 16, 16, 512, 4096, 4096]


def test_what_is_being_timed_goes_first_and_only_for_its_kernel() -> None:
    with configured("w8a8", WIDE, 3):
        assert chosen("w8a8", (1, 2, 3), CPU) == (WIDE, 3)
        assert chosen("fp8", (1, 2, 3), CPU) is None
        assert planned("w8a8", CPU, (1, 256, 1024), Tile(16, 64, 128), None, None) == (WIDE, (2, 1, 3))
    assert chosen("w8a8", (1, 2, 3), CPU) is None


def test_only_what_the_table_has_for_the_target_and_breaks_no_rule(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = json.loads(GOLDEN.read_text(encoding="utf-8"))["kernels"]
    name = next(one for one in whole if one.startswith(f"{TRIED}w8a8/") and one.endswith("sm_90"))
    fine = {**whole[name], "spills": 0, "stack_bytes": 0, "shared_bytes": 1024}
    assert broken_rules(name, fine) == []
    made = {
        "tried/w8a8/16x32x128-w4-s3/sm_90": fine,
        "tried/w8a8/16x64x256-w4-s3/sm_90": {**fine, "spills": 2},
        "tried/w8a8/16x128x256-w4-s3/sm_90": {**fine, "shared_bytes": 300 << 10},
        "tried/w8a8/16x64x64-w4-s3/sm_90": {**fine, "matrix": {"FFMA": 8}},
        "tried/w8a8/16x256x128-w4-s3/sm_89": fine,
        "tried/fp8/32x32x128-w4-s3/sm_90": fine,
        "w8a8/m1/sm_90": fine,
    }
    table = tmp_path / "golden.json"
    table.write_text(json.dumps({"kernels": made}))
    monkeypatch.setattr(triton_tuning, "GOLDEN", table)
    assert admitted("w8a8", 90) == [Tile(16, 32, 128, 4, 3)]


@pytest.mark.parametrize("sm", TARGETS)
def test_every_target_has_something_to_try(sm: int) -> None:
    grouped = [f"{kind}-g{group}" for kind in ("w4a16", "w8a16") for group in (32, 64, 128)]
    kernels = ["w8a8", "w8a16-g0", *grouped, *(["fp8"] if sm >= 89 else [])]
    for kernel in kernels:
        found = configurations(kernel, (1, 4096, 4096), sm, 132)
        assert len(found) == len(set(found)) > 2, kernel
        assert all(tile.m == 16 and splits for tile, splits in found)
        assert len({tile for tile, _ in configurations(kernel, (512, 4096, 4096), sm, 132)}) > 1, kernel
    assert configurations("decode-attention-turbo", (16, 4, 64), sm, 132)[0][0].k == 64
    assert {tile.k for tile, _ in configurations("decode-attention-turbo", (16, 4, 128), sm, 132)} == {128}


def test_what_spills_is_in_the_table_and_is_not_tried() -> None:
    """Found by compiling: 128 columns of groups of 128 with zero points take more registers than sm_90 gives a thread."""
    whole = json.loads(GOLDEN.read_text(encoding="utf-8"))["kernels"]
    spilling = [name for name in whole if name.startswith(f"{TRIED}w4a16-g128/16x128x128") and whole[name]["spills"]]
    assert spilling
    for name in spilling:
        assert Tile(16, 128, 128, 4, 3) not in admitted("w4a16-g128", int(name.rsplit("_", 1)[1]))


def test_parts_of_k_stay_within_its_steps() -> None:
    """K = 192 in steps of 128: two steps, so one part and two."""
    assert {splits for _, splits in configurations("w8a8", (1, 64, 192), 90, 132)} <= {1, 2}
