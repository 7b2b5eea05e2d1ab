"""Modelled times by hand, and beside what others measured: a model of compiled code, of kernels that never ran on a GPU."""

import re
from typing import Any

import pytest

from quantadvisor.kernels import triton_model
from quantadvisor.kernels.gpu_devices import gpus
from quantadvisor.kernels.triton_compile import TRIED, main_loop, operations_of
from quantadvisor.kernels.triton_model import Launch, modelled, steps_an_iteration

A100 = gpus()["a100_sxm"]
CLOCK = 312e12 / (108 * 2048)
ENTRY: dict[str, Any] = {
    "matrix": {"HMMA.16816.F32.BF16": 16},
    "warps": 4,
    "blocks_per_sm": 2,
    "shared_bytes": 40960,
    "instructions": 1000,
    "loop_instructions": 400,
    "loop_matrix": 16,
}
STEP = 2.0 * 16 * 64 * 128
"""One step of a tile of 16 x 64 over 128: 16 instructions of 4 warps, 4,096 operations each."""


def test_the_clock_that_follows_is_the_data_sheets() -> None:
    found = {name: gpus()[name].flops_per_s["bf16"] / (sms * rate) / 1e9 for name, (sms, rate) in triton_model.PROCESSORS.items()}
    assert {name: round(clock, 1) for name, clock in found.items()} == {
        "a100_sxm": 1.4, "h100_sxm": 1.8, "h200_sxm": 1.8, "l40s": 2.5, "b200_sxm": 1.9, "rtx_pro_6000_server": 2.4,
    }  # fmt: skip


def test_each_part_by_hand() -> None:
    """216 programs of 10 steps: 2 a multiprocessor, all busy; 108 x 2 x 40 KiB in flight is more than the bandwidth asks for."""
    found = modelled(A100, ENTRY, Launch(216, 10, STEP, 2.039e9, "bf16", 1))
    assert found.memory_s == pytest.approx(1e-3)
    assert found.matrix_s == pytest.approx(216 * 10 * STEP / 312e12)
    assert found.issue_s == pytest.approx(216 * 4 * (600 + 10 * 400) / (108 * 4 * CLOCK))
    assert found.bound == "memory"
    assert found.seconds == pytest.approx(1e-3 + 1.5e-6)


def test_half_the_multiprocessors_are_half_as_fast() -> None:
    all_busy, half_busy = (modelled(A100, ENTRY, Launch(n, 10, STEP, 1e6, "bf16", 1)) for n in (108, 54))
    assert half_busy.matrix_s == pytest.approx(all_busy.matrix_s)
    tail = modelled(A100, ENTRY, Launch(109, 10, STEP, 1e6, "bf16", 1))
    assert tail.matrix_s == pytest.approx(2 * all_busy.matrix_s)


def test_what_is_not_in_flight_cannot_arrive() -> None:
    """One block of 8 KiB on each multiprocessor: 108 x 8 KiB every 600 ns is 1.47 TB/s of the A100's 2.04."""
    small = ENTRY | {"shared_bytes": 8192, "blocks_per_sm": 1}
    found = modelled(A100, small, Launch(108, 10, STEP, 1e9, "bf16", 1))
    assert found.memory_s == pytest.approx(1e9 * 600e-9 / (108 * 8192))


def test_what_nothing_fetches_ahead_is_waited_for() -> None:
    """54 programs that each wait 8 times, all at once: 8 latencies, and of 432 programs, 2 of them a multiprocessor, 16."""
    for programs, latencies in ((54, 8), (432, 16)):
        found = modelled(A100, ENTRY, Launch(programs, 16, STEP, 1e5, "bf16", 1, waits=8))
        assert found.memory_s == pytest.approx(latencies * 600e-9)


def test_two_kinds_of_products_halve_the_operations() -> None:
    found = modelled(A100, ENTRY, Launch(108, 10, 2 * STEP, 1e6, "int8+bf16", 1))
    assert found.matrix_s == pytest.approx(108 * 10 * (STEP / 624e12 + STEP / 312e12))


def test_an_unrolled_loop_runs_half_as_often() -> None:
    assert steps_an_iteration(ENTRY, STEP) == 1
    assert steps_an_iteration(ENTRY | {"loop_matrix": 32}, STEP) == 2
    assert steps_an_iteration(ENTRY | {"matrix": {"UTCHMMA": 8}, "loop_matrix": 8}, STEP) == 1


@pytest.mark.parametrize(
    ("name", "warps", "operations"),
    [
        ("HMMA.16816.F32.BF16", 4, 4 * 4096),
        ("IMMA.16832.S8.S8.SAT", 4, 4 * 8192),
        ("HGMMA.64x64x16.F32.BF16", 4, 2 * 64 * 64 * 16),
        ("QGMMA.64x128x32.F32.E4M3.E4M3", 8, 2 * 2 * 64 * 128 * 32),
        ("UTCHMMA", 4, 0),
    ],
)
def test_operations_of_an_instruction(name: str, warps: int, operations: int) -> None:
    assert triton_model.operations_of(name, warps) == operations


def test_beside_what_others_measured() -> None:
    """Nothing is fitted, so the bound is wide: our code is another's, but within a factor of 3 or a unit is wrong."""
    found = list(triton_model.rows())
    assert {row.gpu for row in found} == set(triton_model.PROCESSORS)
    beside = [row for row in found if row.ratio]
    assert {row.kernel.split("/")[0] for row in beside} == {"w4a16", "w8a16", "w8a8", "fp8", "decode-attention"}
    assert not any("int4" in row.kernel or "turbo" in row.kernel for row in beside)
    assert {row.like for row in found if not row.published} == {"none published", "not in our extract"}
    for row in beside:
        assert 1 / 3 < (row.ratio or 0) < 3, row
    for row in found:
        if "N 8192, K 8192" in row.shape and row.kernel.startswith("w4a16"):
            weights = 8192 * 8192 * (0.5 + 2 / 128)
            assert row.ours.memory_s >= weights / gpus()[row.gpu].read_bytes_per_s


def test_every_kernel_of_the_golden_table_has_a_modelled_time() -> None:
    """But what ends another kernel's work, and is counted with it, and the asymmetric variant of one."""

    def kernel(name: str) -> str:
        return re.sub(r"[-/](?:(?:g|m|d|sm_|block)\d|channel|fp16|fp32).*", "", name)

    compiled = {kernel(name) for name in triton_model.golden() if not name.startswith(TRIED)}
    counted_elsewhere = {"launch/add-splits", "decode-attention/join", "dequantize/asymmetric"}
    assert counted_elsewhere < compiled
    assert {kernel(row.kernel) for row in triton_model.rows()} == compiled - counted_elsewhere


def test_the_stored_table_is_what_the_code_makes() -> None:
    stored = triton_model.PAGE.read_text(encoding="utf-8")
    assert stored == triton_model.page(), "make it: python -m quantadvisor.kernels.triton_model --write"


CODE = """
        /*0000*/                   S2R R63, SR_CTAID.X ;
.L_x_0:
        /*0010*/                   LDG.E R1, [R2] ;
.L_x_1:
        /*0020*/                   HMMA.16816.F32.BF16 R24, R24, R28, RZ ;
        /*0030*/               @P0 FADD R1, R2, R3 ;
        /*0040*/               @P1 BRA `(.L_x_1) ;
        /*0050*/               @P2 BRA `(.L_x_0) ;
.L_x_2:
        /*0060*/                   FADD R1, R2, R3 ;
        /*0070*/                   FADD R1, R2, R3 ;
        /*0080*/                   FADD R1, R2, R3 ;
        /*0090*/               @P2 BRA `(.L_x_2) ;
        /*00a0*/                   BRA `(.L_x_4) ;
.L_x_4:
        /*00b0*/                   EXIT ;
.L_x_5:
        /*00c0*/                   BRA `(.L_x_5);
"""


def test_the_main_loop_is_the_innermost_with_the_matrix_instructions() -> None:
    assert operations_of(main_loop(CODE.splitlines())) == ["HMMA.16816.F32.BF16", "FADD", "BRA"]
    plain = CODE.replace("HMMA.16816.F32.BF16", "FFMA")
    assert operations_of(main_loop(plain.splitlines())) == ["FADD", "FADD", "FADD", "BRA"]
    assert main_loop(["        /*0000*/                   EXIT ;"]) == ()
