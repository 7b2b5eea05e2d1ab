"""`advisor plan SPEC --device h100 --device l40s`: no GPU, no weights; prints the choice, the ranking and the map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.markup import escape
from rich.table import Table

from quantadvisor.documents import BadInput, Bounds, CapacityPlan, DecisionMap, DevicePlan, PlanCandidate, Workload, write_text

from .terminal import console

Devices = Annotated[list[str] | None, typer.Option("--device", help="a GPU to plan for: h100, l40s, b200; several times")]
NOTHING_MEETS = 5
SHOWN = 6
WIDE = 100
"""Columns of a terminal from which on intervals and late requests stand side by side."""
SCHEMA = "quantadvisor/plan/1"
FITTED = Path(__file__).parent / "serving_parameters.json"


def plan(
    spec: Annotated[str, typer.Argument(help="workload YAML; with --preset a model: a hub id, a folder, a config.json")],
    device: Devices = None,
    preset: Annotated[str | None, typer.Option("--preset", help="chat, rag, summarize, agents or long_context")] = None,
    concurrency: Annotated[int | None, typer.Option("--concurrency", help="requests in flight, with --preset", min=1)] = None,
    out: Annotated[Path | None, typer.Option("--out", help="folder for plan.json and report.html")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON document on standard output")] = False,
    everything: Annotated[bool, typer.Option("--all", help="show every candidate, refused ones with their reason")] = False,
) -> None:
    """Which precision on which runtime on how many of which GPUs, before anything is bought: from the config alone."""
    from . import gpu_plan
    from .serving_fit import Parameters
    from .spec import workload_of

    workload = workload_of(spec, preset, concurrency)
    found = gpu_plan.plan(workload, device or named(workload.device), Parameters.read(FITTED))
    if out is not None:
        write_plan(found, out)
    if as_json:
        print(found.model_dump_json(by_alias=True))
    else:
        show(found, everything)
        if out is not None:
            console.print(f"report: {escape(str((out / 'report.html').resolve()))}", soft_wrap=True)
    if all(one.choice is None for one in found.devices):
        raise typer.Exit(NOTHING_MEETS)


def write_plan(found: CapacityPlan, out: Path) -> None:
    from quantadvisor.reports.plan import render_plan

    page = render_plan(found)
    try:
        out.mkdir(parents=True, exist_ok=True)
        found.write(out / "plan.json")
        write_text(out / "report.html", page)
    except OSError as error:
        raise BadInput(str(out), f"cannot be written: {error.strerror}", "give another --out") from None


def stored_plan(path: Path) -> CapacityPlan | None:
    """The plan that a file or folder holds, or None where it holds no plan."""
    file = path / "plan.json" if path.is_dir() and not (path / "results.json").exists() else path
    try:
        raw = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        return None
    try:
        return CapacityPlan.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))[:200]
        raise BadInput(
            str(file), f"is not a plan: {place}: {first['msg'][:200]}", "give the plan.json that advisor plan wrote"
        ) from None


def named(device: str) -> list[str]:
    """The spec's device, where it names a GPU to plan for."""
    if device == "auto" or device.startswith(("cpu", "cuda")):
        raise BadInput("--device", "no GPU is named", "add --device h100, or several")
    return [device]


def show(found: CapacityPlan, everything: bool) -> None:
    for one in found.devices:
        said = f"[bold]{escape(one.choice or 'nothing')}[/bold] on {one.device}: {escape(one.reason)}"
        console.print(said, soft_wrap=True)
        console.print(ranking(one, found.workload, everything))
        for line in effects(one, found.workload):
            console.print(escape(line), soft_wrap=True)
        if one.decision_map is not None:
            console.print(map_table(one, one.decision_map))
    if found.family:
        from quantadvisor.reports.family import of_plan

        console.print(family_table(found))
        for member in found.family:
            if member.why_not is not None:
                said = f"not {member.model} in {member.scheme}: {member.why_not}"
                console.print(f"[dim]{escape(said)}[/dim]", soft_wrap=True)
        console.print(escape(of_plan(found) or ""), soft_wrap=True)
    for note in found.notes:
        console.print(f"[dim]{escape(note)}[/dim]", soft_wrap=True)
    console.print("[dim]all times and bytes are modelled; intervals hold 80 %; quality is cited, not measured[/dim]")


def ranking(found: DevicePlan, workload: Workload, everything: bool) -> Table:
    at = "" if workload.slo is None else f"p{workload.slo.percentile:g}"
    table = Table(box=None, pad_edge=False)
    tails = (f"TTFT\n{at}", f"TPOT\n{at}") if at else ()
    for column in ("candidate", "TTFT\nms", "TPOT\nms", *tails, "users", "tok/s\nper GPU", "per\nMtok", ""):
        table.add_column(column, justify="left" if column in ("candidate", "") else "right", no_wrap=column != "")
    timed = [one for one in found.candidates if one.refused is None]
    shown = found.candidates if everything else timed[:SHOWN]
    for one in shown:
        table.add_row(*row_of(one, bool(at), intervals=not at or console.width >= WIDE))
    rest = len(found.candidates) - len(shown)
    if rest:
        table.caption = f"{rest} more, refused or slower: --all"
    return table


def row_of(one: PlanCandidate, tails: bool, intervals: bool) -> tuple[str, ...]:
    blank = ("",) * (2 if tails else 0)
    if one.refused is not None:
        return (one.name, "", "", *blank, "", "", "", f"[dim]{escape(one.refused)}[/dim]")
    cost = "" if one.cost_per_million_tokens is None else f"{one.cost_per_million_tokens:,.2f}"
    why = f"[yellow]{escape(one.excluded)}[/yellow]" if one.excluded else ""
    first, users = ("" if one.ttft_ms is None else short(one.ttft_ms.value)), str(one.users_within_slo)
    late = [short(value) for value in (one.ttft_tail_ms, one.tpot_tail_ms) if value is not None]
    step = bounds(one.tpot_ms) if intervals or one.tpot_ms is None else short(one.tpot_ms.value)
    return (one.name, first, step, *(late or blank), users, f"{one.tokens_per_s_per_gpu:,.0f}", cost, why)


def bounds(one: Bounds | None) -> str:
    return "" if one is None else f"{short(one.value)} [{short(one.low)}, {short(one.high)}]"


def short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def effects(found: DevicePlan, workload: Workload) -> list[str]:
    """Speed and capacity apart, and how far the choice holds."""
    from quantadvisor.reports import plan, wording

    reaches = wording.reaches(found.decision_map, workload.traffic) if found.decision_map is not None else []
    return [*(f"{word}: {sentence}" for word, sentence in plan.effects(found)), *reaches]


def map_table(found: DevicePlan, drawn: DecisionMap) -> Table:
    """Context down, concurrency across; a letter for what wins."""
    from quantadvisor.reports.map_plots import LETTERS, winners

    letters = dict(zip(winners(drawn, found.choice or ""), LETTERS, strict=False))
    table = Table(box=None, pad_edge=False, title="who wins", title_justify="left")
    table.add_column("context", justify="right")
    for one in drawn.concurrencies:
        table.add_column(str(one), justify="right")
    for context in drawn.contexts:
        row = [letters.get(one.winner or "", "·") for one in drawn.cells if one.context_tokens == context]
        table.add_row(f"{context:,}", *row)
    names = ", ".join(f"{letter} {name}" for name, letter in letters.items())
    table.caption = f"{names}; · nothing fits; requests in flight across"
    return table


def family_table(found: CapacityPlan) -> Table:
    table = Table(box=None, pad_edge=False, title="sizes of the family", title_justify="left")
    for column in ("rank", "model", "scheme", "weights GiB", "TPOT ms"):
        table.add_column(column, justify="left" if column in ("model", "scheme") else "right", no_wrap=True)
    for one in found.family:
        rank, time = ("" if number is None else f"{number:,.3g}" for number in (one.rank, one.tpot_s and one.tpot_s * 1e3))
        size = f"{one.weights_bytes / 2**30:,.1f}"
        table.add_row(rank, escape(one.model), one.scheme, size, time, style=None if one.fits else "dim")
    table.caption = found.family[0].source
    return table
