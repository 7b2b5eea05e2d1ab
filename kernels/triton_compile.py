"""Compiles every Triton kernel ahead of time for five NVIDIA targets, without a GPU, and reads what the compiler made.

`python -m quantadvisor.kernels.triton_compile` compares with the golden table `triton_golden.json` and exits 1 on any
difference or broken rule; `--write` makes the table anew, `--only REGEX` takes some of `name/sm_90`. A tile that breaks a rule
gets another one in its module's EXCEPTIONS, found by trying fewer stages, other warps, smaller tiles, in that order.

An entry holds the matrix instructions of the machine code with their counts, registers a thread, spills (local loads and
stores), stack, shared memory a block, the blocks that fit one multiprocessor by the formula of CUDA's occupancy
calculator, and what of it stands in the main loop. That is evidence of what was compiled, not of speed: nothing here ever
ran on a GPU. Numbers belong to one version of triton, whose wheel brings the assembler; another version is a reason not to
compare, and said.

Nothing heavy loads with this module: triton does, inside functions, and so do the modules with kernels.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .guardian import die_with_starter

if TYPE_CHECKING:
    from .triton_launch import Case

GOLDEN = Path(__file__).with_name("triton_golden.json")
MODULES = (
    "triton_launch",
    "triton_w4a16",
    "triton_w8a8",
    "triton_w8a16",
    "triton_codebook",
    "triton_decode_attention",
    "triton_dequantize",
    "triton_hadamard",
    "triton_llm_int8",
)
"""The modules that hold kernels, and therefore load triton when imported."""

FP16 = re.compile(
    r"w4a16/g64-m1|w4a16/g128-m512-asymmetric|w8a16/g64-m(1|512)|(w8a8|fp8)/(quantize|m512)|codebook/g64-m(1|512)"
    r"|llm-int8/.*|decode-attention/.*-(d64-gqa3|d128-gqa4)|decode-attention/join|launch/.*|dequantize/(asymmetric|int8)-g64"
    r"|hadamard/int4-block128"
)
"""What is compiled for float16 too: of each kernel the tile of decode and that of prefill."""
Entry = dict[str, Any]
TRIED = "tried/"
"""Before the name of a configuration that is not launched unless it was timed: it may break a rule, and is then not tried."""


@dataclass(frozen=True)
class Target:
    """Limits of one compute capability: CUDA C++ programming guide, table of technical specifications."""

    shared_bytes: int
    """Most that one block may have."""
    shared_bytes_sm: int
    warps_sm: int
    blocks_sm: int


TARGETS = {
    80: Target(163 << 10, 164 << 10, 64, 32),
    89: Target(99 << 10, 100 << 10, 48, 24),
    90: Target(227 << 10, 228 << 10, 64, 32),
    100: Target(227 << 10, 228 << 10, 64, 32),
    120: Target(99 << 10, 100 << 10, 48, 24),
}
REGISTERS_SM = 65536
RESERVED_SHARED = 1024
"""Bytes of shared memory that the system takes for each block."""

MATRIX = re.compile(r"[HIQO]MMA|[HIQ]GMMA|UTC\w*MMA")
FAMILIES = {
    "bf16": re.compile(r"HMMA\.16816\.F32\.BF16|HGMMA\.\w+\.F32\.BF16|UTCHMMA"),
    "fp16": re.compile(r"HMMA\.16816\.F32$|HGMMA\.\w+\.F32$|UTCHMMA"),
    "int8": re.compile(r"IMMA\.16832\.S8\.S8|IGMMA\.\w+\.S8\.S8|UTCIMMA"),
    "fp8": re.compile(r"QMMA\.16832\.F32\.E4M3\.E4M3|QGMMA\.\w+\.F32\.E4M3\.E4M3|UTCQMMA"),
}
OPERATION = re.compile(r"^\s+(?:/\*[0-9a-f]+\*/)?\s+(?:@!?U?P\w+ +)?([A-Z][\w.]*)")
LABEL = re.compile(r"^(\.L_x_\d+):")
BRANCH = re.compile(r"\bBRA\b.*`\((\.L_x_\d+)\)")


def cases(sm: int) -> Iterator[Case]:
    """Every kernel as it is launched on that target, for a model in bfloat16, and some of them for one in float16."""
    from .triton_launch import in_fp16

    for module in MODULES:
        for case in importlib.import_module(f".{module}", __package__).cases(sm):
            yield case
            if FP16.fullmatch(case.name):
                yield in_fp16(case)


def tried(sm: int) -> Iterator[Case]:
    """Other configurations, which timing on a GPU may choose where they break no rule."""
    for module in MODULES:
        made = getattr(importlib.import_module(f".{module}", __package__), "tried", lambda sm: ())
        yield from (replace(case, name=f"{TRIED}{case.name}") for case in made(sm))


def compiled(case: Case, sm: int) -> Entry:
    """Compile one case and read its machine code."""
    made = _made(case, "cuda", sm, 32, case.stages)
    registers, stack, code = _machine_code(made.asm["cubin"])
    operations, loop = Counter(operations_of(code)), Counter(operations_of(main_loop(code)))
    shared = int(made.metadata.shared)
    blocks = blocks_per_sm(TARGETS[sm], registers, shared, case.warps)
    return {
        "needs": case.matrix,
        "matrix": {name: count for name, count in sorted(operations.items()) if MATRIX.match(name)},
        "registers": registers,
        "spills": sum(count for name, count in operations.items() if name.startswith(("STL", "LDL"))),
        "stack_bytes": stack,
        "shared_bytes": shared,
        "warps": case.warps,
        "blocks_per_sm": blocks,
        "occupancy": round(blocks * case.warps / TARGETS[sm].warps_sm, 4),
        "instructions": operations.total(),
        "loop_instructions": loop.total(),
        "loop_matrix": sum(count for name, count in loop.items() if MATRIX.match(name)),
    }


def compiles_for_amd(case: Case, architecture: str = "gfx942") -> int:
    """Bytes of the code object (hsaco): it compiles, no more is claimed. Two stages, as AMD's 64 KiB of local memory ask."""
    return len(_made(case, "hip", architecture, 64, min(case.stages, 2)).asm["hsaco"])


def _made(case: Case, backend: str, architecture: Any, width: int, stages: int) -> Any:
    """The compiled kernel; pointers, and integers that a launch would find to be, are multiples of 16."""
    from triton import compile as compile_triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    if missing := set(names) ^ (set(case.signature) | set(case.constants)):
        raise ValueError(f"{case.name}: signature and constants do not match the kernel's arguments: {sorted(missing)}")
    signature = {name: "constexpr" if name in case.constants else case.signature[name] for name in names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if name not in case.constants and name not in case.unaligned and (signature[name][0] == "*" or signature[name] == "i32")
    }
    source = ASTSource(case.kernel, signature, dict(case.constants), aligned)
    options = {"num_warps": case.warps, "num_stages": stages, "enable_fp_fusion": True}
    return compile_triton(source, target=GPUTarget(backend, architecture, width), options=options)


def _machine_code(cubin: bytes) -> tuple[int, int, list[str]]:
    """(registers a thread, bytes of stack, the lines of its disassembly)"""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run(knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
        code = _run(knobs.nvidia.nvdisasm.path, "-c", file.name)
    found = dict(re.findall(r"(REG|STACK):(\d+)", usage))
    return int(found["REG"]), int(found["STACK"]), code.splitlines()


def operations_of(code: Sequence[str]) -> list[str]:
    return [found[1] for line in code if (found := OPERATION.match(line))]


def main_loop(code: Sequence[str]) -> Sequence[str]:
    """Lines of the innermost loop with the most matrix instructions, of several the longest; none: no loop."""
    labels = {found[1]: at for at, line in enumerate(code) if (found := LABEL.match(line))}
    loops = [
        (labels[found[1]], at + 1)
        for at, line in enumerate(code)
        if (found := BRANCH.search(line)) and labels.get(found[1], at + 1) <= at
    ]
    innermost = [one for one in loops if not any(other != one and one[0] <= other[0] and other[1] <= one[1] for other in loops)]
    bodies = [code[start:end] for start, end in innermost]
    return max(bodies, key=lambda body: (sum(bool(MATRIX.match(one)) for one in operations_of(body)), len(body)), default=())


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def blocks_per_sm(target: Target, registers: int, shared_bytes: int, warps: int) -> int:
    """CUDA's occupancy: what warps, registers (in units of 256 a warp), shared memory and block slots allow; the least."""
    warp_registers = -(-registers * 32 // 256) * 256
    shared = -(-shared_bytes // 128) * 128 + RESERVED_SHARED
    by_registers = REGISTERS_SM // warp_registers // warps
    return min(target.warps_sm // warps, by_registers, target.shared_bytes_sm // shared, target.blocks_sm)


def broken_rules(name: str, entry: Mapping[str, Any]) -> list[str]:
    """What no kernel may do on any target: lose its matrix instruction, spill, or ask for more than a block may have."""
    sm = int(name.rsplit("sm_", 1)[1])
    faults = []
    for wanted in entry["needs"].split("+") if entry["needs"] else ():
        if not any(FAMILIES[wanted].match(one) for one in entry["matrix"]):
            faults.append(f"{name}: no {wanted} matrix instruction, found {sorted(entry['matrix']) or 'none'}")
    if entry["spills"] or entry["stack_bytes"]:
        faults.append(f"{name}: {entry['spills']} spills, {entry['stack_bytes']} bytes of stack")
    if entry["shared_bytes"] > TARGETS[sm].shared_bytes:
        allowed = TARGETS[sm].shared_bytes
        faults.append(f"{name}: {entry['shared_bytes']} bytes of shared memory; sm_{sm} allows {allowed} a block")
    if entry["blocks_per_sm"] < 1:
        faults.append(f"{name}: no block fits a multiprocessor")
    return faults


def differences(golden: Mapping[str, Entry], found: Mapping[str, Entry]) -> list[str]:
    """Every field that moved, one a line."""
    lines = [f"{name}: not in the golden table" for name in found if name not in golden]
    for name, entry in found.items():
        for field, value in golden.get(name, {}).items():
            if entry.get(field) != value:
                lines.append(f"{name}: {field} was {value}, is {entry.get(field)}")
    return lines


def table(only: str = "") -> dict[str, Entry]:
    """name/sm_N -> entry, for every case whose name matches; targets beside each other."""
    processes = min(len(TARGETS), os.cpu_count() or 1)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=die_with_starter) as pool:
        parts = pool.map(of_target, TARGETS, [only] * len(TARGETS))
        return {name: entry for part in parts for name, entry in part.items()}


def of_target(sm: int, only: str) -> dict[str, Entry]:
    found = {}
    for case in (*cases(sm), *tried(sm)):
        if re.search(only, name := f"{case.name}/sm_{sm}"):
            found[name] = compiled(case, sm)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    from triton import __version__

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="make the golden table anew")
    parser.add_argument("--amd", action="store_true", help="only see that every kernel compiles for gfx942")
    parser.add_argument("--only", default="", metavar="REGEX", help="some cases: a pattern found in name/sm_90")
    asked = parser.parse_args(arguments)
    if asked.amd:
        made = [case.name for case in cases(90) if re.search(asked.only, case.name) and compiles_for_amd(case)]
        print(f"{len(made)} kernels compile for gfx942")
        return 0
    found = table(asked.only)
    launched = {name: entry for name, entry in found.items() if not name.startswith(TRIED)}
    faults = [line for name, entry in launched.items() for line in broken_rules(name, entry)]
    if asked.write:
        kept = json.loads(GOLDEN.read_text(encoding="utf-8"))["kernels"] if asked.only and GOLDEN.exists() else {}
        write({**kept, **found}, __version__)
    else:
        golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
        if golden["triton"] != __version__:
            print(f"the golden table is of triton {golden['triton']}, this is {__version__}: only the rules are checked")
        else:
            faults += differences(golden["kernels"], found)
            if not asked.only:
                faults += [f"{name}: in the table, but no longer compiled" for name in golden["kernels"] if name not in found]
    print("\n".join([*faults, f"{len(found)} compilations, {len(faults)} faults"]))
    return 1 if faults or not found else 0


def write(kernels: Mapping[str, Entry], version: str) -> None:
    """One line an entry, so that a diff of the table reads well."""
    lines = [f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(kernels.items())]
    note = "compiled ahead of time, never run on a GPU; python -m quantadvisor.kernels.triton_compile --write"
    head = f'{{\n  "note": {json.dumps(note)},\n  "triton": {json.dumps(version)},\n  "kernels": {{\n'
    GOLDEN.write_text(head + ",\n".join(lines) + "\n  }\n}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
