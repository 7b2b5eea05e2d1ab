"""What exists here, as tables for people: runtimes, methods, kernels. Draws documents, decides nothing."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from quantadvisor.kernels.registry import TRAPS

from .catalogue import DeviceHere, MethodHere, RuntimeHere, names
from .kernel_truth import KernelTruth


def runtimes_table(found: Sequence[RuntimeHere]) -> Table:
    """Runtime by scheme; a reason is said once for all schemes that share it."""
    table = Table(box=None, pad_edge=False)
    for column in ("runtime", "", "schemes"):
        table.add_column(column)
    for one in found:
        version = ", ".join(f"{name} {number}" for name, number in one.versions.items())
        state = "[red]refused[/red]" if one.refused else "[green]ready[/green]"
        table.add_row(f"[bold]{one.name}[/bold]", state, f"{escape(one.refused or version)}; [dim]{one.gpu}[/dim]")
        ready = names(one.schemes, "ready")
        if ready:
            table.add_row("", "ready", escape(", ".join(ready)))
        for status, colour in (("slow path", "yellow"), ("not timed", "yellow"), ("refused", "red")):
            shared: dict[str, list[str]] = {}
            for scheme in (scheme for scheme in one.schemes if scheme.status == status and not one.refused):
                shared.setdefault(scheme.refused or scheme.slow or scheme.untimed or "", []).append(scheme.name)
            for reason, mine in shared.items():
                table.add_row("", f"[{colour}]{status}[/{colour}]", escape(f"{', '.join(mine)}: {reason}"))
    return table


def devices_table(found: Sequence[DeviceHere]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("device", "", "memory", "reads", "peaks, dense Top/s", "kernels measured by others"):
        table.add_column(column)
    for one in found:
        state = "[green]ready[/green]" if one.refused is None else "plan"
        reads = "" if one.read_bytes_per_s is None else f"{one.read_bytes_per_s / 1e12:.2f} TB/s"
        peaks = ", ".join(f"{kind} {value / 1e12:,.0f}" for kind, value in one.flops_per_s.items())
        table.add_row(escape(one.name), state, f"{one.memory_bytes / 2**30:,.0f} GiB", reads, peaks, ", ".join(one.kernels))
    return table


def methods_table(found: Sequence[MethodHere]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("method", "shrinks", "schemes", "cost to apply", "runtimes: ready, or refused here"):
        table.add_column(column)
    for one in found:
        ready = [name for name, refused in one.runtimes.items() if refused is None]
        elsewhere = [name for name, why in one.runtimes.items() if why and "writes nothing for" in why]
        refused = [f"{name}: {escape(why)}" for name, why in one.runtimes.items() if why and name not in elsewhere]
        places = "\n".join(
            (", ".join(ready) or "none", *refused, *([f"[dim]not for {', '.join(elsewhere)}[/dim]"] if elsewhere else []))
        )
        table.add_row(f"[bold]{one.name}[/bold]", one.target, ", ".join(one.schemes), one.cost, places)
    return table


def kernels_table(found: KernelTruth) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("kernel", "", "what"):
        table.add_column(column)
    for one in found.probes:
        state = "[red]refused[/red]" if one.refused else "[green]ready[/green]"
        name = f"{one.probe}+{one.option}" if one.option else one.probe
        table.add_row(escape(name), state, escape(one.refused or one.what))
    if found.counts:
        timed, between, left = (found.counts.get(name, 0) for name in ("timed", "interpolated", "untimed"))
        table.caption = (
            f"{timed} points timed, {between} interpolated (≈) where that is clear, {left} not reached within the budget; "
            f"what no run offers ({', '.join(TRAPS)}) is timed by advisor runtimes"
        )
    return table


def truth_tables(found: KernelTruth) -> list[Table]:
    """One table for each (N, K): the winner at each M, its share of the roofline, and where it changes."""
    tables = []
    for shape in found.shapes:
        title = f"{shape.name} N {shape.n} K {shape.k} ({shape.count} in the model)"
        table = Table(box=None, pad_edge=False, title=title, title_justify="left")
        for column in ("M", "fastest", "time", "of the roofline", "second"):
            table.add_column(column, justify="left" if column == "fastest" else "right")
        for row in shape.winners:
            share = f"{row.roofline_share:.0%}" if row.roofline_share is not None else ""
            second = f"{row.over_runner_up:.2f}x" if row.over_runner_up is not None else ""
            about = "≈ " if row.interpolated else ""
            table.add_row(str(row.m), row.kernel, f"{about}{row.time_s * 1e6:,.1f} us", share, second)
        changes = [f"from M ≈ {change.m:.0f} {change.after}" for change in shape.changes]
        cliffs = [f"{one.kernel}: a row is {one.factor:.1f}x dearer at M = {one.m} than at {one.after_m}" for one in shape.cliffs]
        table.caption = "; ".join((*changes, *cliffs)) or None
        tables.append(table)
    return tables
