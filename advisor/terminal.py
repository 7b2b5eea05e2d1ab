"""What people see: live progress per stage with elapsed time, and the verdict panel. Everything goes to standard error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.markup import escape
from rich.panel import Panel
from rich.status import Status
from rich.table import Table

from quantadvisor.documents import Explanation, Results

from .mends import TITLES

QUIET_S = 5.0
"""Where there is no terminal, a line at most this often."""

console = Console(stderr=True, highlight=False)


class LiveProgress:
    """A spinner line for the stage at work, and a line left behind for each that is done."""

    def __init__(self, target: Console = console) -> None:
        self.console = target
        self._status: Status | None = None
        self._title, self._started, self._said = "", 0.0, ""
        self._printed = 0.0

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        self._title, self._started, self._said = title, time.monotonic(), ""
        with self.console.status(title, spinner="dots") as status:
            self._status = status
            try:
                yield
            finally:
                self._status = None
        elapsed = time.monotonic() - self._started
        note = f"  [dim]{self._said}[/dim]" if self._said == "already done" else ""
        self.console.print(f"[green]✓[/green] {title} [dim]{elapsed:6.1f} s[/dim]{note}")

    def say(self, what: str) -> None:
        self._said = what
        elapsed = time.monotonic() - self._started
        if self._status is not None and self.console.is_terminal:
            self._status.update(f"{self._title} [dim]{elapsed:.0f} s · {what}[/dim]")
        elif self._status is not None and time.monotonic() - self._printed > QUIET_S:
            self._printed = time.monotonic()
            self.console.print(f"  [dim]{elapsed:5.0f} s  {what}[/dim]")


def verdict_panel(results: Results, lines: list[str]) -> Panel:
    colour = "red" if results.verdict.choice is None else "green" if results.verdict.change else "yellow"
    return Panel("\n".join(lines), title="QuantAdvisor", border_style=colour, expand=False)


def explanation_panel(found: Explanation) -> Panel:
    """The verdict, the times, every cause with what was seen, and the change."""
    times = Table(box=None, pad_edge=False)
    for column in ("", "unquantized", "hoped", "attainable", "measured"):
        times.add_column(column, justify="right" if column else "left")
    for name, step in (("request", found.request), ("prefill", found.prefill), ("decode step", found.decode)):
        shown = (step.unquantized_s, step.hoped_s, step.attainable_s, step.measured_s)
        times.add_row(name, *("not known" if seconds is None else f"{seconds * 1e3:,.4g} ms" for seconds in shown))
    causes = Table(box=None, pad_edge=False)
    for column in ("share of the gap", "cause", "what was seen"):
        causes.add_column(column)
    for cause in found.causes:
        causes.add_row(f"{cause.share:6.1%}", TITLES[cause.cause], escape(cause.evidence))
    lines = [f"[bold]{escape(found.verdict)}[/bold]", f"against {escape(found.against)}", ""]
    after = ["", f"[bold]change[/bold] {escape(found.change)}", *(f"[dim]{escape(note)}[/dim]" for note in found.notes)]
    title = escape(f"{found.checkpoint.scheme.name} on {found.checkpoint.place}")
    return Panel(Group("\n".join(lines), times, "", causes, "\n".join(after)), title=title, expand=False)
