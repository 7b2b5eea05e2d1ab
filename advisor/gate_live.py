"""`advisor gate` on two artifacts: inspected, then measured interleaved until decided or until the time is up."""

from __future__ import annotations

import math
import secrets
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

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
from quantadvisor.profiling.measure import run_round

from .gate_anomalies import Perplexities, better_than_full, beyond_physics
from .gate_blocks import (
    MOST_OUTPUT_TOKENS,
    SIDES,
    WARM_UPS,
    Block,
    OneRound,
    Run,
    SideFailed,
    Start,
    paired_times,
    peak_bytes,
    quiet,
    run_blocks,
)
from .gate_exact import MEMORY_TOLERANCE, exact
from .gate_inspect import Inspected, inspect, inspected_metrics, perplexities
from .gate_rule import ALPHA, THRESHOLD, fewest_blocks
from .gate_times import paired_metrics
from .gate_watch import LOAD_OF_OTHERS, Snapshot, snapshot, unwatched

BUDGET_S = 180.0


@dataclass(frozen=True)
class Manner:
    """How a kind of side is looked at, timed and watched. The default: artifacts in workers of ours."""

    inspect: Callable[[Any, np.ndarray, np.ndarray | None, Path], Inspected] = inspect
    one_round: OneRound = run_round
    warm_ups: int = WARM_UPS
    take: Callable[[Sequence[int]], Snapshot] = snapshot
    not_ready: str = "its runtime does not load"
    candidate_may_break: bool = True
    """A candidate that breaks is a regression; False: it may as well be the network's fault, and is bad input."""


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
    read_bytes: int | None = None
    """Bytes of a candidate of which each decode step reads a good part; None: not known."""
    windows: np.ndarray | None = None
    """int64 [W, S]: the text that quality is judged on; None: it is not."""
    reference: Path | None = None
    """fp32 log-probabilities of the model; None: the baseline's own are the reference."""
    factors: tuple[Factor, ...] = ()
    notes: tuple[str, ...] = ()
    alpha: float = ALPHA
    threshold: float = THRESHOLD
    budget_s: float = BUDGET_S
    budget_asked: bool = False
    """Did the user name the budget? Then one in which nothing can be decided is bad input."""
    manner: Manner = Manner()
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
        looked = look(live, say)
        metrics += looked.metrics
        notes += looked.notes
        blocks, seconds = measure(live, say)
        timed = better_than_full(times(live, blocks), looked.perplexities)
        metrics = beyond_physics(timed, live.read_bytes, live.device.last_level_cache_bytes, reading_rate) + metrics
    except CandidateBroke as error:
        metrics.append(GateMetric(of=of, name="runs", kind="operators", state="regression", reason=str(error)))
    state = overall(metrics)
    if state == "inconclusive" and live.budget_asked:
        check_budget(live, blocks, seconds)
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


class Looked(NamedTuple):
    metrics: list[GateMetric]
    notes: list[str]
    perplexities: Perplexities | None
    """None where the fp32 model's is not known."""


def look(live: Live, say: Callable[[str], None]) -> Looked:
    """Operators, output and quality of both sides; the scores' reference is the model's or the baseline's own."""
    seen: list[Inspected] = []
    with tempfile.TemporaryDirectory(prefix="quantadvisor-gate-") as folder:
        reference = live.reference or Path(folder) / "reference.npy"
        for side, start in zip(SIDES, live.starts, strict=True):
            say(f"{side}: output, operators" + (", quality" if live.windows is not None else ""))
            imported = start()
            try:
                imported.ready()
            except CandidateFailed as error:
                imported.close()
                raise BadInput(where(live, side), f"{live.manner.not_ready}: {error}") from None
            try:
                with imported as worker:
                    seen.append(live.manner.inspect(worker, live.prompts, live.windows, reference))
            except CandidateFailed as error:
                raise broken(live, side, error) from None
    notes = [f"{side}: {note}" for side, one in zip(SIDES, seen, strict=True) for note in one.notes]
    full = perplexities(seen[0], seen[1], live.windows, live.reference) if live.reference is not None else None
    return Looked(inspected_metrics(live.named[1], seen[0], seen[1], live.reference is not None), notes, full)


def reading_rate() -> float:
    """Bytes per second that this machine reads from memory, measured now."""
    from quantadvisor.profiling.device import measure_reading

    return measure_reading().median


def where(live: Live, side: str) -> str:
    return f"{side} ({live.named[SIDES.index(side)]})"


def broken(live: Live, side: str, error: CandidateFailed) -> Exception:
    """A baseline that does not run is bad input; a candidate that does not is a regression, where it is ours to run."""
    if side == "candidate" and live.manner.candidate_may_break:
        return CandidateBroke(f"does not run: {error}")
    return BadInput(where(live, side), f"does not run: {error}")


def measure(live: Live, say: Callable[[str], None]) -> Run:
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
            one_round=live.manner.one_round,
            warm_ups=live.manner.warm_ups,
            take=live.manner.take,
            say=say,
        )
    except SideFailed as error:
        raise broken(live, error.side, error) from None


def check_budget(live: Live, blocks: Sequence[Block], seconds: float) -> None:
    """A budget that ended before the interval could begin contradicts alpha: BadInput with the one that would do."""
    sharing = 3 if any(row.itl_s for block in blocks for row in block.baseline) else 1
    fewest = fewest_blocks(live.alpha / sharing)
    if len(blocks) < fewest:
        what = (
            f"{live.budget_s:g} s ended after {len(blocks)} blocks, and at --alpha {live.alpha:g} none is decided before {fewest}"
        )
        raise BadInput("--time-budget", what, f"give {math.ceil(fewest * seconds / len(blocks))} s at least, or a larger --alpha")


def times(live: Live, blocks: Sequence[Block]) -> list[GateMetric]:
    """Time metrics and peak memory of the blocks that count."""
    of, counted = live.named[1], quiet(blocks)
    if not counted:
        reason = "every block was disturbed: measure on a quiet machine"
        return [GateMetric(of=of, name="tpot_s", kind="time", state="inconclusive", reason=reason)]
    metrics = paired_metrics(of, paired_times(counted), live.alpha, live.threshold)
    peaks = peak_bytes(counted, "baseline"), peak_bytes(counted, "candidate")
    return [*metrics, exact(of, "peak_bytes", "memory", *peaks, MEMORY_TOLERANCE)] if all(peaks) else metrics


def said_of(blocks: Sequence[Block], live: Live) -> list[str]:
    """What the reader must know about this run."""
    notes = []
    reasons = [block.disturbed for block in blocks if block.disturbed]
    if reasons:
        notes.append(f"{len(reasons)} of {len(blocks)} blocks do not count: {reasons[-1]} (at most {LOAD_OF_OTHERS:g} may be)")
    if blocks and live.manner.take is snapshot and (unread := unwatched()):
        notes.append(f"cannot be read here, so nothing was rejected for it: {', '.join(unread)}")
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
