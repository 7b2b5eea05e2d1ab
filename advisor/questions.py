"""The four questions, each answered from what was measured; and the prediction ledger. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from quantadvisor.documents import Candidate, Diagnosis, LedgerRow, PhaseTime, Question, TaskScore, Verdict, Workload
from quantadvisor.profiling.quality import budget_breach

from .decide import targets_of, words
from .mends import rounding_said

QUANTIZED_SHARE = 0.9


def answer(
    verdict: Verdict, candidates: Sequence[Candidate], baseline: str, diagnosis: Diagnosis, workload: Workload
) -> tuple[Question, ...]:
    by_name = {c.name: c for c in candidates}
    choice, base = by_name.get(verdict.choice or ""), by_name.get(baseline)
    if choice is None or base is None:
        return ()
    return (
        target_right(choice, diagnosis),
        quality_held(choice, workload),
        operator_ran(choice),
        bottleneck_shrank(choice, by_name.get(diagnosis.of, base) if base.url else base, diagnosis, workload),
    )


def target_right(choice: Candidate, diagnosis: Diagnosis) -> Question:
    share = getattr(diagnosis.shares, diagnosis.binds)
    verb = "binds" if diagnosis.binds == "kv_cache" else "bind"
    said = f"{words(diagnosis.binds)} {verb}: {share:.0%} of what the objective asks for, on {diagnosis.of}"
    ceiling = diagnosis.ceilings.get(diagnosis.binds)
    bound = f"; nothing done to that tensor alone could gain more than {ceiling:.2f}x on this runtime" if ceiling else ""
    if choice.url:
        return Question(id="target", answer=False, evidence=f"{said}{bound}. What the server quantizes is not known.")
    if choice.target == "none":
        return Question(
            id="target", answer=True, evidence=f"{said}{bound}. The choice quantizes nothing, so no tensor is mistaken."
        )
    shrinks = targets_of(choice)
    return Question(
        id="target",
        answer=diagnosis.binds in shrinks,
        evidence=f"{said}{bound}. {choice.name} shrinks {' and '.join(words(t) for t in shrinks)}.",
    )


def task_said(score: TaskScore) -> str:
    drop = f"{score.drop.mean:.3f} [{score.drop.low:.3f}, {score.drop.high:.3f}]"
    return f"{score.metric} of {score.task} {score.score:.3f}, fp32 {score.reference:.3f}, drop {drop} on {score.items} items"


def quality_held(choice: Candidate, workload: Workload) -> Question:
    q = choice.quality
    if q is None:
        return Question(id="quality", answer=False, evidence="quality was not measured")
    breach = budget_breach(q, workload)
    passkey = (
        "" if q.passkey_found is None else f"; passkey at the declared context {'found' if q.passkey_found else 'not found'}"
    )
    said = (
        f"mean KL {q.kl.mean:.4f} [{q.kl.low:.4f}, {q.kl.high:.4f}], top-1 agreement {q.top1.mean:.3f}, perplexity"
        f" {q.perplexity:.2f} on {q.tokens:,} tokens through {choice.runtime}{passkey}"
        + "".join(f"; {task_said(score)}" for score in q.tasks)
    )
    return Question(id="quality", answer=breach is None, evidence=said + (f"; {breach}" if breach else "; inside the budget"))


def operator_ran(choice: Candidate) -> Question:
    found = choice.operators
    if found is None:
        return Question(id="operator", answer=False, evidence="no operator evidence")
    top = ", ".join(f"{row.count} {row.name}" + (f" ({row.precision})" if row.precision else "") for row in found.operators[:4])
    prefill = rounding_said(choice.prefill_operators.rounding_share) if choice.prefill_operators else None
    said_too = (*found.notes, *([f"prefill: {prefill}"] if prefill else ()))
    notes = f" {'; '.join(said_too)}" if said_too else ""
    if choice.target == "none":
        return Question(id="operator", answer=True, evidence=f"nothing is quantized; a decode step ran {top}.{notes}")
    share = found.quantized_share
    whole = f"{math.floor(share * 100)} %"
    said = f"{found.quantized_linears} of {found.linears} linears of a decode step ran quantized ({whole}): {top}.{notes}"
    made = choice.scheme
    linears = (made.weights is None and made.activations is None) or share >= QUANTIZED_SHARE
    if not made.quantizes_cache:
        return Question(id="operator", answer=linears, evidence=said)
    return Question(
        id="operator",
        answer=linears and found.cache_quantized,
        evidence=f"cache: stored as {found.cache or 'the runtime does not tell what'}. {said}",
    )


def bottleneck_shrank(choice: Candidate, base: Candidate, diagnosis: Diagnosis, workload: Workload) -> Question:
    """Did the binding tensor's own time (or bytes) go down against the baseline?"""
    if choice.name == base.name:
        return Question(id="bottleneck", answer=True, evidence="nothing was changed: the baseline's bottleneck stands")
    if workload.objective == "concurrency":
        a, b = base.measured, choice.measured
        if not (a and b and a.peak_bytes and b.peak_bytes and a.max_concurrency and b.max_concurrency):
            return Question(id="bottleneck", answer=False, evidence="memory was not measured")
        said = (
            f"peak memory at the declared load {a.peak_bytes.median / 2**20:,.0f} -> {b.peak_bytes.median / 2**20:,.0f} MiB;"
            f" users inside the limit {a.max_concurrency.median:.0f} -> {b.max_concurrency.median:.0f}"
        )
        return Question(id="bottleneck", answer=b.max_concurrency.median > a.max_concurrency.median, evidence=said)
    before, after = (
        binding_seconds(base.phases, diagnosis, workload),
        binding_seconds(choice.phases, diagnosis, workload),
    )
    if not before or not after:
        return Question(id="bottleneck", answer=False, evidence="time by part was not measured")
    said = f"time of {words(diagnosis.binds)} in one request {before * 1e3:,.0f} -> {after * 1e3:,.0f} ms ({before / after:.2f}x)"
    return Question(id="bottleneck", answer=after < before, evidence=said)


def binding_seconds(phases: Sequence[PhaseTime], diagnosis: Diagnosis, workload: Workload) -> float:
    """Seconds of one request that the parts behind the binding tensor take, by each phase's own profile."""
    steps = {"prefill": 1, "decode": workload.traffic.output_length - 1}
    total = 0.0
    for phase in phases:
        seconds = {
            "weights": phase.linears_s,
            "activations": phase.linears_s + phase.attention_s,
            "kv_cache": phase.attention_s + phase.cache_s,
            "other": phase.other_s + max(0.0, phase.residue_s),
        }[diagnosis.binds]
        wanted = {
            "weights": ("decode",),
            "activations": ("prefill",),
            "kv_cache": ("decode",),
            "other": ("prefill", "decode"),
        }
        total += seconds * steps[phase.phase] if phase.phase in wanted[diagnosis.binds] else 0.0
    return total


def prediction_ledger(candidates: Sequence[Candidate]) -> tuple[LedgerRow, ...]:
    """Predicted against measured, per candidate and quantity."""
    rows = []
    for candidate in candidates:
        if not candidate.predicted or not candidate.measured:
            continue
        for quantity in ("ttft_s", "tpot_s", "peak_bytes", "max_concurrency"):
            predicted, figure = getattr(candidate.predicted, quantity), getattr(candidate.measured, quantity)
            if predicted is None or figure is None or figure.median <= 0:
                continue
            if quantity == "max_concurrency" and figure.kind != "measured":
                continue
            rows.append(
                LedgerRow(
                    candidate=candidate.name,
                    quantity=quantity,
                    predicted=float(predicted),
                    measured=figure.median,
                    ratio=float(predicted) / figure.median,
                    basis=candidate.predicted.basis,
                )
            )
    return tuple(rows)
