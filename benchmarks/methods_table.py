"""`make methods`: every method x scheme on the embedded model, applied and run where a runtime here can, else simulated.

    python benchmarks/methods_table.py [--out runs/methods] [--redo-failed] [--only-page] [gptq gptq-w4-g64 …]

One row for each, written to OUT/rows.jsonl as soon as it is known: a run that is interrupted goes on where it stopped, and a
row that fails is written with its reason. Names limit it to methods or to `method-scheme`. The page is docs/methods.md.

A *measured* row's artifact was built and run in its runtime: quality through the runtime itself, times of its requests
against the unquantized model in the same runtime, in turns in one run. A *simulated* row has no kernel here: its quality is
that of fake quantization in fp32, its bytes are arithmetic.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import methods_encoder
import numpy as np
from methods_encoder import EncoderRow
from methods_page import page

from quantadvisor.advisor.builds import build_all
from quantadvisor.advisor.candidates import Entry, candidate, candidate_name
from quantadvisor.advisor.catalogue import missing_writer
from quantadvisor.advisor.context import EVALUATION_TOKENS, Context, export_format
from quantadvisor.advisor.pipeline import load_model
from quantadvisor.advisor.prove import quality_of_candidate, start_workers
from quantadvisor.advisor.risk import Job, schemes_at_risk, simulate_all
from quantadvisor.advisor.stages import Quiet
from quantadvisor.advisor.survey import look_at_operators, make_reference
from quantadvisor.documents import AdvisorError, Candidate, Figure, OpenDocument, Quality, Scheme, Traffic, Workload, write_text
from quantadvisor.kernels.timing import figure
from quantadvisor.methods.registry import METHODS, method
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.device import describe_device
from quantadvisor.profiling.environments import interpreter_of
from quantadvisor.profiling.ledger import bytes_of_weights
from quantadvisor.profiling.measure import Round, interleave

ROOT = Path(__file__).resolve().parent.parent
MODEL = "builtin:smollm2-135m"
PLACES = ("onnxruntime", "openvino+f32", "llama.cpp", "vllm", "torch")
"""Runtimes by preference: the first that can run a scheme runs its row."""
TRAFFIC = Traffic(prompt_tokens=128, output_tokens=32, concurrency=1)
ROUNDS = 5
TRAIN_S = 600.0
"""What each method that trains may take."""
GUESS_S = {"measured": 60.0, "simulated": 60.0, "refused": 0.1, "failed": 30.0}
"""Seconds of a row of a kind of which none is known yet."""

Kind = Literal["measured", "simulated", "refused", "failed"]


class Row(OpenDocument):
    """One method x scheme. `decode`, `prefill`: time of the unquantized model in the same runtime over this one's."""

    model: str
    method: str
    scheme: str
    target: str
    kind: Kind
    place: str | None = None
    reason: str | None = None
    bytes: int | None = None
    plain_bytes: int | None = None
    """Of the unquantized model in the same form."""
    quality: Quality | None = None
    apply_s: float | None = None
    apply_peak_bytes: int | None = None
    decode: Figure | None = None
    prefill: Figure | None = None
    quantized_linears: int | None = None
    linears: int | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.method}-{self.scheme}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "methods")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "methods.md")
    parser.add_argument("--redo-failed", action="store_true", help="rows that failed are tried again")
    parser.add_argument("--only-page", action="store_true", help="nothing is measured: the page of the rows that are there")
    asked = parser.parse_args()
    context = context_of(MODEL, asked.out)
    kept = asked.out / "rows.jsonl"
    rows = known_rows(kept, context.source.sha256)
    if not asked.only_page:
        fill(context, rows, wanted(asked.names), kept, asked.redo_failed)
    encoder = encoder_rows(asked.out / "encoder.jsonl", measure=not asked.only_page and not asked.names)
    shown = [rows[name] for name in order(rows)]
    write_text(asked.page, page(shown, encoder, context.device, context.evaluation[1], EVALUATION_TOKENS))
    print(f"written to {asked.page}: {len(shown)} of {len(wanted(()))} rows")


def fill(context: Context, rows: dict[str, Row], names: Sequence[tuple[str, Scheme]], kept: Path, redo_failed: bool) -> None:
    """Rows that are not known yet into `rows` and the file; each says the time left."""
    open_ = [(m, s) for m, s in names if (old := rows.get(f"{m}-{s.name}")) is None or (redo_failed and old.kind == "failed")]
    for done, (method_name, made) in enumerate(open_):
        start = time.monotonic()
        found = row_of(context, method_name, made).model_copy(update={"seconds": time.monotonic() - start})
        rows[found.name] = found
        with kept.open("a", encoding="utf-8") as file:
            file.write(found.model_dump_json() + "\n")
        left = remaining_s(rows.values(), len(open_) - done - 1)
        print(f"[{done + 1}/{len(open_)}] {in_short(found)} ({found.seconds:.0f} s; about {left / 60:.0f} min left)", flush=True)


def encoder_rows(kept: Path, measure: bool) -> list[EncoderRow]:
    """Rows of the encoder: known ones and, where its package is there, those that are missing."""
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []
    found = {row.name: row for row in map(EncoderRow.model_validate_json, lines)}
    folder = methods_encoder.model_folder()
    if measure and folder is not None:
        for row in methods_encoder.rows(folder, dict(found)):
            found[row.name] = row
            with kept.open("a", encoding="utf-8") as file:
                file.write(row.model_dump_json() + "\n")
            print(f"MiniLM {row.name}: 1 - cosine {row.distance.mean:.5f} ({row.seconds:.0f} s)", flush=True)
    return list(found.values())


def remaining_s(known: Iterable[Row], rows: int) -> float:
    """Rows still to come at the mean of those that are known."""
    seconds = [row.seconds for row in known] or [GUESS_S["measured"]]
    return rows * sum(seconds) / len(seconds)


def in_short(row: Row) -> str:
    kl = f"KL {row.quality.kl.mean:.4f}" if row.quality else row.reason or ""
    return f"{row.name} {row.kind}{' in ' + row.place if row.place else ''}: {kl}"


def wanted(names: Sequence[str]) -> list[tuple[str, Scheme]]:
    """Every method and scheme, or those of some methods or `method-scheme` names."""
    found = [(name, made) for name in METHODS for made in method(name).schemes()]
    unknown = set(names) - {m for m, _ in found} - {f"{m}-{s.name}" for m, s in found}
    if unknown:
        raise SystemExit(f"no method or method-scheme named {sorted(unknown)[0]!r}; methods: {', '.join(METHODS)}")
    return [(m, s) for m, s in found if not names or m in names or f"{m}-{s.name}" in names]


def order(rows: dict[str, Row]) -> list[str]:
    return [name for m, s in wanted(()) if (name := f"{m}-{s.name}") in rows]


def known_rows(path: Path, model_sha256: str) -> dict[str, Row]:
    """Rows of this model by name, the newest of each; a line cut short by an interruption is passed over."""
    found: dict[str, Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = Row.model_validate_json(line)
        except ValueError:
            continue
        if row.model == model_sha256[:12]:
            found[row.name] = row
    return found


def context_of(model: str, out: Path) -> Context:
    out.mkdir(parents=True, exist_ok=True)
    workload = Workload.model_validate(
        {"schema": "quantadvisor/workload/1", "model": model, "traffic": TRAFFIC, "budget": {"train_s": TRAIN_S}}
    )
    loaded = load_model(workload, Quiet())
    return Context(workload, describe_device(), loaded.inventory, loaded.source, loaded.folder, out, Lines())


class Lines(Quiet):
    """What is being done, on one line that is overwritten, where somebody looks."""

    def say(self, what: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K  {what}", end="\r", file=sys.stderr, flush=True)


def row_of(context: Context, method_name: str, made: Scheme) -> Row:
    """The row, whatever happens: a failure is a row with its reason."""
    row = Row(model=context.source.sha256[:12], method=method_name, scheme=made.name, target=method(method_name).TARGET,
              kind="failed")  # fmt: skip
    try:
        chosen, refused = place_of(context, method_name, made)
        if chosen is not None:
            return measured(context, chosen, row)
        if schemes_at_risk([(method_name, made)], trained=True):
            return simulated(context, method_name, made, row.model_copy(update={"reason": refused}))
        return row.model_copy(update={"kind": "refused", "reason": refused})
    except AdvisorError as error:
        return row.model_copy(update={"reason": str(error)})
    except Exception as error:
        return row.model_copy(update={"reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})


def place_of(context: Context, method_name: str, made: Scheme) -> tuple[Candidate | None, str]:
    """The first runtime here that runs the scheme, or what the first of all lacks."""
    reasons = []
    for place in PLACES:
        name, *options = place.split("+")
        if name == "llama.cpp" and made.quantizes_cache:
            options = ["fa"]
        entry = Entry(method_name, made.name, method(method_name).TARGET, ())
        found = candidate(entry, name, tuple(options), context.model_folder, context.device, interpreter_of(name))
        lacking = found.refused or missing_writer(export_format(name))
        if lacking is None:
            return found, ""
        reasons.append(lacking)
    telling = [reason for reason in reasons if "writes nothing for" not in reason]
    return None, (telling or reasons)[0]


def measured(context: Context, one: Candidate, row: Row) -> Row:
    """Built, run in turns with the unquantized model of the same runtime, scored and looked into."""
    plain = plain_of(context, one)
    base = context.build("none", scheme("fp32"), one.runtime)
    builds = {c.name: context.build_of(c) for c in (plain, one)}
    done = build_all([base, *builds.values()], context.progress.say, processes=1)
    built = done[builds[one.name].out]
    if built.failed:
        return row.model_copy(update={"place": place_name(one), "reason": built.failed})
    try:
        with ExitStack() as stack:
            workers, broke = start_workers({c.name: context.worker_of(c) for c in (plain, one)}, stack)
            rounds, failed = interleave(workers, context.prompts, TRAFFIC, ROUNDS, progress=context.progress.say)
            if reason := (broke | failed).get(one.name):
                return row.model_copy(update={"place": place_name(one), "reason": reason})
            quality = quality_of_candidate(context, one, workers[one.name])
            operators, _ = look_at_operators(context, workers[one.name])
    finally:
        if builds[one.name].out.parent == context.out / "work":
            shutil.rmtree(builds[one.name].out, ignore_errors=True)
    against = rounds.get(plain.name, []) if one.name != plain.name else []
    return row.model_copy(update={
        "kind": "measured", "place": place_name(one), "quality": quality, "bytes": built.bytes,
        "plain_bytes": done[builds[plain.name].out].bytes, "apply_s": built.seconds, "apply_peak_bytes": built.peak_bytes,
        "decode": gain(against, rounds[one.name], "tpot_s"), "prefill": gain(against, rounds[one.name], "ttft_s"),
        "quantized_linears": operators.quantized_linears, "linears": operators.linears, "notes": built.notes,
    })  # fmt: skip


def plain_of(context: Context, one: Candidate) -> Candidate:
    """The unquantized model as the same runtime computes it."""
    kind = "bf16" if one.runtime in ("llama.cpp", "vllm") else "fp32"
    entry = Entry("none", kind, "none", ())
    return candidate(entry, one.runtime, one.options, context.model_folder, context.device, interpreter_of(one.runtime))


def place_name(one: Candidate) -> str:
    return candidate_name("", "", one.runtime, one.options).split("@")[1]


def gain(plain: Sequence[Round], ours: Sequence[Round], what: str) -> Figure | None:
    """Round by round, the unquantized model's time over this one's."""
    ratios = [getattr(p, what) / getattr(o, what) for p, o in zip(plain, ours, strict=False) if getattr(o, what)]
    return figure(ratios, "measured", f"{what}, unquantized over quantized, rounds in turns") if ratios else None


def simulated(context: Context, method_name: str, made: Scheme, row: Row) -> Row:
    """Fake quantization; `apply_s` holds the scoring too."""
    name = f"{method_name}-{made.name}"
    work = context.workload
    calibration = context.calibration_file(work.calibration.samples)
    job = Job(context.model_folder, {name: made}, calibration, train_s=work.budget.train_s)
    reference = make_reference(context)
    start = time.monotonic()
    quality = simulate_all([job], context.windows(EVALUATION_TOKENS), reference, context.evaluation[1].name)[0][name]
    if not np.isfinite(quality.kl.mean):
        return row.model_copy(update={"reason": "its logits are not finite"})
    return row.model_copy(update={
        "kind": "simulated", "quality": quality, "apply_s": time.monotonic() - start,
        "bytes": bytes_of_weights(context.inventory, made), "plain_bytes": bytes_of_weights(context.inventory, scheme("fp32")),
    })  # fmt: skip


if __name__ == "__main__":
    main()
