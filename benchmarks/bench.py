"""`make bench`: runs the three examples exhaustively and prints the table that the README keeps, with its date.

Every figure is computed from the results.json of these runs, and those of the kernel probe from two runs of `advisor kernels`;
`--reuse` reads what is already there. The table replaces the text between the two markers in README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

from quantadvisor.advisor.builtin_model import NAME
from quantadvisor.advisor.context import cache_folder
from quantadvisor.advisor.decide import maximised
from quantadvisor.advisor.expected import NO_GHOST
from quantadvisor.advisor.regret import NEAR, may_be_best
from quantadvisor.documents import Candidate, Document, Regret, Results, write_text
from quantadvisor.profiling.runtimes.registry import RUNTIMES

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ("chat", "summarize", "long_context")
BINDS = {"chat": "weights", "summarize": "activations", "long_context": "kv_cache"}
HERE = tuple(name for name in RUNTIMES if name != "triton")
"""Runtimes that a CPU can have."""
REGRET_BAR = "≤ 5 %, and nothing left that may be the best"
START, END = "<!-- bench -->", "<!-- /bench -->"


class Probing(Document):
    """`advisor kernels` at the sizes of the default model, all runtimes: seconds of the process with nothing kept and again."""

    cold_s: float
    cached_s: float
    untimed: int
    """Points that the first look did not reach within its budget."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reuse", action="store_true", help="read the runs that are in runs/ already")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    arguments = parser.parse_args()
    for name in EXAMPLES:
        if not (arguments.reuse and (arguments.runs / name / "results.json").exists()):
            advise(name, arguments.runs / name)
    found = {name: Results.read(arguments.runs / name / "results.json") for name in EXAMPLES}
    kept = arguments.runs / "probing.json"
    if not (arguments.reuse and kept.exists()):
        probing().write(kept)
    text = table(found, Probing.read(kept))
    print(text)
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(START)
    write_text(readme, f"{before}{START}\n{text}\n{END}{rest.split(END)[1]}")


def advise(name: str, out: Path) -> None:
    command = [sys.executable, "-m", "quantadvisor.advisor.cli", "run", str(ROOT / f"examples/{name}.yaml"), "--out", str(out)]
    done = subprocess.run([*command, "--exhaustive"], check=False)
    if done.returncode not in (0, 5):
        raise SystemExit(f"advisor run of {name} ended with {done.returncode}")


def probing() -> Probing:
    """Twice into a cache that holds the model alone."""
    command = [sys.executable, "-m", "quantadvisor.advisor.cli", "kernels", "--model", NAME, "--json"]
    seconds, counts = [], []
    with tempfile.TemporaryDirectory(prefix="quantadvisor-bench-") as cache:
        (Path(cache) / "models").symlink_to(cache_folder() / "models")
        for _ in range(2):
            started = time.monotonic()
            done = subprocess.run(command, env=os.environ | {"QUANTADVISOR_CACHE": cache}, stdout=subprocess.PIPE, check=True)
            seconds.append(time.monotonic() - started)
            counts.append(json.loads(done.stdout)["counts"])
    return Probing(cold_s=seconds[0], cached_s=seconds[1], untimed=counts[0].get("untimed", 0))


def table(found: dict[str, Results], probed: Probing) -> str:
    """Markdown: what must be reached, the bar, and what was measured."""
    device = next(iter(found.values())).device
    rows = [
        row
        for make in (runtimes, regret, binding, chat, summarize, long_context, prediction, share, memory, apply_memory)
        for row in make(found)
    ]
    rows += kernel_probe(probed)
    machine = f"{device.name}, {device.cores} cores ({', '.join(device.isa)})"
    head = f"Measured by `make bench` on {date.today().isoformat()}, {machine}.\n"
    lines = ["| what | at least | measured | holds |", "|---|---|---|---|"]
    lines += [f"| {what} | {bar} | {seen} | {'yes' if holds else '**no**'} |" for what, bar, seen, holds in rows]
    return head + "\n" + "\n".join(lines)


Row = tuple[str, str, str, bool]


def regret(found: dict[str, Results]) -> list[Row]:
    rows: list[Row] = []
    for name, results in found.items():
        r = results.regret
        if r is None:
            rows.append((f"regret of the advice, {name}", REGRET_BAR, "not measured", False))
            continue
        left = unreached(r, results.candidates, maximised(results.workload))
        seen = f"{r.ratio:.1%} [{r.low:.1%}, {r.high:.1%}], best {r.best}; {left.words}"
        rows.append((f"regret of the advice, {name}", REGRET_BAR, seen, r.ratio <= 0.05 and not (left.near or left.open)))
    return rows


class Unreached(NamedTuple):
    """Counts of candidates that the exhaustive measuring did not reach: `near`, predicted within NEAR of what the best one was
    predicted to be, or beyond; `open`, without a prediction; `excluded`, predicted to break a constraint, so that none can be
    the best."""

    total: int
    near: int
    open: int
    excluded: int

    @property
    def words(self) -> str:
        if not self.total:
            return "all measured"
        said = f"{self.total} not reached: {self.near} predicted within {NEAR:g}x of the best, {self.open} without a prediction"
        return f"{said}, {self.excluded} predicted to break a constraint"


def unreached(r: Regret, candidates: Sequence[Candidate], maximise: bool) -> Unreached:
    by_name = {c.name: c for c in candidates}
    left = [by_name[name] for name in r.not_measured]
    able = [c for c in left if c.excluded is None]
    predicted = [c.predicted.objective for c in able if c.predicted and c.predicted.objective is not None]
    best = by_name[r.best].predicted if r.best in by_name else None
    reference = best.objective if best and best.objective is not None else r.best_objective
    near = [one for one in predicted if may_be_best(one, reference, maximise)]
    return Unreached(len(left), len(near), len(able) - len(predicted), len(left) - len(able))


def binding(found: dict[str, Results]) -> list[Row]:
    seen = {name: r.diagnosis.binds for name, r in found.items()}
    return [("three examples, three diagnoses", ", ".join(BINDS.values()), ", ".join(seen.values()), seen == BINDS)]


def chosen(results: Results) -> Candidate | None:
    return next((c for c in results.candidates if c.name == results.verdict.choice), None)


def chat(found: dict[str, Results]) -> list[Row]:
    speed = found["chat"].verdict.decode_speedup
    choice = chosen(found["chat"])
    kl = f"KL {choice.quality.kl.mean:.4f}" if choice and choice.quality else "no quality"
    seen = (
        f"{speed.total:.2f}x = runtime {speed.runtime:.2f} x method {speed.method:.2f}, {choice.name if choice else ''}, {kl}"
        if speed
        else "none"
    )
    return [("chat: decode over torch bf16, mean KL ≤ 0.05", "≥ 4x", seen, speed is not None and speed.total >= 4)]


def summarize(found: dict[str, Results]) -> list[Row]:
    speed, choice = found["summarize"].verdict.speedup, chosen(found["summarize"])
    competed = dict.fromkeys(c.runtime for c in found["summarize"].candidates if c.measured)
    seen = f"{speed.total:.2f}x, {choice.name if choice else ''}, of {', '.join(competed)}" if speed else "none"
    holds = speed is not None and speed.total >= 1.15
    return [("summarize: request latency over torch bf16, same budget, all runtimes", "≥ 1.15x", seen, holds)]


def long_context(found: dict[str, Results]) -> list[Row]:
    results = found["long_context"]
    capacity, choice = results.verdict.capacity, chosen(results)
    over = capacity.over_best_unquantized_cache if capacity else None
    seen = f"{over:.2f}x ({capacity.max_concurrency} users, {choice.name if choice else ''})" if capacity and over else "none"
    step = capacity.step_over_best_unquantized_cache if capacity else None
    said = f"{step:.2f}x" if isinstance(step, float) else "none"
    faster = results.verdict.decode_speedup
    return [
        ("long_context: users over the fastest candidate with an unquantized cache", "≥ 1.6x", seen, bool(over and over >= 1.6)),
        (
            "long_context: decode step at 24 x 2,048 over the same",
            "as measured; < 1.05x must be said",
            said,
            isinstance(step, float),
        ),
        (
            "long_context: decode step at 24 x 2,048 over torch bf16",
            "≥ 2.2x",
            f"{faster.total:.2f}x" if faster else "none",
            faster is not None and faster.total >= 2.2,
        ),
    ]


def runtimes(found: dict[str, Results]) -> list[Row]:
    """Those in which a candidate was timed and the operators of its decode step were seen."""
    candidates = [c for results in found.values() for c in results.candidates]
    seen = dict.fromkeys(c.runtime for c in candidates if c.measured and c.operators and c.operators.operators)
    return [("runtimes that ran the model, with operator evidence", ", ".join(HERE), ", ".join(seen), {*HERE} <= {*seen})]


def kernel_probe(probed: Probing) -> list[Row]:
    seen = f"{probed.cold_s:.0f} s, {probed.untimed} points not reached; {probed.cached_s:.1f} s"
    holds = probed.cold_s <= 60 and probed.cached_s <= 5 and not probed.untimed
    return [("kernel probe of the default model, all runtimes, cold; kept", "≤ 60 s; ≤ 5 s", seen, holds)]


def prediction(found: dict[str, Results]) -> list[Row]:
    """Of candidates that a ghost speaks for; of the others, which are put in an order alone, the error is said beside."""
    rows: list[Row] = []
    for quantity, word in (("tpot_s", "TPOT"), ("ttft_s", "TTFT")):
        errors: dict[str, list[float]] = {}
        rough: list[float] = []
        for row in (row for results in found.values() for row in results.ledger if row.quantity == quantity):
            if NO_GHOST in row.basis:
                rough.append(abs(row.ratio - 1))
                continue
            runtime = row.candidate.split("@")[1].split("+")[0]
            errors.setdefault(runtime, []).append(abs(row.ratio - 1))
        everything = [error for each in errors.values() for error in each]
        middle = statistics.median(everything) if everything else float("nan")
        per = ", ".join(f"{runtime} {statistics.median(each):.0%} (n={len(each)})" for runtime, each in sorted(errors.items()))
        per += f"; without a ghost {statistics.median(rough):.0%} (n={len(rough)})" if rough else ""
        worst = max((statistics.median(each) for each in errors.values()), default=1.0)
        rows.append(
            (
                f"prediction of {word}, median error",
                "≤ 15 %, and per runtime",
                f"{middle:.0%} over {len(everything)}; {per}",
                middle <= 0.15 and worst <= 0.15,
            )
        )
    return rows


def share(found: dict[str, Results]) -> list[Row]:
    seen = {name: r.regret.measuring_share for name, r in found.items() if r.regret}
    return [
        (
            "measuring share of the advice",
            "≤ 25 %",
            ", ".join(f"{n} {s:.0%}" for n, s in seen.items()) or "none",
            bool(seen) and max(seen.values()) <= 0.25,
        )
    ]


def memory(found: dict[str, Results]) -> list[Row]:
    errors = [
        abs(row.ratio - 1)
        for r in found.values()
        for row in r.ledger
        if row.quantity == "peak_bytes" and row.candidate != r.profile.baseline
    ]
    middle = statistics.median(errors) if errors else float("nan")
    ledgers = {
        name: abs(r.profile.memory.total_bytes / r.profile.memory.measured_peak_bytes - 1)
        for name, r in found.items()
        if r.profile.memory and r.profile.memory.measured_peak_bytes
    }
    seen = ", ".join(f"{name} {error:.1%}" for name, error in ledgers.items())
    return [
        ("memory ledger of the baseline against peak_bytes", "≤ 5 %", seen, bool(ledgers) and max(ledgers.values()) <= 0.05),
        ("predicted peak_bytes of the candidates, median error", "≤ 5 %", f"{middle:.1%} over {len(errors)}", middle <= 0.05),
    ]


def apply_memory(found: dict[str, Results]) -> list[Row]:
    def parts(pick: Callable[[Candidate], int | None]) -> Sequence[tuple[int, str]]:
        return [(value, c.name) for r in found.values() for c in r.candidates if (value := pick(c))]

    model = next(iter(found.values())).profile.inventory.parameters * 4
    peak, name = max(parts(lambda c: c.apply_peak_bytes), default=(0, "none"))
    return [
        ("peak memory of applying a method over the fp32 model", "≤ 3x", f"{peak / model:.2f}x ({name})", 0 < peak <= 3 * model)
    ]


if __name__ == "__main__":
    main()
