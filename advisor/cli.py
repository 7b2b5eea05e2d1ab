"""The command line: `advisor run`, `profile`, `plan`, `apply`, `convert`, `explain`, `gate`, `report`, `init`, `runtimes`,
`methods`, `kernels`, `devices`, `selftest`, `selfcheck`, `doctor`, `schema`. Exit codes as in the contract.

Everything for people goes to standard error; `--json` prints exactly one JSON document on standard output.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.markup import escape

from quantadvisor import __version__
from quantadvisor.documents import AdvisorError, BadInput, Results, write_text

from .apply_command import apply as apply_method
from .apply_command import convert
from .gate_command import gate
from .plan_command import plan, stored_plan
from .selfcheck_command import selfcheck
from .selftest_command import selftest
from .stages import Progress, Quiet
from .stored_results import read_results
from .terminal import LiveProgress, console, explanation_panel, verdict_panel

if TYPE_CHECKING:
    from .listings import Listing

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")

NOTHING_MEETS = 5
DEFECT = 70
INTERRUPTED = 130

Out = Annotated[Path, typer.Option("--out", help="folder of the run")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document on standard output")]
Silent = Annotated[bool, typer.Option("--quiet", help="say nothing but errors")]
Preset = Annotated[str | None, typer.Option("--preset", help="chat, rag, summarize, agents or long_context, without a file")]
Users = Annotated[int | None, typer.Option("--concurrency", help="requests in flight, with --preset", min=1)]
SpecOption = Annotated[
    Path | None, typer.Option("--workload", help="at the sizes, in the runtimes and interpreters of this spec")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda:N, as in a spec: whose kernels are timed")]
ModelOption = Annotated[str | None, typer.Option("--model", help="at the sizes of this model: builtin:smollm2-135m, a folder, …")]


@app.command()
def run(
    spec: Annotated[
        str,
        typer.Argument(help="workload YAML; with --preset a model: builtin:smollm2-135m, a folder, a GGUF, a hub id"),
    ],
    out: Out = Path("advice"),
    preset: Preset = None,
    concurrency: Users = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue an interrupted run at the stage it was in")] = False,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="measure the other candidates too, and print the regret")
    ] = False,
    apply: Annotated[bool, typer.Option("--apply/--no-apply", help="apply the advice and measure it")] = True,
    as_json: Json = False,
    quiet: Silent = False,
) -> None:
    """The whole job: profile, diagnose, decide, apply, prove, report."""
    from . import pipeline
    from .spec import workload_of

    workload = workload_of(spec, preset, concurrency)
    results = pipeline.run(workload, out, progress(quiet or as_json), resume=resume, exhaustive=exhaustive, apply=apply)
    write_results(results, out)
    show(results, out, as_json, quiet)
    if results.verdict.choice is None:
        raise typer.Exit(NOTHING_MEETS)


@app.command()
def profile(
    spec: Annotated[str, typer.Argument(help="workload YAML, or a model with --preset")],
    out: Out = Path("advice"),
    preset: Preset = None,
    concurrency: Users = None,
    resume: Annotated[bool, typer.Option("--resume")] = False,
    as_json: Json = False,
    quiet: Silent = False,
) -> None:
    """Profile and diagnosis only."""
    from . import pipeline
    from .spec import workload_of

    job = pipeline.Run(workload_of(spec, preset, concurrency), out, resume, progress(quiet or as_json))
    surveyed, _ = job.survey()
    surveyed.write(out / "profile.json")
    if as_json:
        print(surveyed.model_dump_json(by_alias=True))
    elif not quiet:
        for name in ("capacity", "prefill", "decode"):
            part = getattr(surveyed.diagnosis, name)
            shares = ", ".join(f"{key} {value:.0%}" for key, value in part.shares.model_dump().items())
            console.print(f"{name}: [bold]{part.binds}[/bold] ({shares})")
        console.print(f"the objective: [bold]{surveyed.diagnosis.binds}[/bold]; written to {out / 'profile.json'}")


@app.command()
def explain(
    checkpoint: Annotated[str, typer.Argument(help="a quantized model: GGUF file, or a folder: ONNX, OpenVINO IR, Hugging Face")],
    workload: Annotated[Path, typer.Option("--workload", help="workload YAML; its model is the unquantized one")],
    runtime: Annotated[str | None, typer.Option("--runtime", help="runtime, with options: openvino+bf16")] = None,
    as_json: Json = False,
    quiet: Silent = False,
) -> None:
    """Why an existing quantized checkpoint is, or is not, faster than the unquantized model on the same runtime."""
    from .side_by_side import explain_checkpoint
    from .spec import load_workload

    found = explain_checkpoint(checkpoint, load_workload(workload), runtime, progress(quiet or as_json))
    if as_json:
        print(found.model_dump_json(by_alias=True))
    elif not quiet:
        console.print(explanation_panel(found))


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(help="results.json files, folders that hold one, or one history of gates")],
    out: Annotated[Path, typer.Option("--out", help="file to write: HTML, or by its ending .md or .txt")] = Path("report.html"),
) -> None:
    """The report again from stored results, byte for byte; several side by side.

    Of a gate's history (.jsonl) or a plan (plan.json): its page.
    """
    from quantadvisor.reports.plan import render_plan

    from .completed import completed
    from .gate_record import history_page

    if out.is_dir():
        raise BadInput(str(out), "is a folder", "give the name of a file")
    history = [path for path in results if path.suffix == ".jsonl"]
    plans = [(path, plan) for path in results if not history and (plan := stored_plan(path)) is not None]
    if (history or plans) and len(results) > 1:
        alone = history[0] if history else plans[0][0]
        raise BadInput(str(alone), f"a {'history of gates' if history else 'plan'} is drawn alone", "give one file")
    if history:
        text = history_page(history[0])
    elif plans:
        text = render_plan(plans[0][1])
    else:
        text = rendered([completed(read_results(path)) for path in results], out.suffix.lower())
    try:
        write_text(out, text)
    except OSError as error:
        raise BadInput(str(out), f"cannot be written: {error.strerror}", "give another --out") from None
    console.print(f"written to {escape(str(out))}", soft_wrap=True)


def rendered(results: Sequence[Results], ending: str) -> str:
    """HTML, or what the ending asks for."""
    from quantadvisor.reports.html import render_html
    from quantadvisor.reports.markdown import render_markdown
    from quantadvisor.reports.text import render_text

    if ending == ".md":
        return render_markdown(results)
    return "\n".join(map(render_text, results)) if ending == ".txt" else render_html(results)


app.command("apply")(apply_method)
app.command()(convert)
app.command()(gate)
app.command()(plan)
app.command()(selftest)
app.command()(selfcheck)


@app.command()
def init(
    preset: Annotated[str, typer.Option("--preset", help="chat, rag, summarize, agents or long_context")] = "chat",
    from_log: Annotated[
        Path | None, typer.Option("--from-log", help="request log, JSON Lines: takes the measured lengths")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="file to write")] = Path("workload.yaml"),
) -> None:
    """Write a commented workload spec."""
    from .spec import init_text

    if out.exists():
        raise BadInput(str(out), "exists already", "give another --out")
    write_text(out, init_text(preset, from_log))
    console.print(f"written to {out}; now: advisor run {out}")


@app.command()
def doctor(as_json: Json = False) -> None:
    """The environment, what is missing, and the command that adds it."""
    from . import doctor as examination

    findings = examination.examine()
    if as_json:
        print(json.dumps([finding.model_dump(mode="json") for finding in findings]))
    else:
        marks = {"ok": "[green]✓[/green]", "error": "[red]✗[/red]"}
        for finding in findings:
            command = f"  [bold]{escape(finding.command)}[/bold]" if finding.command else ""
            mark = marks.get(finding.status, "[yellow]·[/yellow]")
            console.print(f"{mark} {escape(finding.name)}: {escape(finding.detail)}{command}", soft_wrap=True)
    if examination.failed(findings):
        raise typer.Exit(2)


@app.command()
def runtimes(
    model: ModelOption = None, workload: SpecOption = None, device: DeviceOption = "auto", as_json: Json = False
) -> None:
    """What runs here: runtime by scheme, ready, refused and why, or (with --model or --workload) a slow path that was timed."""
    from . import listings

    show_listing(listings.runtimes(listings.asked_of(model, workload), progress(as_json), device), as_json)


@app.command()
def methods(model: ModelOption = None, as_json: Json = False) -> None:
    """What can be applied: each method's schemes, and for each runtime whether it can be written here."""
    from . import listings

    show_listing(listings.methods(model), as_json)


@app.command()
def kernels(
    model: ModelOption = None,
    workload: SpecOption = None,
    budget: Annotated[float, typer.Option("--budget", help="seconds of timing; starting takes some more", min=1.0)] = 55.0,
    device: DeviceOption = "auto",
    as_json: Json = False,
) -> None:
    """The kernels that are known; with --model timed at its sizes: who wins at which M, and where that changes."""
    from . import listings

    show_listing(listings.kernels(listings.asked_of(model, workload), budget, progress(as_json), device), as_json)


@app.command()
def devices(as_json: Json = False) -> None:
    """This machine, and the GPUs that `advisor plan` knows: data sheet and whose kernels were measured there."""
    from . import listings

    show_listing(listings.devices(), as_json)


def show_listing(found: Listing, as_json: bool) -> None:
    if as_json:
        print(found.document)
    else:
        for table in found.tables:
            console.print(table)


@app.command()
def schema(which: Annotated[str, typer.Argument(help="workload or results")] = "workload") -> None:
    """JSON Schema of a document, on standard output."""
    from . import spec

    print(json.dumps(spec.schema(which), indent=1))  # type: ignore[arg-type]  # schema refuses other words


def version(wanted: bool) -> None:
    if wanted:
        print(f"quantadvisor {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="print the version")] = False,
) -> None:
    """Which quantization, on which runtime, pays for a declared serving workload."""


def progress(silent: bool) -> Progress:
    return Quiet() if silent else LiveProgress()


def write_results(results: Results, out: Path) -> None:
    from quantadvisor.reports.card import render_card
    from quantadvisor.reports.html import render_html

    results.write(out / "results.json")
    write_text(out / "report.html", render_html([results]))
    if results.artifact and (out / results.artifact.path).is_dir():
        write_text(out / results.artifact.path / "README.md", render_card(results))


def show(results: Results, out: Path, as_json: bool, quiet: bool) -> None:
    from quantadvisor.reports.text import verdict_lines

    if as_json:
        print(results.model_dump_json(by_alias=True))
    elif not quiet:
        lines = [escape(line) for line in verdict_lines(results)]
        for note in results.device.notes:
            console.print(f"[yellow]note[/yellow] {escape(note)}", soft_wrap=True)
        for line in results.extra.get("not_acted_on", ()):
            console.print(f"[yellow]declared but not used yet[/yellow] {escape(line)}", soft_wrap=True)
        console.print(verdict_panel(results, [*lines, "", f"report: {escape(str((out / 'report.html').resolve()))}"]))


def fail(error: BaseException) -> int:
    """One line for people, and the exit code."""
    if isinstance(error, AdvisorError):
        console.print(f"[red]error[/red] {escape(str(error))}", soft_wrap=True)
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        console.print("[yellow]interrupted[/yellow] the same command continues here, that of a run with --resume", soft_wrap=True)
        return INTERRUPTED
    handle, name = tempfile.mkstemp(prefix="quantadvisor-trace-", suffix=".txt")
    with os.fdopen(handle, "w") as file:
        traceback.print_exception(error, file=file)
    console.print(
        f"[red]defect[/red] {escape(type(error).__name__)}: {escape(str(error)[:200])}; trace saved at {name}",
        soft_wrap=True,
    )
    return DEFECT


def main() -> NoReturn:
    signal.signal(signal.SIGTERM, interrupt)
    try:
        code = app(standalone_mode=False) or 0
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        code = usage(error)
    if code == INTERRUPTED:  # Typer turns Ctrl-C into this code and says nothing
        fail(KeyboardInterrupt())
        sys.stdout.flush()
        os._exit(code)  # sys.exit would end by SIGINT, without the code, where Ctrl-C came while a library ran Python from C
    sys.exit(code)


def usage(error: Exception) -> int:
    """Errors of the command line itself are bad input; everything else goes to `fail`."""
    message = getattr(error, "format_message", None)  # click's own exceptions, wherever Typer imports them from
    if message is not None:
        console.print(f"[red]error[/red] {escape(' '.join(message().split()))}; see advisor --help", soft_wrap=True)
        return 2
    return fail(error)


def interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
