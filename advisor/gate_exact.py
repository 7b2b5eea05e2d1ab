"""What the gate compares without statistics of time: bytes and operators exactly, peak memory at 2 %, quality at its
interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from quantadvisor.documents import GateMetric, GateState, MetricKind, OperatorCount, Operators, Quality

MEMORY_TOLERANCE = 0.02
MOST_NAMED = 4


def exact(
    of: str, name: str, kind: MetricKind, baseline: float, candidate: float, tolerance: float = 0.0, digits: str = ",.0f"
) -> GateMetric:
    """More than `tolerance` above the baseline is a regression; less is said, and passes."""
    state: GateState = "regression" if candidate > baseline * (1 + tolerance) else "pass"
    change = candidate / baseline - 1 if baseline else 0.0
    if candidate == baseline:
        reason = "the same"
    else:
        reason = f"{baseline:{digits}} → {candidate:{digits}} ({change:+.2%})"
        reason += f", {'beyond' if state == 'regression' else 'within'} {tolerance:.0%}" if tolerance and change > 0 else ""
    ratio = candidate / baseline if baseline else None
    return GateMetric(
        of=of, name=name, kind=kind, state=state, reason=reason, baseline=baseline, candidate=candidate, ratio=ratio
    )


def signature(operators: Iterable[OperatorCount]) -> Counter[str]:
    """What ran, without its time."""
    counted: Counter[str] = Counter()
    for row in operators:
        counted[" ".join(part for part in (row.name, row.provider, row.precision) if part)] += row.count
    return counted


def operators_metric(of: str, baseline: Operators, candidate: Operators) -> GateMetric:
    """A kernel that changed or fell back is a failure of its own, even where the clock did not notice."""
    before, after = signature(baseline.operators), signature(candidate.operators)
    changed = [name for name in sorted(before | after) if before[name] != after[name]]
    fell_back = candidate.quantized_linears < baseline.quantized_linears
    parts = []
    if fell_back:
        parts.append(f"fell back: {baseline.quantized_linears} → {candidate.quantized_linears} quantized linears")
    parts += [f"{name} {before[name]} → {after[name]}" for name in changed[:MOST_NAMED]]
    if len(changed) > MOST_NAMED:
        parts.append(f"{len(changed) - MOST_NAMED} more")
    return GateMetric(
        of=of,
        name=f"{baseline.phase}_operators",
        kind="operators",
        state="regression" if parts else "pass",
        reason="; ".join(parts) or f"the same {before.total()} operators ran",
        baseline=before.total(),
        candidate=after.total(),
    )


def quality_metrics(of: str, baseline: Quality, candidate: Quality) -> list[GateMetric]:
    """Stored quality on the same tokens: worse where each mean lies outside the other's interval."""
    kl, top1 = (baseline.kl, candidate.kl), (baseline.top1, candidate.top1)
    found = [
        quality_metric(of, "kl", kl[0].mean, kl[1].mean, worse=kl[1].mean > kl[0].high and kl[0].mean < kl[1].low, unit=" nats"),
        quality_metric(of, "top1", top1[0].mean, top1[1].mean, worse=top1[1].mean < top1[0].low and top1[0].mean > top1[1].high),
    ]
    if baseline.passkey_found is not None and candidate.passkey_found is not None:
        was, now = float(baseline.passkey_found), float(candidate.passkey_found)
        found.append(quality_metric(of, "passkey_found", was, now, worse=now < was))
    return found


def quality_metric(of: str, name: str, baseline: float, candidate: float, worse: bool, unit: str = "") -> GateMetric:
    state: GateState = "regression" if worse else "pass"
    said = "the same" if baseline == candidate else f"{baseline:.4g} → {candidate:.4g}{unit}"
    if baseline != candidate:
        said += ", outside the intervals" if worse else ", within the intervals or better"
    return GateMetric(of=of, name=name, kind="quality", state=state, reason=said, baseline=baseline, candidate=candidate)


def same_tokens(baseline: Quality, candidate: Quality) -> bool:
    """Were both scored on the same tokens, the same way?"""
    return (baseline.text, baseline.tokens, baseline.chunk_tokens, baseline.simulated) == (
        candidate.text,
        candidate.tokens,
        candidate.chunk_tokens,
        candidate.simulated,
    )
