"""`make bench-gate`: does the live gate keep its promises here? 60 gates of an artifact against itself, 40 against itself
with a decode that is 5 % slower, run for real; the counts with Clopper-Pearson intervals beside the bars.

Resumable: each gate appends a line to `runs/bench-gate/gates.jsonl`; a rerun adds what is missing. Only lines of the same
device, the same versions and the same code (a hash of the gate, the workers and the runtime) are counted. `--limit N` runs
N more and stops. A planted gate whose measured effect lies outside 4.5 to 5.5 % is void and repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import slowed_runtime
from gate_artifact import build_artifact

from quantadvisor.advisor.gate_input import Asked
from quantadvisor.advisor.gate_live import Live, gate_live
from quantadvisor.advisor.gate_open import open_live
from quantadvisor.advisor.gate_sides import side_of
from quantadvisor.advisor.stages import Quiet
from quantadvisor.documents import Document, Gate

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "bench-gate"
WANTED = {"A/A": 60, "planted": 40}
SHARE, LEAST, MOST = 0.05, 0.045, 0.055
MOST_FALSE_ALARMS, LEAST_CAUGHT, MOST_INCONCLUSIVE, MOST_MEDIAN_S = 1, 38, 0.1, 90.0
CODE = (
    *(f"advisor/gate_{name}.py" for name in ("anomalies", "blocks", "exact", "inspect", "live", "rule", "times", "watch")),
    "profiling/energy.py",
    "profiling/measure.py",
    "profiling/memory.py",
    "profiling/worker.py",
    "profiling/workers.py",
    "profiling/runtimes/onnxruntime.py",
    "benchmarks/gate_artifact.py",
    "benchmarks/slowed_runtime.py",
)
PACKAGES = ("onnxruntime", "numpy")
SPEC = """schema: quantadvisor/workload/1
model: builtin:smollm2-135m
traffic: {prompt_tokens: 64, output_tokens: 32, concurrency: 1}
"""


class Line(Document):
    """One gate of this benchmark."""

    kind: str
    state: str
    regressed: tuple[str, ...]
    ratios: dict[str, tuple[float | None, float | None, float | None]]
    """metric -> ratio, low, high"""
    effect: float | None
    """Measured share by which decode was slowed; None where nothing was planted."""
    void: bool
    blocks: int
    rejected: int
    seconds: float
    """From the first pair being warm to the verdict."""
    whole_s: float
    notes: tuple[str, ...]
    at: str
    commit: str
    code: str
    device: str
    versions: dict[str, str]
    seed: int | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, help="gates to run now; without it until all are there")
    parser.add_argument("--file", type=Path, default=RUNS / "gates.jsonl")
    arguments = parser.parse_args()
    lines = [Line.model_validate_json(text) for text in read_lines(arguments.file)]
    with prepared() as live:
        mark = identity(live)
        mine = [line for line in lines if same(line, mark)]
        for _ in range(sum(WANTED.values()) * 2 if arguments.limit is None else arguments.limit):
            kind = next_kind(mine)
            if kind is None:
                break
            mine.append(run(live, kind, mark))
            append(arguments.file, mine[-1])
            print(told(mine[-1]), flush=True)
    holds = summary(mine)
    sys.exit(0 if holds or next_kind(mine) is not None else 1)


def prepared() -> Any:
    """The live gate of the artifact against itself, everything ready that all gates share."""
    artifact, spec = RUNS / "artifact", RUNS / "workload.yaml"
    spec.parent.mkdir(parents=True, exist_ok=True)
    spec.write_text(SPEC)
    if not (artifact / "model.onnx").exists():
        build_artifact(artifact)
    asked = Asked(
        sides=(str(artifact), str(artifact)), kinds=("artifact", "artifact"), pythons=(None, None), workload=spec,
        runtime="onnxruntime", quality="model", alpha=0.01, threshold=0.025, budget_s=None,
    )  # fmt: skip
    return open_live(asked, Quiet())


def identity(live: Live) -> dict[str, Any]:
    """What must be equal for two gates to be counted together, and the commit."""
    code = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in CODE) + f"{SPEC}{SHARE}".encode()).hexdigest()[:12]
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    versions = {name: version(name) for name in PACKAGES}
    return {"code": code, "device": live.device.fingerprint, "versions": versions, "commit": done.stdout.strip()}


def same(line: Line, mark: dict[str, Any]) -> bool:
    return (line.code, line.device, line.versions) == (mark["code"], mark["device"], mark["versions"])


def next_kind(lines: Sequence[Line]) -> str | None:
    """The kind that lags behind, so that both meet the same hours; None where all are there."""
    shares = {kind: len(counted(lines, kind)) / wanted for kind, wanted in WANTED.items()}
    kind = min(shares, key=lambda name: shares[name])
    return kind if shares[kind] < 1 else None


def counted(lines: Sequence[Line], kind: str) -> list[Line]:
    return [line for line in lines if line.kind == kind and not line.void]


def run(live: Live, kind: str, mark: dict[str, Any]) -> Line:
    """One gate with a coin of its own; the candidate of a planted one runs through the slowed runtime."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="quantadvisor-bench-") as folder:
        one = replace(live, seed=secrets.randbits(32))
        if kind == "planted":
            one = replace(one, starts=(one.starts[0], slowed_start(one, Path(folder))))
        made = gate_live(one)
        effect = slowed_runtime.planted(Path(folder)) if kind == "planted" else None
    return line_of(made, kind, effect, time.monotonic() - started, mark)


def slowed_start(live: Live, folder: Path) -> Any:
    side = side_of("candidate", Path(live.named[1]), "onnxruntime", None, live.device)
    option = f"{slowed_runtime.OPTION}={SHARE}={folder}"
    slowed = replace(side, runtime_file=Path(slowed_runtime.__file__), options=(option, *side.options))
    return partial(slowed.start, live.device.threads, int(live.device.memory_bytes * 0.4))


def line_of(made: Gate, kind: str, effect: float | None, whole_s: float, mark: dict[str, Any]) -> Line:
    times = [metric for metric in made.metrics if metric.kind == "time"]
    return Line(
        kind=kind,
        state=made.state,
        regressed=tuple(metric.name for metric in made.metrics if metric.state == "regression"),
        ratios={metric.name: (metric.ratio, metric.low, metric.high) for metric in times},
        effect=effect,
        void=effect is not None and not LEAST <= effect <= MOST,
        blocks=made.blocks,
        rejected=made.rejected_blocks,
        seconds=made.seconds,
        whole_s=whole_s,
        notes=made.notes,
        at=made.created_at,
        seed=made.seed,
        **mark,
    )


def read_lines(file: Path) -> Iterator[str]:
    if file.exists():
        yield from (text for text in file.read_text().splitlines() if text.strip())


def append(file: Path, line: Line) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as opened:
        opened.write(json.dumps(line.model_dump(mode="json")) + "\n")


def told(line: Line) -> str:
    ratios = ", ".join(
        f"{name} {ratio:.3f} [{low or 0:.3f}, {high or 0:.3f}]" for name, (ratio, low, high) in line.ratios.items()
    )
    planted = f", planted {line.effect:.2%}{' VOID' if line.void else ''}" if line.effect is not None else ""
    what = f"{line.kind}: {line.state} {' '.join(line.regressed)}{planted}"
    return f"{what}; {line.blocks} blocks, {line.rejected} rejected, {line.seconds:.0f} s; {ratios}"


def summary(lines: Sequence[Line]) -> bool:
    """Print what was counted beside the bars; do all hold?"""
    same_thing, planted = counted(lines, "A/A"), counted(lines, "planted")
    alarms = sum(line.state == "regression" for line in same_thing)
    caught = sum(line.state == "regression" and slowed_metric(line) for line in planted)
    missed = WANTED["planted"] - LEAST_CAUGHT
    rows = [
        ("false alarms", alarms, same_thing, f"at most {MOST_FALSE_ALARMS} of 60", alarms <= MOST_FALSE_ALARMS),
        ("5 % caught", caught, planted, f"at least {LEAST_CAUGHT} of 40", len(planted) - caught <= missed),
    ]
    for name, those in (("A/A inconclusive", same_thing), ("planted inconclusive", planted)):
        undecided = sum(line.state == "inconclusive" for line in those)
        rows.append((name, undecided, those, "at most 10 %", undecided <= MOST_INCONCLUSIVE * len(those)))
    print("\n| what | seen | 95 % interval | bar | holds |\n|---|---|---|---|---|")
    for name, count, those, bar, holds in rows:
        low, high = clopper_pearson(count, len(those))
        print(f"| {name} | {count} of {len(those)} | {low:.1%} to {high:.1%} | {bar} | {'yes' if holds else '**no**'} |")
    middle = statistics.median([line.seconds for line in (*same_thing, *planted)] or [0.0])
    quick = middle <= MOST_MEDIAN_S
    said = "yes" if quick else "**no**"
    print(f"| median time from warm to verdict | {middle:.0f} s | | at most {MOST_MEDIAN_S:.0f} s | {said} |")
    effects = sorted(line.effect for line in planted if line.effect is not None)
    void = sum(line.void for line in lines)
    if effects:
        spread = f"median {statistics.median(effects):.2%}, {effects[0]:.2%} to {effects[-1]:.2%}"
        print(f"\nplanted: {spread}; {void} void and repeated")
    for kind, wanted in WANTED.items():
        if len(counted(lines, kind)) < wanted:
            print(f"{kind}: {wanted - len(counted(lines, kind))} of {wanted} still to run: the same command goes on")
    return all(row[-1] for row in rows) and quick


def slowed_metric(line: Line) -> bool:
    """Is what was caught the decode, which was slowed?"""
    return bool({"tpot_s", "itl_s"} & set(line.regressed))


def clopper_pearson(count: int, total: int) -> tuple[float, float]:
    """Exact 95 % interval of a share (Clopper and Pearson, Biometrika 26, 1934)."""
    from scipy.stats import binomtest

    if not total:
        return 0.0, 1.0
    found = binomtest(count, total).proportion_ci(0.95, "exact")
    return float(found.low), float(found.high)


if __name__ == "__main__":
    main()
