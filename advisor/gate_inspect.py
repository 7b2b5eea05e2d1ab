"""What a live gate looks at beside the clock, each side in a process of its own: output, operators, quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quantadvisor.documents import CandidateFailed, GateMetric, GateState, Operators
from quantadvisor.profiling.quality import CHUNK, block_interval
from quantadvisor.profiling.workers import RunningWorker

from .gate_anomalies import Perplexities
from .gate_exact import operators_metric

OUTPUT_TOKENS = 32
LEAST_TOKENS = 16
"""An output shorter than this is not called incoherent."""
UNNOTICED_NATS = 0.001
"""Mean negative log-likelihood and KL may rise by less than this, 0.1 % of perplexity: other summation orders do that."""
UNNOTICED_TOP1 = 0.002
UNKNOWN = 20.0
"""An interval that begins on the good side and reaches this many times what goes unnoticed says nothing: 2 % of perplexity, 4 %
of top-1."""

PHASES: tuple[Literal["prefill"], Literal["decode"]] = ("prefill", "decode")


Output = tuple[int, ...] | tuple[str, ...]
"""What was generated: tokens, or a server's pieces of text."""


@dataclass(frozen=True)
class Inspected:
    output: Output
    operators: Mapping[str, Operators]
    scores: np.ndarray | None = None
    """float64 [3, tokens]: negative log-likelihood, KL and top-1 agreement against the reference."""
    notes: tuple[str, ...] = field(default=())


def inspect(worker: RunningWorker, prompts: np.ndarray, windows: np.ndarray | None, reference: Path) -> Inspected:
    """One request, the operators of both phases, and the text scored; where `reference` is not there yet this side is it."""
    output = worker.generate(prompts[:1], OUTPUT_TOKENS).generated[0]
    notes = []
    try:
        operators = operators_of(worker.operators(prompts[:1], None))
    except CandidateFailed as error:
        operators = {}
        notes.append(f"operators are not compared: {error}")
    scores = None
    if windows is not None:
        try:
            if not reference.exists():
                worker.write_reference(windows, reference)
            scores = worker.score(windows, reference, CHUNK)
        except CandidateFailed as error:
            notes.append(f"quality is not compared: {error}")
    return Inspected(tuple(output), operators, scores, tuple(notes))


def operators_of(seen: Mapping[str, Any]) -> dict[str, Operators]:
    return {
        phase: Operators(
            phase=phase,
            operators=seen[phase]["operators"],
            linears=seen[phase]["linears"],
            quantized_linears=seen[phase]["quantized_linears"],
        )
        for phase in PHASES
        if phase in seen
    }


def inspected_metrics(of: str, baseline: Inspected, candidate: Inspected, against_model: bool) -> list[GateMetric]:
    """Operators, output and quality; `against_model`: the scores are against the fp32 model, else against the baseline."""
    metrics = [
        operators_metric(of, baseline.operators[phase], candidate.operators[phase])
        for phase in PHASES
        if phase in baseline.operators and phase in candidate.operators
    ]
    metrics.append(output_metric(of, baseline.output, candidate.output))
    if baseline.scores is not None and candidate.scores is not None:
        metrics += scored_metrics(of, baseline.scores, candidate.scores, against_model)
    return metrics


def incoherent(output: Sequence[int | str], least: int = LEAST_TOKENS) -> bool:
    """One or two tokens or words over and over: what a model of wrong weights or a wrong cache says. Its first half, at most
    LEAST_TOKENS / 2, may be others; one shorter than `least` is not called so."""
    return len(output) >= least and len(set(output[min(len(output), LEAST_TOKENS) // 2 :])) <= 2


def output_metric(of: str, baseline: Output, candidate: Output) -> GateMetric:
    """A candidate whose output is cut short or incoherent did not do the baseline's work: its times mean nothing."""
    same = next((i for i, (a, b) in enumerate(zip(baseline, candidate, strict=False)) if a != b), len(baseline))
    state: GateState = "pass"
    reason = f"the first {same} of {len(baseline)} tokens are the baseline's"
    if len(candidate) < len(baseline):
        state, reason = "anomalous", f"cut short: {len(candidate)} tokens of {len(baseline)}"
    elif incoherent(candidate) and not incoherent(baseline):
        state, reason = "anomalous", f"incoherent: only {len(set(candidate))} different tokens of {len(candidate)}"
    return GateMetric(of=of, name="output", kind="quality", state=state, reason=reason)


def perplexities(baseline: Inspected, candidate: Inspected, windows: np.ndarray | None, reference: Path) -> Perplexities | None:
    """Of both sides and of the fp32 model whose log-probabilities, float16 [W * S, V], are `reference`; windows [W, S]."""
    if windows is None or baseline.scores is None or candidate.scores is None:
        return None
    log_probabilities = np.load(reference, mmap_mode="r")
    positions = np.arange(windows.size).reshape(windows.shape)[:, :-1]
    full = -log_probabilities[positions, windows[:, 1:]].astype(np.float64).mean()
    was, now = (float(np.exp(np.nanmean(scores[0]))) for scores in (baseline.scores, candidate.scores))
    return Perplexities(was, now, float(np.exp(full)))


def scored_metrics(of: str, baseline: np.ndarray, candidate: np.ndarray, against_model: bool) -> list[GateMetric]:
    """Paired on the same tokens; worse where the 95 % interval of the mean difference lies on the bad side of zero."""
    known = ~np.isnan(baseline[0])
    metrics = [paired_metric(of, "nll", baseline[0][known], candidate[0][known], UNNOTICED_NATS, 1.0, " nats")]
    if against_model:
        metrics.append(paired_metric(of, "kl", baseline[1], candidate[1], UNNOTICED_NATS, 1.0, " nats"))
        metrics.append(paired_metric(of, "top1", baseline[2], candidate[2], UNNOTICED_TOP1, -1.0, ""))
    else:
        said = f"; against the baseline: KL {candidate[1].mean():.2g} nats, top-1 {candidate[2].mean():.1%}"
        metrics[0] = metrics[0].model_copy(update={"reason": metrics[0].reason + said})
    return metrics


def paired_metric(
    of: str, name: str, baseline: np.ndarray, candidate: np.ndarray, unnoticed: float, bad: float, unit: str
) -> GateMetric:
    """`bad`: +1 where more is worse, −1 where less is."""
    difference = block_interval(bad * (candidate - baseline))
    state: GateState = "pass"
    if difference.low > 0 and difference.mean > unnoticed:
        state = "regression"
    elif difference.high > UNKNOWN * unnoticed:
        state = "inconclusive"
    low, high = sorted((bad * difference.low, bad * difference.high))
    return GateMetric(
        of=of,
        name=name,
        kind="quality",
        state=state,
        reason=f"{bad * difference.mean:+.4f}{unit} [{low:+.4f}, {high:+.4f}] over {len(baseline):,} tokens"
        + (": too few to tell" if state == "inconclusive" else ""),
        baseline=float(baseline.mean()),
        candidate=float(candidate.mean()),
    )
