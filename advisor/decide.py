"""The decision: what is excluded and why, what is ranked, and the verdict. Pure functions of measured candidates.

Candidates whose intervals overlap and whose medians are within 5 % are tied; ties go to better quality, then to changing
less, then to fewer new dependencies. "Change nothing" is the baseline, a candidate like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from quantadvisor.documents import (
    Candidate,
    Capacity,
    Device,
    Diagnosis,
    Figure,
    Measured,
    Predicted,
    RunnerUp,
    Speedup,
    Target,
    Verdict,
    Workload,
)
from quantadvisor.kernels.machine import PROCESS_SHARE
from quantadvisor.profiling.measure import request_s
from quantadvisor.profiling.quality import budget_breach

GIB = 2**30
TIE = 1.05


def maximised(workload: Workload) -> bool:
    return workload.objective != "latency"


def objective_of(candidate: Candidate) -> Figure | None:
    return candidate.measured.objective if candidate.measured else None


def limit_bytes(workload: Workload, device: Device) -> int:
    """The declared bound on memory, or what may be had of the device's: of a GPU's 90 %, of a machine's what one process may use
    before we end it (kernels/machine.py)."""
    limit = workload.memory_limit_gib
    return int(limit * GIB) if limit else int(device.memory_bytes * (0.9 if device.kind == "cuda" else PROCESS_SHARE))


def better(a: float, b: float, workload: Workload) -> bool:
    return a > b if maximised(workload) else a < b


def breach_of_prediction(predicted: Predicted, workload: Workload) -> str | None:
    """Why a candidate cannot meet SLO or memory by prediction, with a margin for the prediction's error: 15 %, of rough times
    half. Who may meet it is tried."""
    slo, margin = workload.slo, 0.5 if predicted.rough else 0.85
    if slo and slo.ttft_ms and predicted.ttft_s and predicted.ttft_s * 1e3 * margin > slo.ttft_ms:
        return f"predicted TTFT {predicted.ttft_s * 1e3:.0f} ms is over the SLO of {slo.ttft_ms:g} ms"
    if slo and slo.tpot_ms and predicted.tpot_s and predicted.tpot_s * 1e3 * margin > slo.tpot_ms:
        return f"predicted TPOT {predicted.tpot_s * 1e3:.1f} ms is over the SLO of {slo.tpot_ms:g} ms"
    return breach_of_memory(predicted.peak_bytes, workload, 0.85, "predicted peak memory")


def breach_of_memory(peak_bytes: float | None, workload: Workload, margin: float, what: str) -> str | None:
    limit = workload.memory_limit_gib
    if limit is None or peak_bytes is None or workload.objective == "concurrency":
        return None
    if peak_bytes * margin <= limit * GIB:
        return None
    return f"{what} {peak_bytes / GIB:.2f} GiB is over the limit of {limit:g} GiB"


def breach_of_measurement(candidate: Candidate, workload: Workload) -> str | None:
    """Why a measured candidate is outside SLO, memory or quality budget; None where it is inside."""
    measured = candidate.measured
    if measured is None:
        return "not measured"
    if candidate.url and candidate.quality is None:
        return "its quality is not known"
    if candidate.quality and (reason := budget_breach(candidate.quality, workload)):
        return reason
    return breach_of_limits(measured, workload)


def breach_of_limits(measured: Measured, workload: Workload) -> str | None:
    """Why what was measured is outside SLO or memory, whatever its quality."""
    if workload.objective == "concurrency" and measured.max_concurrency and measured.max_concurrency.median < 1:
        return "not one request fits into the memory limit"
    peak = measured.peak_bytes.median if measured.peak_bytes else None
    return breach_of_slo(measured, workload) or breach_of_memory(peak, workload, 1.0, "peak memory")


def with_breach(candidate: Candidate, workload: Workload) -> Candidate:
    """A measured candidate outside the constraints carries the reason."""
    if candidate.measured is None or candidate.excluded:
        return candidate
    return candidate.model_copy(update={"excluded": breach_of_measurement(candidate, workload)})


def breach_of_slo(measured: Measured, workload: Workload) -> str | None:
    slo = workload.slo
    for name, limit, figure in (
        ("TTFT", slo.ttft_ms if slo else None, measured.ttft_s),
        ("TPOT", slo.tpot_ms if slo else None, measured.tpot_s),
    ):
        if slo is None or limit is None or figure is None:
            continue
        found = float(np.percentile(figure.samples or (figure.median,), slo.percentile)) * 1e3
        if found > limit:
            estimate = " (estimated: too few samples for that percentile)" if few_samples(figure, slo.percentile) else ""
            return f"{name} p{slo.percentile:g} {found:.1f} ms is over the SLO of {limit:g} ms{estimate}"
    return None


def few_samples(figure: Figure, percentile: float) -> bool:
    """A percentile p from fewer than 20 / (1 - p) samples is an estimate."""
    return len(figure.samples) < 20 / (1 - percentile / 100)


def ranked(candidates: Sequence[Candidate], workload: Workload) -> list[Candidate]:
    """Feasible measured candidates, best objective first."""
    feasible = [c for c in candidates if c.refused is None and c.excluded is None and breach_of_measurement(c, workload) is None]
    feasible = [c for c in feasible if objective_of(c) is not None]
    return sorted(feasible, key=lambda c: objective_of(c).median, reverse=maximised(workload))  # type: ignore[union-attr]


def tied(best: Candidate, other: Candidate) -> bool:
    """Intervals overlap, and the medians are within TIE: few noisy rounds must not make equals of what is not."""
    a, b = objective_of(best), objective_of(other)
    return bool(a and b and a.low <= b.high and b.low <= a.high and max(a.median, b.median) <= TIE * min(a.median, b.median))


def preference(candidate: Candidate, baseline: str) -> tuple[float, bool, bool, bool]:
    """Among ties: better quality (to two digits of KL), then changing less, then fewer new dependencies."""
    kl = max(0.0, candidate.quality.kl.mean) if candidate.quality else 0.0
    runtime = baseline.partition("@")[2].partition("+")[0]
    return (round(kl, 3), candidate.name != baseline, candidate.target != "none", candidate.runtime != runtime)


def decide(
    candidates: Sequence[Candidate],
    baseline: str,
    workload: Workload,
    diagnosis: Diagnosis,
    predicted_choice: str | None,
) -> Verdict:
    order = ranked(candidates, workload)
    by_name = {c.name: c for c in candidates}
    if not order:
        return nothing_feasible(candidates, workload, predicted_choice)
    ties = [c for c in order if tied(order[0], c)]
    choice = min(ties, key=lambda c: preference(c, baseline))
    rest = [c for c in order if c.name != choice.name]
    runner = rest[0] if rest else None
    base = by_name.get(baseline)
    plain = best_unquantized(candidates, base, workload)
    room = capacity(choice, base, candidates, workload)
    return Verdict(
        choice=choice.name,
        change=choice.name != baseline,
        target=diagnosis.binds if diagnosis.binds in targets_of(choice) else choice.target,
        reason=reason(choice, base, diagnosis, workload, room.step_over_best_unquantized_cache if room else None),
        tied_with=tuple(c.name for c in ties if c.name != choice.name),
        runner_up=RunnerUp(name=runner.name, why_not=why_not(runner, choice, workload, baseline)) if runner else None,
        capacity=room,
        speedup=speedup(base, plain, choice, latency_s(workload)),
        decode_speedup=speedup(base, plain, choice, tpot_s),
        predicted_choice=predicted_choice,
    )


def nothing_feasible(candidates: Sequence[Candidate], workload: Workload, predicted_choice: str | None) -> Verdict:
    reasons = [
        f"{c.name}: {c.refused or c.excluded or breach_of_measurement(c, workload)}"
        for c in candidates
        if c.measured or c.excluded
    ]
    shown = "; ".join(reasons[:4])
    return Verdict(
        choice=None,
        change=False,
        target="none",
        reason=f"Nothing meets the constraints. {shown}",
        predicted_choice=predicted_choice,
    )


Clock = Callable[[Candidate], float | None]


def latency_s(workload: Workload) -> Clock:
    def of(candidate: Candidate) -> float | None:
        m = candidate.measured
        if m is None or m.ttft_s is None or m.tpot_s is None:
            return None
        return request_s(workload.traffic, m.ttft_s.median, m.tpot_s.median)

    return of


def tpot_s(candidate: Candidate) -> float | None:
    m = candidate.measured
    return m.tpot_s.median if m and m.tpot_s else None


def best_unquantized(candidates: Sequence[Candidate], base: Candidate | None, workload: Workload) -> Candidate | None:
    """The measured candidate of the lowest request latency that quantizes nothing."""
    time = latency_s(workload)
    timed = [(seconds, c) for c in candidates if c.target == "none" and not c.url and (seconds := time(c)) is not None]
    return min(timed, key=lambda pair: pair[0])[1] if timed else base


def speedup(base: Candidate | None, plain: Candidate | None, choice: Candidate, time: Clock) -> Speedup | None:
    """total = runtime x method along baseline -> best unquantized -> choice."""
    if base is None or plain is None:
        return None
    before, between, after = time(base), time(plain), time(choice)
    if not before or not between or not after:
        return None
    if choice.target == "none":
        return Speedup(total=before / after, runtime=before / after, method=1.0)
    return Speedup(total=before / after, runtime=before / between, method=between / after)


def capacity(choice: Candidate, base: Candidate | None, candidates: Sequence[Candidate], workload: Workload) -> Capacity | None:
    """Users inside the memory limit, over the baseline's and over the fastest candidate with an unquantized cache that serves
    anybody there."""
    figure = users(choice)
    if figure is None or figure.median < 1:
        return None
    plain = [
        c
        for c in candidates
        if not c.scheme.quantizes_cache and not c.url and (held := users(c)) and held.median >= 1 and tpot_s(c)
    ]
    plain = [c for c in plain if c.quality is None or budget_breach(c.quality, workload) is None]
    fastest = min(plain, key=lambda c: tpot_s(c) or 0.0) if plain else None
    theirs, step, mine = (users(fastest), tpot_s(fastest), tpot_s(choice)) if fastest else (None, None, None)
    before = users(base) if base else None
    return Capacity(
        max_concurrency=int(figure.median),
        over_baseline=figure.median / max(1.0, before.median) if before else 1.0,
        over_best_unquantized_cache=figure.median / theirs.median if theirs else None,
        step_over_best_unquantized_cache=step / mine if step and mine else None,
        best_unquantized_cache=fastest.name if fastest else None,
        kind="measured" if figure.kind == "measured" else "modelled",
    )


def users(candidate: Candidate) -> Figure | None:
    return candidate.measured.max_concurrency if candidate.measured else None


def reason(choice: Candidate, base: Candidate | None, diagnosis: Diagnosis, workload: Workload, step: float | None) -> str:
    share = getattr(diagnosis.shares, diagnosis.binds)
    verb = "binds" if diagnosis.binds == "kv_cache" else "bind"
    where = "the baseline" if base is None or not base.url else diagnosis.of
    binds = f"{words(diagnosis.binds)} {verb} ({share:.0%} of {asked(workload)} on {where})"
    if base is not None and choice.name == base.name:
        return f"Change nothing: {binds}, and no candidate inside the budget does better than {base.name}."
    gain = gain_in_words(choice, base, workload, step)
    if choice.url:
        return f"Use the server at {choice.url}: {binds}; {choice.name} {gain}, and what it quantizes is not known."
    if choice.target == "none":
        return f"Change only the runtime: {binds}; {choice.name} {gain} without quantizing anything."
    shrinks = " and ".join(words(target) for target in targets_of(choice))
    return f"Shrink {shrinks}: {binds}; {choice.name} {gain}."


def step_in_words(step: float | None) -> str:
    """What the quantized cache does to the decode step, against the fastest candidate without one."""
    if step is None:
        return ""
    what = "capacity, not speed" if step < 1.05 else "capacity and speed"
    return f" ({what}: its decode step is {step:.2f}x as fast as the fastest one with an unquantized cache)"


def ttft_in_words(choice: Candidate, base: Candidate | None) -> str:
    """What the users pay for it: said where the TTFT is more than a fifth longer than the baseline's."""
    mine, before = (c.measured.ttft_s if c and c.measured else None for c in (choice, base))
    if mine is None or before is None or mine.median <= 1.2 * before.median:
        return ""
    return f"; its TTFT is {mine.median / before.median:.1f}x the baseline's ({mine.median:.0f} s, {mine.kind})"


def gain_in_words(choice: Candidate, base: Candidate | None, workload: Workload, step: float | None) -> str:
    before, after = (objective_of(base) if base else None), objective_of(choice)
    if before is None or after is None:
        return "is the best that was measured"
    if workload.objective == "concurrency":
        served = f"serves {after.median:.0f} users where the baseline serves {before.median:.0f}{step_in_words(step)}"
        return served + ttft_in_words(choice, base)
    times = latency_s(workload)
    old, new = (times(base) if base else None), times(choice)
    if workload.objective == "latency" and old and new:  # as the speed-up: of the request with the median TTFT and TPOT
        return f"is {old / new:.2f}x the baseline"
    return f"is {better_by(after, before, workload):.2f}x the baseline"


def better_by(after: Figure, before: Figure, workload: Workload) -> float:
    """How many times better the objective's median is."""
    return after.median / before.median if maximised(workload) else before.median / after.median


def targets_of(candidate: Candidate) -> list[Target]:
    found: list[Target] = []
    if candidate.scheme.weights is not None:
        found.append("weights")
    if candidate.scheme.activations is not None:
        found.append("activations")
    if candidate.scheme.quantizes_cache:
        found.append("kv_cache")
    return found


def words(target: str) -> str:
    return {"kv_cache": "the KV cache", "other": "operations outside linears and attention"}.get(target, target)


def asked(workload: Workload) -> str:
    return {"latency": "the request latency", "throughput": "a second of steady state", "concurrency": "the memory"}[
        workload.objective
    ]


def why_not(candidate: Candidate, choice: Candidate, workload: Workload, baseline: str) -> str:
    """The reason against a candidate, given the choice."""
    if candidate.refused or candidate.excluded:
        return candidate.refused or candidate.excluded or ""
    if reason_ := breach_of_measurement(candidate, workload):
        return reason_
    a, b = objective_of(candidate), objective_of(choice)
    if a is None or b is None:
        return "not measured"
    if tied(choice, candidate):
        mine, theirs = preference(choice, baseline), preference(candidate, baseline)
        names = ("better quality", "changing less", "changing less", "fewer new dependencies")
        won = next((name for name, x, y in zip(names, mine, theirs, strict=True) if x != y), "order of the catalogue")
        return f"tied; the choice wins by {won}"
    ratio = b.median / a.median if maximised(workload) else a.median / b.median
    return f"{ratio:.2f}x {'fewer' if workload.objective == 'concurrency' else 'slower'} than the choice"
