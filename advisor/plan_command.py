"""`advisor plan SPEC --device h100 --device l40s`: no GPU, no weights; prints the choice, the ranking and the map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from quantadvisor.documents import BadInput, Bounds, CapacityPlan, DevicePlan, MapPoint, PlanCandidate

from .terminal import console

Devices = Annotated[list[str] | None, typer.Option("--device", help="a GPU to plan for: h100, l40s, b200; several times")]
NOTHING_MEETS = 5
SHOWN = 6
FITTED = Path(__file__).parent / "serving_parameters.json"


def plan(
    spec: Annotated[str, typer.Argument(help="workload YAML; with --preset a model: a hub id, a folder, a config.json")],
    device: Devices = None,
    preset: Annotated[str | None, typer.Option("--preset", help="chat, rag, summarize, agents or long_context")] = None,
    concurrency: Annotated[int | None, typer.Option("--concurrency", help="requests in flight, with --preset", min=1)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON document on standard output")] = False,
    everything: Annotated[bool, typer.Option("--all", help="show every candidate, refused ones with their reason")] = False,
) -> None:
    """Which precision on which runtime on how many of which GPUs, before anything is bought: from the config alone."""
    from . import gpu_plan
    from .serving_fit import Parameters
    from .spec import workload_of

    workload = workload_of(spec, preset, concurrency)
    found = gpu_plan.plan(workload, device or named(workload.device), Parameters.read(FITTED))
    if as_json:
        print(found.model_dump_json(by_alias=True))
    else:
        show(found, everything)
    if all(one.choice is None for one in found.devices):
        raise typer.Exit(NOTHING_MEETS)


def named(device: str) -> list[str]:
    """The spec's device, where it names a GPU to plan for."""
    if device == "auto" or device.startswith(("cpu", "cuda")):
        raise BadInput("--device", "no GPU is named", "add --device h100, or several")
    return [device]


def show(found: CapacityPlan, everything: bool) -> None:
    for one in found.devices:
        said = f"[bold]{escape(one.choice or 'nothing fits')}[/bold] on {one.device}: {escape(one.reason)}"
        console.print(said, soft_wrap=True)
        console.print(ranking(one, everything))
        for line in effects(one):
            console.print(line, soft_wrap=True)
        if one.map:
            console.print(map_table(one.map, found))
    if found.family:
        console.print(family_table(found))
    for note in found.notes:
        console.print(f"[dim]{escape(note)}[/dim]", soft_wrap=True)
    console.print("[dim]all times and bytes are modelled; intervals hold 80 %; quality is cited, not measured[/dim]")


def ranking(found: DevicePlan, everything: bool) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("candidate", "TTFT ms", "TPOT ms", "users", "tok/s/GPU", "per Mtok", ""):
        table.add_column(column, justify="left" if column in ("candidate", "") else "right", no_wrap=column != "")
    timed = [one for one in found.candidates if one.refused is None]
    shown = found.candidates if everything else timed[:SHOWN]
    for one in shown:
        table.add_row(*row_of(one))
    rest = len(found.candidates) - len(shown)
    if rest:
        table.caption = f"{rest} more, refused or slower: --all"
    return table


def row_of(one: PlanCandidate) -> tuple[str, ...]:
    if one.refused is not None:
        return (one.name, "", "", "", "", "", f"[dim]{escape(one.refused)}[/dim]")
    cost = "" if one.cost_per_million_tokens is None else f"{one.cost_per_million_tokens:,.2f}"
    why = f"[yellow]{escape(one.excluded)}[/yellow]" if one.excluded else ""
    first, users = ("" if one.ttft_ms is None else f"{one.ttft_ms.value:,.3g}"), str(one.users_within_slo)
    return (one.name, first, bounds(one.tpot_ms), users, f"{one.tokens_per_s_per_gpu:,.0f}", cost, why)


def bounds(one: Bounds | None) -> str:
    return "" if one is None else f"{one.value:,.3g} [{one.low:,.3g}, {one.high:,.3g}]"


def effects(found: DevicePlan) -> list[str]:
    lines = []
    if found.speed_effect is not None and found.capacity_effect is not None:
        lines.append(f"a token {found.speed_effect:.2f}x as fast as unquantized, {found.capacity_effect:.2f}x the requests fit")
    for one in found.boundaries:
        lines.append(f"holds until {one.factor:.2f}x the {one.axis} ({one.at:,}): there {one.winner} wins")
    return lines


def map_table(points: Sequence[MapPoint], found: CapacityPlan) -> Table:
    """Context down, concurrency across; a letter for what wins."""
    users = sorted({one.concurrency for one in points})
    letters = {name: chr(ord("a") + i) for i, name in enumerate(sorted({one.winner for one in points if one.winner}))}
    table = Table(box=None, pad_edge=False, title="who wins", title_justify="left")
    table.add_column("context", justify="right")
    for one in users:
        table.add_column(str(one), justify="right")
    for context in sorted({one.context_tokens for one in points}):
        row = [letters.get(one.winner or "", "·") for one in points if one.context_tokens == context]
        table.add_row(f"{context:,}", *row)
    names = ", ".join(f"{letter} {name}" for name, letter in letters.items())
    table.caption = f"{names}; · nothing fits; concurrency across; declared: {found.context_tokens:,} x {found.concurrency}"
    return table


def family_table(found: CapacityPlan) -> Table:
    table = Table(box=None, pad_edge=False, title="sizes of the family", title_justify="left")
    for column in ("rank", "model", "scheme", "weights GiB"):
        table.add_column(column, justify="left" if column in ("model", "scheme") else "right")
    for one in found.family:
        rank = "" if one.rank is None else str(one.rank)
        table.add_row(rank, escape(one.model), one.scheme, f"{one.weights_bytes / 2**30:,.1f}", style=None if one.fits else "dim")
    table.caption = found.family[0].source
    return table
