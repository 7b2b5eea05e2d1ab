"""`advisor selftest`: prints right or wrong, regret, and the reason of each miss."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from .terminal import console


def selftest(
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON document on standard output")] = False,
) -> None:
    """Replays public verdicts (what wins, by how much, where nothing should change) and prints the regret of our choices."""
    from .plan_command import FITTED
    from .selftest import replay, summary, verdicts
    from .serving_fit import Parameters

    parameters = Parameters.read(FITTED)
    found = [replay(verdict, parameters) for verdict in verdicts()]
    totals = summary(found)
    if as_json:
        rows = [
            {"id": one.verdict.id, "source": one.verdict.source, "chosen": one.chosen.name, "best": one.best.name,
             "right": one.right, "regret": one.regret, "reason": one.reason}
            for one in found
        ]  # fmt: skip
        print(json.dumps({**totals, "replays": rows}))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("verdict", "", "chosen", "best", "regret"):
        table.add_column(column, justify="right" if column == "regret" else "left", no_wrap=column == "verdict")
    for one in found:
        mark = "[green]✓[/green]" if one.right else "[red]✗[/red]"
        best = "" if one.chosen == one.best else one.best.name
        table.add_row(one.verdict.id, mark, one.chosen.name, best, f"{one.regret:.1%}")
    console.print(table)
    for one in found:
        if not one.right:
            console.print(f"[red]✗[/red] {one.verdict.id}: {escape(one.reason)}", soft_wrap=True)
    console.print(
        f"{totals['right']:.0%} of {totals['verdicts']:.0f} right; "
        f"mean regret {totals['mean_regret']:.1%}, worst {totals['worst_regret']:.1%}"
    )
