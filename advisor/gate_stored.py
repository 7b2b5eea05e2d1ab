"""Two stored results against each other: candidate by candidate of the same name, unpaired, the block as the unit.

Only where device and workload match. Times are not divided by their own baselines. What this cannot see is said: drift
between the days on which they were measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from quantadvisor.documents import (
    EXIT_CODES,
    BadInput,
    Candidate,
    Factor,
    Figure,
    Gate,
    GateMetric,
    NotComparable,
    Operators,
    Quality,
    Results,
    overall,
)

from .gate_anomalies import Perplexities, better_than_full, beyond_physics
from .gate_exact import MEMORY_TOLERANCE, exact, operators_metric, quality_metrics, same_tokens
from .gate_rule import ALPHA, THRESHOLD
from .gate_times import BlockTimes, median, unpaired_metrics

TIMES = ("ttft_s", "tpot_s")
ALL = "all candidates"
WITHOUT_EFFECT = ("budget", "price_per_hour", "runtimes")
"""Fields of a workload that change how long the advisor looks, not what it measures."""
ENOUGH_BLOCKS = 5
Series = Mapping[tuple[str, str], BlockTimes]
"""Seconds by (candidate, metric)."""
PLAUSIBLE_S = (1e-9, 1e7)
PLAUSIBLE_BYTES = (1.0, 1e18)
PLAUSIBLE_COUNT = (0.0, 1e12)


def gate_stored(
    baseline: Results, candidate: Results, named: tuple[str, str], *, alpha: float = ALPHA, threshold: float = THRESHOLD
) -> Gate:
    """The decision on two stored results; `named` are the files, for the words."""
    check_comparable(baseline, candidate)
    sides = [{c.name: c for c in results.candidates} for results in (baseline, candidate)]
    common = [name for name in sides[0] if name in sides[1] and all(side[name].measured for side in sides)]
    if not common:
        raise NotComparable(f"{named[0]} and {named[1]}: no candidate was measured in both")
    choices = [name for name in common if name in (baseline.verdict.choice, candidate.verdict.choice)] or common
    lost = [name for name in (baseline.verdict.choice,) if name and name not in common]
    notes = [
        f"drift between {baseline.created_at} and {candidate.created_at} is not covered",
        "gaps between tokens (ITL) are not stored: TTFT and TPOT are compared",
    ]
    metrics = [gone(name, sides[1].get(name)) for name in lost]
    families: list[Series] = []
    for names, decides in ((choices, True), ([name for name in common if name not in choices], False)):
        pairs = [(sides[0][name], sides[1][name]) for name in names]
        for pair in pairs:
            for file, one in zip(named, pair, strict=True):
                check_plausible(f"{file}: candidates.{one.name}", one)
        series, said = block_times(pairs, named, baseline.workload.traffic.output_length)
        notes += said
        families.append(series)
        for pair in pairs:
            found, said = exact_metrics(*pair)
            metrics += [metric.model_copy(update={"decides": decides}) for metric in found]
            notes += said
    metrics = anomalies([*time_metrics(families[0], families[1], alpha, threshold), *metrics], baseline, candidate)
    state = overall(metrics)
    return Gate(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        mode="stored",
        baseline=named[0],
        candidate=named[1],
        device=baseline.device.name,
        workload=workload_words(baseline),
        state=state,
        exit_code=EXIT_CODES[state],
        threshold=threshold,
        alpha=alpha,
        metrics=tuple(metrics),
        factors=tuple(factors(baseline, candidate)),
        notes=tuple(dict.fromkeys(notes)),
        blocks=max((m.blocks for m in metrics), default=0),
    )


def time_metrics(choices: Series, others: Series, alpha: float, threshold: float) -> list[GateMetric]:
    """Three families (the choices, the other candidates, all as one) share alpha alike, for each of them can fail the gate.

    Where all as one surely got no slower, a choice that did not get slower itself is not left undecided by its own noise.
    """
    both = together({**choices, **others})
    families = [(series, decides) for series, decides in ((choices, True), (others, False), (both, False)) if series]
    found = [m for series, decides in families for m in unpaired_metrics(series, alpha / len(families), threshold, decides)]
    fine = {m.name for m in found if m.of == ALL and m.state == "pass" and m.high is not None and m.high < 1}

    def settled(metric: GateMetric) -> GateMetric:
        if metric.state != "inconclusive" or metric.name not in fine or metric.ratio is None or metric.ratio > 1:
            return metric
        return metric.model_copy(update={"decides": False, "reason": f"{metric.reason}; all candidates as one got faster"})

    return [settled(metric) for metric in found]


def check_comparable(baseline: Results, candidate: Results) -> None:
    """Raise NotComparable with the first field of device, threads, model or workload that differs."""
    fields: list[tuple[str, Any, Any]] = [
        ("device.fingerprint", baseline.device.fingerprint, candidate.device.fingerprint),
        ("environment.threads", baseline.environment.threads, candidate.environment.threads),
    ]
    before, after = (flat(r.workload.model_dump(mode="json", exclude=set(WITHOUT_EFFECT))) for r in (baseline, candidate))
    fields += [(f"workload.{key}", before.get(key), after.get(key)) for key in dict.fromkeys((*before, *after))]
    fields.append(("profile.source.sha256", baseline.profile.source.sha256, candidate.profile.source.sha256))
    for name, was, now in fields:
        if was != now:
            raise NotComparable(f"not comparable: {name} differs: {was!r} in the baseline, {now!r} in the candidate")


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by dotted name."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    return {key: leaf for name, part in value.items() for key, leaf in flat(part, f"{prefix}.{name}".strip(".")).items()}


def factors(baseline: Results, candidate: Results) -> Iterator[Factor]:
    """Versions that differ: reported, not refused."""
    versions = baseline.environment.versions, candidate.environment.versions
    for name in sorted({*versions[0], *versions[1]}):
        if versions[0].get(name) != versions[1].get(name):
            yield Factor(name=name, baseline=versions[0].get(name, "absent"), candidate=versions[1].get(name, "absent"))
    if baseline.environment.python != candidate.environment.python:
        yield Factor(name="python", baseline=baseline.environment.python, candidate=candidate.environment.python)


def block_times(
    pairs: Sequence[tuple[Candidate, Candidate]], files: tuple[str, str], output_tokens: int
) -> tuple[dict[tuple[str, str], BlockTimes], list[str]]:
    """Seconds by (candidate, metric), and what is to be said about blocks."""
    series, notes = {}, []
    for pair in pairs:
        for name in TIMES if output_tokens > 1 else TIMES[:1]:
            figures = [getattr(c.measured, name) for c in pair]
            if not all(figures):
                continue
            sides = [
                seconds_by_block(figure, f"{file}: candidates.{c.name}.measured.{name}")
                for figure, file, c in zip(figures, files, pair, strict=True)
            ]
            series[pair[0].name, name] = BlockTimes(*(values for values, _ in sides))
            if not all(stored for _, stored in sides):
                notes.append("blocks are not stored: each round counts as one, so the luck of a process is not in the intervals")
            if min(len(values) for values, _ in sides) < ENOUGH_BLOCKS:
                notes.append(f"{pair[0].name}: fewer than {ENOUGH_BLOCKS} blocks")
    return series, notes


def seconds_by_block(figure: Figure, where: str) -> tuple[list[float], bool]:
    """Median seconds of each block, and whether blocks were stored; without them each sample is one."""
    samples = figure.samples
    if not samples:
        raise BadInput(where, "has no samples", "measure it again: a median alone has no interval")
    for sample in samples:
        plausible(where, sample, PLAUSIBLE_S, "s")
    if not figure.blocks:
        return list(samples), False
    if len(figure.blocks) != len(samples):
        raise BadInput(where, f"blocks must name one block for each of {len(samples)} samples", "measure it again")
    grouped: dict[int, list[float]] = {}
    for block, sample in zip(figure.blocks, samples, strict=True):
        grouped.setdefault(block, []).append(sample)
    return [median(values) for values in grouped.values()], True


def check_plausible(where: str, candidate: Candidate) -> None:
    """Bytes and counts; times are checked where they are read."""
    assert candidate.measured
    if candidate.measured.peak_bytes:
        plausible(f"{where}.measured.peak_bytes", candidate.measured.peak_bytes.median, PLAUSIBLE_BYTES, "bytes")
    if candidate.artifact_bytes is not None:
        plausible(f"{where}.artifact_bytes", candidate.artifact_bytes, PLAUSIBLE_BYTES, "bytes")
    for seen in (candidate.operators, candidate.prefill_operators):
        for row in seen.operators if seen else ():
            plausible(f"{where}.operators.{row.name}.count", row.count, PLAUSIBLE_COUNT, "times")


def plausible(where: str, number: float, limits: tuple[float, float], unit: str) -> None:
    """Numbers that no machine has are a broken document, not a result."""
    if not limits[0] <= number <= limits[1]:
        raise BadInput(where, f"{str(number)[:20]} {unit} cannot be", "measure it again")


def together(series: Mapping[tuple[str, str], BlockTimes]) -> dict[tuple[str, str], BlockTimes]:
    """All candidates as one, round by round: the median over candidates of how far each is from its own middle.

    Rounds are interleaved between candidates, so the round is the unit. A shift of everything shows here where the noise
    of five samples hides it in each candidate; a burst that hit one candidate does not.
    """
    found = {}
    for name in TIMES:
        those = [times for (_, metric), times in series.items() if metric == name]
        if len(those) < 2:
            continue
        middles = [math.sqrt(median(times.baseline_s) * median(times.candidate_s)) for times in those]
        typical = median(middles)
        sides = [
            [
                typical * median([row[i] / middle for row, middle in zip(rows, middles, strict=True) if i < len(row)])
                for i in range(max(len(row) for row in rows))
            ]
            for rows in ([times.baseline_s for times in those], [times.candidate_s for times in those])
        ]
        found[ALL, name] = BlockTimes(*sides)
    return found


def exact_metrics(baseline: Candidate, candidate: Candidate) -> tuple[list[GateMetric], list[str]]:
    """Peak memory, bytes, operators and quality of one candidate, as far as both sides stored them, and what only one did."""
    assert baseline.measured and candidate.measured
    of, made, notes = baseline.name, list[GateMetric](), list[str]()

    def memory(was: Figure, now: Figure) -> list[GateMetric]:
        return [exact(of, "peak_bytes", "memory", was.median, now.median, MEMORY_TOLERANCE)]

    def size(was: int, now: int) -> list[GateMetric]:
        return [exact(of, "artifact_bytes", "bytes", was, now)]

    def operators(was: Operators, now: Operators) -> list[GateMetric]:
        return [operators_metric(of, was, now)] if was.phase == now.phase else []

    def quality(was: Quality, now: Quality) -> list[GateMetric]:
        return quality_metrics(of, was, now) if same_tokens(was, now) else [other_tokens(of)]

    compared: tuple[tuple[str, Any, Any, Callable[[Any, Any], list[GateMetric]]], ...] = (
        ("peak_bytes", baseline.measured.peak_bytes, candidate.measured.peak_bytes, memory),
        ("artifact_bytes", baseline.artifact_bytes, candidate.artifact_bytes, size),
        ("prefill_operators", baseline.prefill_operators, candidate.prefill_operators, operators),
        ("operators", baseline.operators, candidate.operators, operators),
        ("quality", baseline.quality, candidate.quality, quality),
    )
    for name, was, now, compare in compared:
        if was is not None and now is not None:
            made += compare(was, now)
        elif was is not None or now is not None:
            notes.append(f"{of}: {name} is stored in the {'candidate' if was is None else 'baseline'} only: not compared")
    return made, notes


def other_tokens(of: str) -> GateMetric:
    reason = "scored on different tokens: score both on the same"
    return GateMetric(of=of, name="kl", kind="quality", state="inconclusive", reason=reason)


def gone(name: str, now: Candidate | None) -> GateMetric:
    """The baseline's choice is not measured any more: refused is a failure, not tried is not known."""
    if now is not None and now.refused:
        return GateMetric(of=name, name="runs", kind="operators", state="regression", reason=f"refused now: {now.refused}")
    return GateMetric(
        of=name,
        name="runs",
        kind="operators",
        state="inconclusive",
        reason="the baseline's choice was not measured in the candidate",
    )


def anomalies(metrics: Sequence[GateMetric], baseline: Results, candidate: Results) -> list[GateMetric]:
    """Marks what got faster than it can have; judged candidate by candidate."""
    was, now = ({c.name: c for c in results.candidates} for results in (baseline, candidate))
    full = min((c.quality.perplexity for c in was.values() if c.quality and c.scheme.name == "fp32"), default=None)
    rate = candidate.device.peaks.read_bytes_per_s.median if candidate.device.peaks else None
    found: list[GateMetric] = []
    for of in dict.fromkeys(metric.of for metric in metrics):
        those = [metric for metric in metrics if metric.of == of]
        if of in was and of in now:
            those = better_than_full(those, perplexities(was[of], now[of], full))
            those = beyond_physics(those, now[of].artifact_bytes, candidate.device.last_level_cache_bytes, lambda: rate)
        found += those
    return found


def perplexities(was: Candidate, now: Candidate, full: float | None) -> Perplexities | None:
    if full is None or not was.quality or not now.quality or not same_tokens(was.quality, now.quality):
        return None
    return Perplexities(was.quality.perplexity, now.quality.perplexity, full)


def workload_words(results: Results) -> str:
    traffic = results.workload.traffic
    return (
        f"{results.workload.model}, {traffic.prompt_length} prompt + {traffic.output_length} output tokens,"
        f" {traffic.concurrency} in flight"
    )
