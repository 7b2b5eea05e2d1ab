"""What the compiler makes of the Triton kernels for five NVIDIA targets, against the golden table. Nothing runs on a GPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quantadvisor.kernels.triton_compile import (
    GOLDEN,
    MODULES,
    TARGETS,
    TRIED,
    Target,
    blocks_per_sm,
    broken_rules,
    differences,
)

ROOT = Path(__file__).resolve().parent.parent.parent
TABLE = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {"kernels": {}}
EVERY: dict[str, dict[str, Any]] = TABLE["kernels"]
KERNELS = {name: entry for name, entry in EVERY.items() if not name.startswith(TRIED)}
"""What is launched; the others are configurations that timing may choose, where they break no rule."""

ENTRY: dict[str, Any] = {
    "needs": "bf16",
    "matrix": {"HMMA.16816.F32.BF16": 16},
    "registers": 96,
    "spills": 0,
    "stack_bytes": 0,
    "shared_bytes": 24576,
    "warps": 4,
    "blocks_per_sm": 3,
    "occupancy": 0.25,
    "instructions": 776,
}
"""Made up, for the rules."""

SAMPLE = (
    r"w4a16/g64-m(1|512)/sm_90|w8a8/m1/sm_80|w8a16/channel-m1/sm_120|codebook/g64-m1/sm_89"
    r"|int4-d128-gqa4/sm_80|fp8/m64/sm_100|launch/add-splits/sm_90|dequantize/codebook-g64/sm_90"
    r"|hadamard/int4-block64/sm_120|llm-int8/m512/sm_90"
    r"|(fp8|turbo)-d64-gqa3/sm_80|llm-int8/m1-fp16/sm_90"
)
"""Every kernel and every target once, at least."""


def compiled(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: triton's interpreter and its compiler exclude each other; the cache is new."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "quantadvisor.kernels.triton_compile", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": paths},
    )


def test_the_golden_table_is_there() -> None:
    assert GOLDEN.exists(), "make it: python -m quantadvisor.kernels.triton_compile --write"


def test_a_sample_compiles_to_the_golden_code(tmp_path: Path) -> None:
    done = compiled(tmp_path, "--only", SAMPLE)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "14 compilations" in done.stdout


@pytest.mark.runtime  # seven minutes: with the heavy runtimes, before `make test`
def test_everything_compiles_to_the_golden_code(tmp_path: Path) -> None:
    """What is launched, and what timing may choose: a configuration that begins to break a rule differs from its entry."""
    done = compiled(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert f"{len(EVERY)} compilations, 0 faults" in done.stdout


@pytest.mark.runtime
def test_everything_compiles_for_gfx942(tmp_path: Path) -> None:
    done = compiled(tmp_path, "--amd")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == f"{len({name.split('/sm_')[0] for name in KERNELS})} kernels compile for gfx942\n"


@pytest.mark.parametrize("name", KERNELS)
def test_the_golden_table_breaks_no_rule(name: str) -> None:
    assert broken_rules(name, KERNELS[name]) == []


CASES = """
import json
from quantadvisor.kernels.triton_compile import TARGETS, cases
found = {f"{one.name}/sm_{sm}": one for sm in TARGETS for one in cases(sm)}
made = {name: [one.kernel.fn.__module__, one.kernel.fn.__name__, list(one.signature.values())] for name, one in found.items()}
print(json.dumps(made))
"""


@pytest.fixture(scope="module")
def cases() -> dict[str, tuple[str, str, list[str]]]:
    """name/sm_90 -> (module, kernel, types of its arguments) of what is compiled. In a process of its own, as above."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    environment["PYTHONPATH"] = str(ROOT / "src")
    done = subprocess.run([sys.executable, "-c", CASES], capture_output=True, text=True, env=environment, check=True)
    return {name: (module.rpartition(".")[2], kernel, kinds) for name, (module, kernel, kinds) in json.loads(done.stdout).items()}


def written() -> set[tuple[str, str]]:
    """(module, kernel) of every `@triton.jit` function that is launched: their names end so; the others are called by these."""
    launched = re.compile(r"^@triton\.jit.*\ndef (\w+_kernel)\(", re.MULTILINE)
    files = (ROOT / "kernels").glob("*.py")
    return {(file.stem, name) for file in files for name in launched.findall(file.read_text(encoding="utf-8"))}


def test_every_kernel_is_there_for_every_target(cases: dict[str, tuple[str, str, list[str]]]) -> None:
    assert set(cases) == set(KERNELS)
    assert {module for module, _ in written()} == set(MODULES)
    for sm in TARGETS:
        assert {one[:2] for name, one in cases.items() if name.endswith(f"/sm_{sm}")} == written(), sm
    kernels = {name.split("/sm_")[0] for name in EVERY}
    missing = {f"{kernel}/sm_{sm}" for kernel in kernels for sm in TARGETS} - set(EVERY)
    assert missing == {name for name in missing if name.startswith(("fp8/", f"{TRIED}fp8/")) and name.endswith("sm_80")}


def test_every_kernel_is_there_in_both_16_bit_types(cases: dict[str, tuple[str, str, list[str]]]) -> None:
    """Of each family of names that it has: the INT8 and the FP8 product are one kernel."""
    of = {kind: {(one[1], name.split("/")[0]) for name, one in cases.items() if kind in one[2]} for kind in ("*bf16", "*fp16")}
    assert of["*bf16"] == of["*fp16"]


def test_what_is_tried_names_its_tile() -> None:
    """Its name tells its tile: m x n x k, warps, stages; most of them compile without breaking a rule."""
    tried = [name for name in EVERY if name.startswith(TRIED)]
    assert all(re.fullmatch(r"tried/[a-z0-9-]+/\d+x\d+x\d+-w[48]-s[1-4]/sm_\d+", name) for name in tried)
    assert sum(not broken_rules(name, EVERY[name]) for name in tried) > len(tried) / 2


PLANTED = """
import sys
from dataclasses import replace
from quantadvisor.kernels import triton_compile, triton_w8a8
from quantadvisor.kernels.triton_launch import Tile
triton_w8a8.tile_for = lambda m, sm: Tile(16, 64, 128, warps=4, stages=4)
case = next(one for one in triton_w8a8.cases(90) if one.name == "fp8/m64")
name = case.name + "/sm_90"
entry = triton_compile.compiled(case, 90)
print(*triton_compile.broken_rules(name, entry), sep="\\n")
"""


def test_a_tile_that_loses_the_fp8_instruction_is_found(tmp_path: Path) -> None:
    """Planted: 16 rows instead of 64 on sm_90, which the compiler silently turns into fp16 products."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT / "src")}
    environment.pop("TRITON_INTERPRET", None)
    shown = subprocess.run([sys.executable, "-c", PLANTED], capture_output=True, text=True, env=environment, check=True).stdout
    assert "fp8/m64/sm_90: no fp8 matrix instruction, found ['HMMA" in shown


def test_a_field_that_moves_is_named() -> None:
    name, entry = "w4a16/g64-m1/sm_89", ENTRY
    assert differences({name: entry}, {name: entry}) == []
    moved = {name: {**entry, "registers": entry["registers"] + 1}}
    assert differences({name: entry}, moved) == [f"{name}: registers was {entry['registers']}, is {entry['registers'] + 1}"]
    assert differences({}, {name: entry}) == [f"{name}: not in the golden table"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"matrix": {}}, "no bf16 matrix instruction, found none"),
        ({"matrix": {"FFMA": 512}}, "no bf16 matrix instruction"),
        ({"needs": "int8+bf16"}, "no int8 matrix instruction"),
        ({"spills": 3}, "3 spills"),
        ({"stack_bytes": 8}, "8 bytes of stack"),
        ({"shared_bytes": 120 << 10}, "sm_89 allows 101376 a block"),
        ({"blocks_per_sm": 0}, "no block fits"),
    ],
)
def test_each_rule_is_named(change: dict[str, Any], said: str) -> None:
    assert broken_rules("w4a16/g64-m1/sm_89", ENTRY) == []
    entry = {**ENTRY, **change}
    assert any(said in fault for fault in broken_rules("w4a16/g64-m1/sm_89", entry))


@pytest.mark.parametrize(
    ("sm", "registers", "shared", "warps", "blocks"),
    [(80, 96, 26112, 4, 5), (89, 80, 26112, 4, 3), (90, 255, 75776, 8, 1), (90, 32, 0, 4, 16), (120, 16, 0, 1, 24)],
)
def test_occupancy_by_hand(sm: int, registers: int, shared: int, warps: int, blocks: int) -> None:
    """96 registers: 3,072 a warp, 21 warps, 5 blocks of 4. 75,776 bytes and 1,024: 3 blocks, but 255 registers: 8 warps."""
    assert blocks_per_sm(TARGETS[sm], registers, shared, warps) == blocks


def test_limits_are_those_of_a_block() -> None:
    assert all(isinstance(one, Target) and one.shared_bytes < one.shared_bytes_sm for one in TARGETS.values())
