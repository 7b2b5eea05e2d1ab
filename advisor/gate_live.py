"""`advisor gate` on two artifacts: inspected, then measured interleaved until decided or until the time is up."""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from quantadvisor.documents import (
    EXIT_CODES,
    BadInput,
    CandidateFailed,
    Device,
    Factor,
    Gate,
    GateMetric,
    Workload,
    overall,
)

from .gate_blocks import MOST_OUTPUT_TOKENS, SIDES, Block, SideFailed, Start, paired_times, peak_bytes, quiet, run_blocks
from .gate_exact import MEMORY_TOLERANCE, exact
from .gate_inspect import inspect, inspected_metrics
from .gate_rule import ALPHA, THRESHOLD
from .gate_times import paired_metrics
from .gate_watch import LOAD_OF_OTHERS, blind

BUDGET_S = 180.0


class CandidateBroke(Exception):
    """The candidate does not run where the baseline does: a regression, with its reason."""


@dataclass(frozen=True)
class Live:
    """What a live gate is asked: two ways to start a worker, and the workload."""

    named: tuple[str, str]
    starts: tuple[Start, Start]
    prompts: np.ndarray
    """int64 [concurrency, prompt]"""
    workload: Workload
    device: Device
    sizes: tuple[int, int] | None = None
    windows: np.ndarray | None = None
    """int64 [W, S]: the text that quality is judged on; None: it is not."""
    reference: Path | None = None
    """fp32 log-probabilities of the model; None: the baseline's own are the reference."""
    factors: tuple[Factor, ...] = ()
    notes: tuple[str, ...] = ()
    alpha: float = ALPHA
    threshold: float = THRESHOLD
    budget_s: float = BUDGET_S
    seed: int = field(default_factory=lambda: secrets.randbits(32))


def gate_live(live: Live, say: Callable[[str], None] = lambda _: None) -> Gate:
    """Bytes, operators and quality first, one process each; then time and memory, in blocks."""
    metrics: list[GateMetric] = []
    notes: list[str] = [*live.notes]
    blocks: list[Block] = []
    seconds = 0.0
    of = live.named[1]
    if live.sizes is not None:
        metrics.append(exact(of, "artifact_bytes", "bytes", *live.sizes))
    try:
        looked, said = look(live, say)
        metrics += looked
        notes += said
        started = time.monotonic()
        blocks = measure(live, say)
        seconds = time.monotonic() - started
        metrics = times(live, blocks) + metrics
    except CandidateBroke as error:
        metrics.append(GateMetric(of=of, name="runs", kind="operators", state="regression", reason=str(error)))
    state = overall(metrics)
    return Gate(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        mode="live",
        baseline=live.named[0],
        candidate=live.named[1],
        device=live.device.name,
        workload=words(live.workload),
        state=state,
        exit_code=EXIT_CODES[state],
        threshold=live.threshold,
        alpha=live.alpha,
        metrics=tuple(metrics),
        factors=live.factors,
        notes=tuple(notes + said_of(blocks, live)),
        blocks=len(quiet(blocks)),
        rejected_blocks=len(blocks) - len(quiet(blocks)),
        seed=live.seed,
        seconds=seconds,
    )


def look(live: Live, say: Callable[[str], None]) -> tuple[list[GateMetric], list[str]]:
    """Operators, output and quality of both sides, and notes; the scores' reference is the model's or the baseline's own."""
    with tempfile.TemporaryDirectory(prefix="quantadvisor-gate-") as folder:
        reference = live.reference or Path(folder) / "reference.npy"
        seen = []
        for side, start in zip(SIDES, live.starts, strict=True):
            say(f"{side}: output, operators" + (", quality" if live.windows is not None else ""))
            imported = start()
            try:
                imported.ready()
            except CandidateFailed as error:
                imported.close()
                raise BadInput(side, f"its runtime does not load: {error}") from None
            try:
                with imported as worker:
                    seen.append(inspect(worker, live.prompts, live.windows, reference))
            except CandidateFailed as error:
                raise broken(side, error) from None
    notes = [f"{side}: {note}" for side, one in zip(SIDES, seen, strict=True) for note in one.notes]
    return inspected_metrics(live.named[1], seen[0], seen[1], live.reference is not None), notes


def broken(side: str, error: CandidateFailed) -> Exception:
    """A baseline that does not run is bad input; a candidate that does not is a regression."""
    return BadInput(side, f"does not run: {error}") if side == "baseline" else CandidateBroke(f"does not run: {error}")


def measure(live: Live, say: Callable[[str], None]) -> list[Block]:
    def decided(blocks: Sequence[Block]) -> bool:
        states = [metric.state for metric in times(live, blocks) if metric.kind == "time"]
        return "regression" in states or "inconclusive" not in states

    try:
        return run_blocks(
            live.starts,
            live.prompts,
            live.workload.traffic,
            seed=live.seed,
            budget_s=live.budget_s,
            decided=decided,
            say=say,
        )
    except SideFailed as error:
        raise broken(error.side, error) from None


def times(live: Live, blocks: Sequence[Block]) -> list[GateMetric]:
    """Time metrics and peak memory of the blocks that count."""
    of, counted = live.named[1], quiet(blocks)
    if not counted:
        reason = "every block was disturbed: measure on a quiet machine"
        return [GateMetric(of=of, name="tpot_s", kind="time", state="inconclusive", reason=reason)]
    metrics = paired_metrics(of, paired_times(counted), live.alpha, live.threshold)
    peaks = peak_bytes(counted, "baseline"), peak_bytes(counted, "candidate")
    return [*metrics, exact(of, "peak_bytes", "memory", *peaks, MEMORY_TOLERANCE)]


def said_of(blocks: Sequence[Block], live: Live) -> list[str]:
    """What the reader must know about this run."""
    notes = []
    reasons = [block.disturbed for block in blocks if block.disturbed]
    if reasons:
        notes.append(f"{len(reasons)} of {len(blocks)} blocks do not count: {reasons[-1]} (at most {LOAD_OF_OTHERS:g} may be)")
    if blocks and blind():
        notes.append("the load by others cannot be read here: nothing was rejected for it")
    if live.workload.traffic.output_length > MOST_OUTPUT_TOKENS:
        notes.append(f"{MOST_OUTPUT_TOKENS} of the {live.workload.traffic.output_length} output tokens are generated")
    if any(row.recorded for block in blocks[:1] for row in block.baseline):
        notes.append("caches are recorded: TTFT is modelled, one row's prefill x rows")
    return notes


def words(workload: Workload) -> str:
    traffic = workload.traffic
    return (
        f"{workload.model}, {traffic.prompt_length} prompt + {traffic.output_length} output tokens,"
        f" {traffic.concurrency} in flight"
    )
