"""`advisor gate BASELINE CANDIDATE`: two stored results, or two artifacts measured here; every way out."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

import typer
from rich.markup import escape
from rich.table import Table

from quantadvisor.documents import BadInput, Gate, write_text

from .stages import Progress, Quiet
from .terminal import LiveProgress, console

if TYPE_CHECKING:
    from .gate_live import Live

COLOURS = {"pass": "green", "regression": "red", "anomalous": "yellow", "inconclusive": "yellow"}
LARGEST_ALPHA = 0.2

Judged = Literal["model", "baseline", "none"]
ON_INCONCLUSIVE = ("fail", "warn")


def gate(
    baseline: Annotated[str, typer.Argument(help="artifact folder, results.json, or the folder of a run")],
    candidate: Annotated[str, typer.Argument(help="the same kind of thing; may be the same artifact")],
    workload: Annotated[Path | None, typer.Option("--workload", help="workload YAML; needed for artifacts")] = None,
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
    html: Annotated[Path | None, typer.Option("--html", help="HTML file")] = None,
    record: Annotated[Path | None, typer.Option("--record", help="JSON Lines history to append to")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="say nothing but errors")] = False,
) -> None:
    """The regression gate: is CANDIDATE slower, larger or worse than BASELINE, beyond the noise?"""
    check_numbers(threshold, alpha, time_budget)
    check_word("--on-inconclusive", on_inconclusive, ON_INCONCLUSIVE)
    check_word("--quality", quality, get_args(Judged))
    check_outputs({"--junit": junit, "--markdown": markdown, "--html": html, "--record": record})
    stored = [is_stored("BASELINE", baseline), is_stored("CANDIDATE", candidate)]
    if stored[0] != stored[1]:
        raise BadInput("gate", "one side is a stored result, the other an artifact", "give two of a kind")
    if stored[0]:
        refuse_live_options(
            {"--workload": workload, "--baseline-env": baseline_env, "--candidate-env": candidate_env}
            | {"--runtime": runtime, "--time-budget": time_budget}
        )
        made = decide_stored(baseline, candidate, alpha, threshold)
    else:
        from .gate_live import BUDGET_S, gate_live

        progress: Progress = Quiet() if quiet or as_json else LiveProgress()
        with progress.stage("Gate"):
            live = live_of(
                (Path(baseline), Path(candidate)),
                (baseline_env, candidate_env),
                workload,
                runtime,
                cast(Judged, quality),
                progress,
                (alpha, threshold, BUDGET_S if time_budget is None else time_budget),
            )
            made = gate_live(live, progress.say)
    if made.state == "inconclusive" and on_inconclusive == "warn":
        made = made.model_copy(update={"exit_code": 0})
    write_outputs(made, junit, markdown, html, record)
    show(made, as_json, quiet)
    if made.exit_code:
        raise typer.Exit(made.exit_code)


def check_numbers(threshold: float, alpha: float, time_budget: float | None) -> None:
    if not 0 < threshold < 1:
        raise BadInput("--threshold", f"must lie between 0 and 1, found {threshold:g}", "0.025 is 2.5 %")
    if not 0 < alpha <= LARGEST_ALPHA:
        raise BadInput("--alpha", f"must lie between 0 and {LARGEST_ALPHA:g}, found {alpha:g}", "0.01 is 1 %")
    if time_budget is not None and not 0 < time_budget < float("inf"):
        raise BadInput("--time-budget", f"must be seconds above 0, found {time_budget:g}")


def check_word(option: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise BadInput(option, f"unknown word {word!r}", f"one of {', '.join(known)}")


def check_outputs(paths: dict[str, Path | None]) -> None:
    """Before anything is measured: every output can be written."""
    for option, path in paths.items():
        if path is None:
            continue
        if path.is_dir():
            raise BadInput(f"{option} ({path})", "is a folder", "give the name of a file")
        parent = next(folder for folder in path.absolute().parents if folder.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise BadInput(f"{option} ({path})", f"cannot write in {parent}", "give another name")


def is_stored(where: str, side: str) -> bool:
    """Is it a stored result (a file, or a folder that holds one) rather than an artifact?"""
    if side.startswith(("http://", "https://")):
        raise BadInput(f"{where} ({side})", "running servers are not gated yet", "give an artifact folder or a results.json")
    if side.endswith((".yaml", ".yml")):
        raise BadInput(f"{where} ({side})", "is a workload spec", "give an artifact, and the spec with --workload")
    path = Path(side)
    if not path.exists():
        raise BadInput(f"{where} ({side})", "does not exist", "give an artifact folder or a results.json")
    return path.is_file() or (path / "results.json").is_file()


def refuse_live_options(options: dict[str, object]) -> None:
    for option, value in options.items():
        if value is not None:
            raise BadInput(option, "is for artifacts that are measured here", "leave it out with stored results")


def decide_stored(baseline: str, candidate: str, alpha: float, threshold: float) -> Gate:
    from .gate_stored import gate_stored
    from .stored_results import read_results

    sides = read_results(Path(baseline)), read_results(Path(candidate))
    return gate_stored(*sides, (baseline, candidate), alpha=alpha, threshold=threshold)


def live_of(
    artifacts: tuple[Path, Path],
    pythons: tuple[str | None, str | None],
    spec: Path | None,
    runtime: str | None,
    quality: Judged,
    progress: Progress,
    numbers: tuple[float, float, float],
) -> Live:
    """Everything that a live gate needs, checked before a worker starts."""
    from functools import partial

    from quantadvisor.profiling.device import describe_device

    from .gate_live import Live
    from .gate_sides import artifact_bytes, differing, side_of, versions
    from .gate_texts import texts_of
    from .spec import load_workload

    if spec is None:
        raise BadInput("--workload", "is missing: artifacts are measured under a workload", "advisor init writes one")
    workload, device = load_workload(spec), describe_device()
    names = ("baseline", "candidate")
    sides = [side_of(name, path, runtime, python, device) for name, path, python in zip(names, artifacts, pythons, strict=True)]
    found = [versions(name, side) for name, side in zip(names, sides, strict=True)]
    limit = int(device.memory_bytes * 0.4)
    alpha, threshold, budget_s = numbers
    texts = texts_of(workload, device, artifacts[0], quality, progress)
    return Live(
        named=(str(artifacts[0]), str(artifacts[1])),
        starts=(partial(sides[0].start, device.threads, limit), partial(sides[1].start, device.threads, limit)),
        prompts=texts.prompts,
        workload=workload,
        device=device,
        sizes=(artifact_bytes(artifacts[0]), artifact_bytes(artifacts[1])),
        windows=texts.windows,
        reference=texts.reference,
        factors=tuple(differing(*found)),
        notes=texts.notes,
        alpha=alpha,
        threshold=threshold,
        budget_s=budget_s,
    )


def write_outputs(made: Gate, junit: Path | None, markdown: Path | None, html: Path | None, record: Path | None) -> None:
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
        write_text(html, words.page(made))
    if record is not None:
        append(record, made.model_dump_json(by_alias=True) + "\n")


def append(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


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
