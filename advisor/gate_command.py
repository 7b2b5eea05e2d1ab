"""`advisor gate BASELINE CANDIDATE`: two stored results, or two sides measured now; every way out."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.markup import escape
from rich.table import Table

from quantadvisor.documents import Gate, write_text

from .gate_input import (
    JUDGED,
    ON_INCONCLUSIVE,
    Asked,
    Judged,
    check_numbers,
    check_options,
    check_outputs,
    check_word,
    kinds_of,
)
from .stages import Progress, Quiet
from .terminal import LiveProgress, console

COLOURS = {"pass": "green", "regression": "red", "anomalous": "yellow", "inconclusive": "yellow"}


def gate(
    baseline: Annotated[str, typer.Argument(help="artifact folder, workload YAML, server URL, results.json or a run's folder")],
    candidate: Annotated[str, typer.Argument(help="the same kind of thing; may be the very same one")],
    workload: Annotated[Path | None, typer.Option("--workload", help="workload YAML; for artifacts and servers")] = None,
    baseline_env: Annotated[str | None, typer.Option("--baseline-env", help="Python interpreter of the baseline")] = None,
    candidate_env: Annotated[str | None, typer.Option("--candidate-env", help="Python interpreter of the candidate")] = None,
    runtime: Annotated[str | None, typer.Option("--runtime", help="of both artifacts, such as openvino+f32")] = None,
    time_budget: Annotated[float | None, typer.Option("--time-budget", help="seconds of measuring at most, 180")] = None,
    quality: Annotated[
        str, typer.Option("--quality", help="model, baseline or none: judged against the fp32 model, the baseline, or not")
    ] = "model",
    threshold: Annotated[float, typer.Option("--threshold", help="share by which slower is a regression")] = 0.025,
    alpha: Annotated[float, typer.Option("--alpha", help="error rate, shared over the time metrics")] = 0.01,
    on_inconclusive: Annotated[str, typer.Option("--on-inconclusive", help="fail: exit 4; warn: exit 0")] = "fail",
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON document on standard output")] = False,
    junit: Annotated[Path | None, typer.Option("--junit", help="JUnit XML file")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Markdown file; a step summary is appended to")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="HTML file; with --record it draws the history")] = None,
    record: Annotated[Path | None, typer.Option("--record", help="JSON Lines history to append to")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="say nothing but errors")] = False,
) -> None:
    """The regression gate: is CANDIDATE slower, larger or worse than BASELINE, beyond the noise?"""
    check_numbers(threshold, alpha, time_budget)
    check_word("--on-inconclusive", on_inconclusive, ON_INCONCLUSIVE)
    check_word("--quality", quality, JUDGED)
    kinds = kinds_of(baseline, candidate)
    check_options(
        kinds,
        {"--workload": workload, "--baseline-env": baseline_env, "--candidate-env": candidate_env}
        | {"--runtime": runtime, "--time-budget": time_budget},
    )
    check_outputs({"--junit": junit, "--markdown": markdown, "--html": html, "--record": record}, (baseline, candidate))
    history = history_of(record)
    if kinds[0] == "stored":
        made = decide_stored(baseline, candidate, alpha, threshold)
    else:
        asked = Asked(
            sides=(baseline, candidate),
            kinds=kinds,
            pythons=(baseline_env, candidate_env),
            workload=workload,
            runtime=runtime,
            quality=cast(Judged, quality),
            alpha=alpha,
            threshold=threshold,
            budget_s=time_budget,
        )
        made = decide_live(asked, Quiet() if quiet or as_json else LiveProgress())
    if made.state == "inconclusive" and on_inconclusive == "warn":
        made = made.model_copy(update={"exit_code": 0})
    write_outputs(made, junit, markdown, html, record, history)
    show(made, as_json, quiet)
    if made.exit_code:
        raise typer.Exit(made.exit_code)


def decide_stored(baseline: str, candidate: str, alpha: float, threshold: float) -> Gate:
    from .gate_stored import gate_stored
    from .stored_results import read_results

    sides = read_results(Path(baseline)), read_results(Path(candidate))
    return gate_stored(*sides, (baseline, candidate), alpha=alpha, threshold=threshold)


def decide_live(asked: Asked, progress: Progress) -> Gate:
    from .gate_live import gate_live
    from .gate_open import open_live

    with progress.stage("Gate"), open_live(asked, progress) as live:
        return gate_live(live, progress.say)


def history_of(record: Path | None) -> list[Gate]:
    """The gates that were recorded before; read before anything is measured, so that a broken file is said first."""
    from .gate_record import read_record

    return read_record(record) if record is not None and record.exists() else []


def write_outputs(
    made: Gate, junit: Path | None, markdown: Path | None, html: Path | None, record: Path | None, history: list[Gate]
) -> None:
    from quantadvisor.reports import gate as words

    if junit is not None:
        write_text(junit, words.junit(made))
    if markdown is not None:
        summary = os.environ.get("GITHUB_STEP_SUMMARY")
        if summary and markdown.absolute() == Path(summary).absolute():
            append(markdown, words.markdown(made))
        else:
            write_text(markdown, words.markdown(made))
    if html is not None:
        write_text(html, words.page(made, [*history, made] if record is not None else []))
    if record is not None:
        append(record, made.model_dump_json(by_alias=True) + "\n")


def append(path: Path, text: str) -> None:
    """One write at the end, on a line of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        file.write(("" if file.read(1) in (b"", b"\n") else "\n").encode() + text.encode())


def show(made: Gate, as_json: bool, quiet: bool) -> None:
    from quantadvisor.reports import gate as words

    if os.environ.get("GITHUB_ACTIONS"):
        for line in words.workflow_commands(made):
            print(line, file=sys.stderr)
    if as_json:
        print(made.model_dump_json(by_alias=True))
    if quiet or as_json:
        return
    metrics = words.ordered(made)
    heads, *body = words.cells(metrics)
    table = Table(*heads, box=None, pad_edge=False)
    for metric, row in zip(metrics, body, strict=True):
        mark, *rest = (escape(cell) for cell in row)
        table.add_row(f"[{COLOURS[metric.state]}]{mark}[/]", *rest)
    console.print(table)
    console.print(f"[bold {COLOURS[made.state]}]{words.MARKS[made.state]}[/] {escape(words.headline(made))}", soft_wrap=True)
    for fact in words.facts(made):
        console.print(f"  [dim]{escape(fact)}[/dim]", soft_wrap=True)
