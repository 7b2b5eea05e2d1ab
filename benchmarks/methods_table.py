"""`make methods`: every method x scheme on the embedded model, applied and run where a runtime here can, else simulated.

    python benchmarks/methods_table.py [--quality-only] [--redo] [--redo-failed] [--only-page] [gptq gptq-w4-g64 …]

A row (bytes, quality, operators, what applying costs) does not depend on what else the machine does; the speeds of a
measured row do. With `--quality-only` rows are made and nothing is timed: for a machine that is busy. A run without it
times what has no speed on this machine yet, and makes only the rows that are missing. Names limit it to methods, to
`method-scheme`, to `minilm` (the encoder), to `samples` (how many of calibration matter), to `greedy` (OBQ on a few rows) or
to `oracles`. Rows that cost little come first.

What is known is kept in OUT/rows.jsonl as soon as it is, and beside the page (docs/methods.jsonl), from which a fresh
checkout goes on. A row that fails is kept with its reason. One that was simulated or refused is made again once a runtime
that can run it is here.

A *measured* row's artifact was built and run in its runtime: quality through the runtime itself. A *simulated* row has no
kernel here: its quality is that of fake quantization in fp32, its bytes are arithmetic.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import methods_calibration
import methods_encoder
import methods_obq
import methods_oracles
from methods_distortion import distortions
from methods_page import page
from methods_rows import Known, Row, Speed, append, code_of, machine_of, outdated, read, twins, write
from methods_simulation import simulate, simulator
from methods_speeds import plain_of, speed_of

from quantadvisor.advisor.builds import build_all
from quantadvisor.advisor.candidates import Entry, candidate, candidate_name
from quantadvisor.advisor.context import EVALUATION_TOKENS, Context
from quantadvisor.advisor.pipeline import load_model
from quantadvisor.advisor.prove import quality_of_candidate
from quantadvisor.advisor.risk import SEARCHED, Job, schemes_at_risk
from quantadvisor.advisor.stages import Quiet
from quantadvisor.advisor.survey import look_at_operators, make_reference
from quantadvisor.documents import AdvisorError, Candidate, Scheme, Traffic, Workload, write_text
from quantadvisor.methods.registry import METHODS, method, trains
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.device import describe_device
from quantadvisor.profiling.environments import interpreter_of
from quantadvisor.profiling.ledger import bytes_of_weights
from quantadvisor.profiling.quality import quality_of

ROOT = Path(__file__).resolve().parent.parent
MODEL = "builtin:smollm2-135m"
PLACES = ("onnxruntime", "openvino+f32", "llama.cpp", "llama.cpp+plain", "vllm", "torch")
"""Runtimes by preference: the first that can run a scheme runs its row."""
TRAFFIC = Traffic(prompt_tokens=128, output_tokens=32, concurrency=1)
TRAIN_S = 240.0
"""What each method that trains may take."""
KEPT_S = 60.0
"""An artifact that took more CPU seconds to make is kept until it is timed."""
ENCODER, SAMPLES, GREEDY, ORACLES = "minilm", "samples", "greedy", "oracles"
"""What names the encoder's rows, the numbers of calibration samples, OBQ's rows of weights, and the oracles' verdicts."""
GUESS_S = 60.0
"""Of a row where none is known yet."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "methods")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "methods.md")
    parser.add_argument("--quality-only", action="store_true", help="nothing is timed: for a machine that does other work")
    parser.add_argument("--redo", action="store_true", help="the rows that are named are made again")
    parser.add_argument("--redo-failed", action="store_true", help="rows that failed are tried again")
    parser.add_argument("--only-page", action="store_true", help="nothing is measured: the page of the rows that are there")
    asked = parser.parse_args()
    if asked.redo and not asked.names:
        parser.error("--redo needs the names of what is to be made again")
    context = context_of(MODEL, asked.out, threads=1 if asked.quality_only else None)
    kept, beside = asked.out / "rows.jsonl", asked.page.with_suffix(".jsonl")
    known = read((beside, kept), context.source.sha256[:12], text_of(context))
    if not asked.only_page:
        with simulator() as pool:
            fill(context, known, asked, kept, pool)
    if not asked.only_page and (not asked.names or ENCODER in asked.names):
        methods_encoder.fill(known, kept, asked.redo)
    if not asked.only_page and (not asked.names or SAMPLES in asked.names):
        methods_calibration.fill(context, text_of(context), known, kept, asked.redo)
    if not asked.only_page and (not asked.names or GREEDY in asked.names):
        methods_obq.fill(context, known, kept, asked.redo)
    if not asked.only_page and (not asked.names or ORACLES in asked.names):
        methods_oracles.fill(known, kept, asked.redo)
    names = [f"{m}-{s.name}" for m, s in wanted(())]
    known = known._replace(rows={name: known.rows[name] for name in names if name in known.rows})
    write(beside, known)
    made = page(known, context, names, methods_oracles.code_digest(), distortions())
    write_text(asked.page, made)
    print(f"written to {asked.page}: {len(known.rows)} of {len(names)} rows")


def fill(context: Context, known: Known, asked: argparse.Namespace, kept: Path, pool: ProcessPoolExecutor) -> None:
    """What is not known yet into `known` and the file; each row says the time left."""
    todo = [each for each in cheapest_first(wanted(asked.names)) if due(context, known, *each, asked)]
    for done, (name, made) in enumerate(todo):
        start = time.monotonic()
        for record in visit(context, known, name, made, asked, pool):
            known.add(record)
            append(kept, record)
            said = in_short(record)
        left = remaining_s(known.rows.values(), len(todo) - done - 1)
        print(f"[{done + 1}/{len(todo)}] {said} ({time.monotonic() - start:.0f} s; about {left / 60:.0f} min left)", flush=True)


def due(context: Context, known: Known, method_name: str, made: Scheme, asked: argparse.Namespace) -> bool:
    return row_due(context, known, method_name, made, asked) or speed_due(context, known, f"{method_name}-{made.name}", asked)


def row_due(context: Context, known: Known, method_name: str, made: Scheme, asked: argparse.Namespace) -> bool:
    """Not known, or to be made again, or of other code, or only because a runtime was missing that is here."""
    old = known.rows.get(f"{method_name}-{made.name}")
    if old is None or asked.redo or outdated(old) or (asked.redo_failed and old.kind == "failed"):
        return True
    return old.kind in ("simulated", "refused") and place_of(context, method_name, made)[0] is not None


def speed_due(context: Context, known: Known, name: str, asked: argparse.Namespace) -> bool:
    """Not timed here, nor a row of the same operators and sizes."""
    row, here = known.rows.get(name), context.device.fingerprint
    if asked.quality_only or row is None or row.kind != "measured" or row.target == "none":
        return False
    found = [known.speeds[one, here] for one in (name, *twins(row, known.rows)) if (one, here) in known.speeds]
    return not found or (asked.redo_failed and all(speed.reason is not None for speed in found))


def visit(context: Context, known: Known, method_name: str, made: Scheme, asked: argparse.Namespace,
          pool: ProcessPoolExecutor) -> Iterator[Row | Speed]:  # fmt: skip
    """The row where it is due, then its speed where that is; the artifact between them is built once."""
    name = f"{method_name}-{made.name}"
    if row_due(context, known, method_name, made, asked):
        start = time.monotonic()
        found = row_of(context, method_name, made, pool)
        yield found.model_copy(update={"seconds": time.monotonic() - start})
    if speed_due(context, known, name, asked):
        chosen, _ = place_of(context, method_name, made)
        if chosen is not None:
            yield speed_of(context, chosen, TRAFFIC)
    row = known.rows[name]
    if row.place and (not asked.quality_only or (row.apply_cpu_s or 0.0) < KEPT_S):
        discard(context, method_name, made, row.place)


def discard(context: Context, method_name: str, made: Scheme, place: str) -> None:
    """Remove the artifact; the unquantized model's, which all share, stays."""
    out = context.build(method_name, made, place.split("+")[0]).out
    if out.parent == context.out / "work":
        shutil.rmtree(out, ignore_errors=True)


def remaining_s(known: Iterable[Row], rows: int) -> float:
    """Rows still to come at the mean of those that are known."""
    seconds = [row.seconds for row in known] or [GUESS_S]
    return rows * sum(seconds) / len(seconds)


def in_short(record: Row | Speed) -> str:
    if isinstance(record, Speed):
        return (
            f"{record.name} in {record.place}: {record.reason or f'decode {record.decode.median:.2f}x' if record.decode else ''}"
        )
    kl = f"KL {record.quality.kl.mean:.4f}" if record.quality else record.reason or ""
    return f"{record.name} {record.kind}{' in ' + record.place if record.place else ''}: {kl}"


def wanted(names: Sequence[str]) -> list[tuple[str, Scheme]]:
    """Every method and scheme, or those of some methods or `method-scheme` names."""
    found = [(name, made) for name in METHODS for made in method(name).schemes()]
    unknown = set(names) - {ENCODER, SAMPLES, GREEDY, ORACLES} - {m for m, _ in found} - {f"{m}-{s.name}" for m, s in found}
    if unknown:
        raise SystemExit(f"no method or method-scheme named {sorted(unknown)[0]!r}; methods: {', '.join(METHODS)}")
    return [(m, s) for m, s in found if not names or m in names or f"{m}-{s.name}" in names]


def cheapest_first(pairs: Iterable[tuple[str, Scheme]]) -> list[tuple[str, Scheme]]:
    """What only rounds, then what looks at calibration samples, then what goes through the model layer by layer, then what
    trains; in each bfloat16 last, for which a CPU may have no instructions."""

    def cost(pair: tuple[str, Scheme]) -> tuple[bool, ...]:
        name, made = pair
        return trains(name), name in SEARCHED, "samples" in method(name).COST, made.compute == "bf16"

    return sorted(pairs, key=cost)


def context_of(model: str, out: Path, threads: int | None = None) -> Context:
    """`threads`: of every runtime; on a busy machine several only wait for each other."""
    out.mkdir(parents=True, exist_ok=True)
    workload = Workload.model_validate(
        {"schema": "quantadvisor/workload/1", "model": model, "traffic": TRAFFIC, "budget": {"train_s": TRAIN_S}}
    )
    loaded = load_model(workload, Quiet())
    return Context(workload, describe_device(threads), loaded.inventory, loaded.source, loaded.folder, out, Lines())


def text_of(context: Context) -> str:
    return context.evaluation[1].sha256[:12]


class Lines(Quiet):
    """What is being done, on one line that is overwritten, where somebody looks."""

    def say(self, what: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K  {what}", end="\r", file=sys.stderr, flush=True)


def row_of(context: Context, method_name: str, made: Scheme, pool: ProcessPoolExecutor) -> Row:
    """The row, whatever happens: a failure is a row with its reason."""
    row = Row(model=context.source.sha256[:12], text=text_of(context), method=method_name, scheme=made.name,
              target=method(method_name).TARGET, kind="failed", machine=machine_of(context.device),
              code=code_of(method_name))  # fmt: skip
    refused = ""
    try:
        chosen, refused = place_of(context, method_name, made)
        if chosen is not None:
            return measured(context, chosen, row)
        if schemes_at_risk([(method_name, made)], trained=True):
            return simulated(context, made, row.model_copy(update={"reason": refused}), pool)
        return row.model_copy(update={"kind": "refused", "reason": refused})
    except AdvisorError as error:
        return row.model_copy(update={"reason": str(error)})
    except ModuleNotFoundError as error:
        return row.model_copy(update={"kind": "refused", "reason": f"{refused}; simulating it takes {error.name} too"})
    except Exception as error:
        return row.model_copy(update={"reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})


def place_of(context: Context, method_name: str, made: Scheme) -> tuple[Candidate | None, str]:
    """The first runtime here that runs the scheme, or what the first of all lacks."""
    reasons = []
    for place in PLACES:
        name, *options = place.split("+")
        if name == "llama.cpp" and made.quantizes_cache:
            options = ["fa", *options]
        entry = Entry(method_name, made.name, method(method_name).TARGET, ())
        found = candidate(entry, name, tuple(options), context.model_folder, context.device, interpreter_of(name))
        if found.refused is None:
            return found, ""
        reasons.append(found.refused)
    telling = [reason for reason in reasons if "writes nothing for" not in reason]
    return None, (telling or reasons)[0]


def measured(context: Context, one: Candidate, row: Row) -> Row:
    """Built, scored through its runtime and looked into."""
    row = row.model_copy(update={"place": place_name(one)})
    plain = context.build_of(plain_of(context, one))
    base = context.build("none", scheme("fp32"), one.runtime)
    build = context.build_of(one)
    done = build_all([base, plain, build], context.progress.say, processes=1)
    built = done[build.out]
    if built.failed:
        return row.model_copy(update={"reason": built.failed})
    with context.worker_of(one) as worker:
        quality = quality_of_candidate(context, one, worker)
        _, operators, _ = look_at_operators(context, worker)
    return row.model_copy(update={
        "kind": "measured", "quality": quality, "bytes": built.bytes, "plain_bytes": done[plain.out].bytes,
        "apply_cpu_s": built.cpu_s, "apply_peak_bytes": built.peak_bytes,
        "quantized_linears": operators.quantized_linears, "linears": operators.linears, "notes": built.notes,
    })  # fmt: skip


def place_name(one: Candidate) -> str:
    return candidate_name("", "", one.runtime, one.options).split("@")[1]


def simulated(context: Context, made: Scheme, row: Row, pool: ProcessPoolExecutor) -> Row:
    """Fake quantization."""
    work = context.workload
    calibration = context.calibration_file(work.calibration.drawn)
    job = Job(context.model_folder, {row.name: made}, calibration, train_s=work.budget.train_s)
    windows, reference = context.windows(EVALUATION_TOKENS), make_reference(context)
    found = pool.submit(simulate, job, row.name, made, windows, reference).result()
    return row.model_copy(update={
        "kind": "simulated", "quality": quality_of(found.scores, context.evaluation[1].name, simulated=True),
        "apply_cpu_s": found.apply_cpu_s, "apply_peak_bytes": found.apply_peak_bytes,
        "bytes": bytes_of_weights(context.inventory, made), "plain_bytes": bytes_of_weights(context.inventory, scheme("fp32")),
    })  # fmt: skip


if __name__ == "__main__":
    main()
