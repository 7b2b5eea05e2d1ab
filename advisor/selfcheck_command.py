"""`advisor selfcheck`: every Triton kernel against the float64 truth, and on a GPU timed against what it replaces; there, too,
every runtime's GPU path against torch on the CPU.

Exit 1 where a kernel or a runtime is wrong, or a kernel slower than the 16-bit operator that it replaces at a size: at such
numbers of rows the advisor never picks it (kernels/selfcheck_record.py). Exit 2 where nothing can be checked.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from quantadvisor.documents import BadInput, CandidateFailed, KernelCheck, SelfCheck, write_text

from .terminal import console

if TYPE_CHECKING:
    from quantadvisor.kernels.processes import ProbeProcess

    from .rival_homes import RivalHomes

FAILED = 1
LIMIT_S = 300.0
"""For one kernel at one shape, its compilation included."""
START_S = 120.0
LIST = "list"
INSTEAD = (
    "numbers from triton's interpreter, machine code from the table compiled ahead of time; never run on a GPU, so no speed "
    "is known and none claimed"
)


def selfcheck(
    interpreted: Annotated[
        bool, typer.Option("--interpreted", help="on the CPU, in triton's interpreter: numbers only, no speed")
    ] = False,
    out: Annotated[Path, typer.Option("--out", help="folder for selfcheck.json and selfcheck.html")] = Path("selfcheck"),
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON document on standard output")] = False,
) -> None:
    """Verifies every Triton kernel on the GPU at hand and times it; without a GPU: its numbers, interpreted."""
    from quantadvisor.kernels import selfcheck_record
    from quantadvisor.reports.selfcheck import page

    from . import selfcheck_runtimes

    if out.exists() and not out.is_dir():
        raise BadInput(str(out), "is a file", "give a folder with --out")
    found = examined(interpreted)
    selfcheck_record.keep(found)  # before the triton runtime asks it
    if found.proof == "gpu":
        with console.status("checking runtimes", spinner="dots"):
            found = found.model_copy(update={"runtimes": selfcheck_runtimes.checks()})
    out.mkdir(parents=True, exist_ok=True)
    found.write(out / "selfcheck.json")
    write_text(out / "selfcheck.html", page(found))
    if as_json:
        print(found.model_dump_json(by_alias=True))
    else:
        console.print(shown(found))
        for one in found.failed:
            said = one.reason or "slower than the 16-bit operator that it replaces: not picked at about so many rows"
            console.print(f"[red]✗[/red] {one.name} {one.shape}: {escape(said)}", soft_wrap=True)
        for check in found.runtimes:
            console.print(selfcheck_runtimes.line(check), soft_wrap=True)
        console.print(escape(found.note), soft_wrap=True)
        wrong, slow = sum(not one.right for one in found.kernels), sum(one.speed == "slower" for one in found.kernels)
        total = f"{wrong} wrong, {slow} slower than what they replace" if found.proof == "gpu" else f"{wrong} wrong"
        console.print(f"{len(found.kernels)} checks ({found.proof}): {total}; written to {escape(str(out))}", soft_wrap=True)
    if found.failed or found.failed_runtimes:
        raise typer.Exit(FAILED)


def examined(interpreted: bool) -> SelfCheck:
    """On the GPU, or, where there is none or it is asked for, in the interpreter. A kernel that kills its process is wrong."""
    from quantadvisor.kernels.processes import ProbeProcess
    from quantadvisor.profiling import nvml, selfcheck_child

    from .rival_homes import RivalHomes

    reason = None if interpreted else nvml.why_not()
    threads = os.cpu_count() or 1
    with ProbeProcess(threads, Path(selfcheck_child.__file__)) as process, RivalHomes(threads) as homes:
        listed = process.ask({"probe": LIST, "interpreted": interpreted or reason is not None}, START_S)
        if "failed" in listed and not interpreted and reason is None:  # a GPU, but a torch that cannot use it
            reason = str(listed["failed"])
            listed = process.ask({"probe": LIST, "interpreted": True}, START_S)
        on_cpu = interpreted or reason is not None
        if "failed" in listed:
            raise BadInput("advisor selfcheck", str(listed["failed"]), "triton is needed: pip install triton, on Linux")
        kernels = []
        with console.status("checking", spinner="dots") as status:
            for name in listed["subjects"]:
                status.update(f"checking {name}")
                kernels.append(beside_rivals(one_check(process, name, on_cpu), homes))
    why = "--interpreted" if interpreted else f"no GPU here ({reason})"
    return SelfCheck(
        proof="interpreted" if on_cpu else "gpu",
        device=listed["device"],
        versions=listed["versions"],
        note=f"{why}: {INSTEAD}" if on_cpu else "CUDA graphs, L2 cache emptied before each call, 95 % intervals",
        kernels=tuple(kernels),
    )


def one_check(process: ProbeProcess, name: str, interpreted: bool) -> KernelCheck:
    try:
        said = process.ask({"probe": name, "interpreted": interpreted}, LIMIT_S)
    except CandidateFailed as failure:
        said = {"failed": str(failure)}
    if "failed" in said:
        label, _, shape = name.partition(" ")
        return KernelCheck(name=label, shape=shape, right=False, reason=str(said["failed"]))
    found = KernelCheck.model_validate(said)
    return found.model_copy(update={"compiled_for": compiled_for(found.name)})


def beside_rivals(found: KernelCheck, homes: RivalHomes) -> KernelCheck:
    """With the times of packages that live in interpreters of their own, where it was timed at some (M, N, K)."""
    from quantadvisor.kernels.rivals import rivals_of
    from quantadvisor.kernels.timing import figure

    from .rival_homes import apart

    sizes = re.fullmatch(r"M (\d+), N (\d+), K (\d+)", found.shape)
    if not found.times_s or sizes is None:
        return found
    times, refused = dict(found.times_s), dict(found.refused)
    for rival in (one for one in rivals_of(found.name) if apart(one)):
        said = homes.ask(rival, found.name, (int(sizes[1]), int(sizes[2]), int(sizes[3])))
        if samples := said.get("samples", {}).get(rival.name):
            times[rival.name] = figure(samples)
            refused.pop(rival.name, None)
        else:
            refused[rival.name] = said.get("refused") or said.get("without", {}).get(rival.name) or "not timed"
    fastest = min(times, key=lambda name: times[name].median)
    return found.model_copy(update={"times_s": times, "refused": refused, "fastest": fastest})


def compiled_for(name: str) -> tuple[int, ...]:
    """Targets at which every entry of that kernel in the golden table keeps its rules."""
    from quantadvisor.kernels.triton_compile import GOLDEN, TARGETS, broken_rules
    from quantadvisor.kernels.triton_subjects import COMPILED

    table = json.loads(GOLDEN.read_text(encoding="utf-8"))["kernels"]
    entries = {entry: table[entry] for entry in table if entry.startswith(COMPILED[name])}
    of = {sm: [one for one in entries if one.endswith(f"/sm_{sm}")] for sm in TARGETS}
    return tuple(sm for sm, found in of.items() if found and not any(broken_rules(one, entries[one]) for one in found))


def shown(found: SelfCheck) -> Table:
    """One line a check."""
    table = Table(box=None, pad_edge=False)
    on_gpu = found.proof == "gpu"
    for column in ("", "kernel", "shape", "error", *(("triton", "16 bit", "fastest") if on_gpu else ("code for sm_",))):
        table.add_column(column, no_wrap=column == "kernel")
    for one in found.kernels:
        mark = "[green]✓[/green]" if one.passed else "[red]✗[/red]"
        error = "" if one.error is None else f"{one.error:.2f} of allowed"
        times = [f"{one.times_s[who].median * 1e6:.1f} µs" if who in one.times_s else "" for who in ("triton", "16 bit")]
        last = [*times, one.fastest or ""] if on_gpu else [" ".join(map(str, one.compiled_for))]
        table.add_row(mark, one.name, one.shape, error, *last)
    return table
