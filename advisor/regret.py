"""Regret of the advice: the choice is frozen, then everything else is measured, and the best are re-measured afresh.

ratio = advised/best - 1 for what is minimised, best/advised - 1 for what is maximised; 0.0 = the advice was the best.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from quantadvisor.documents import Candidate, Document, Regret, Workload
from quantadvisor.profiling.measure import interleave, objective_value

from .candidates import needless, untrained
from .context import Context
from .decide import maximised, objective_of, ranked
from .prove import Trial, clean, run_trials, search_users, session_of, start_workers, with_trial
from .survey import BaselineRun

SLOW = 5.0
"""Candidates more than this much slower than the best are left out of the measuring share's denominator."""
NEAR = 1.3
"""Feasible candidates predicted within this factor of the best, or better, are measured before all others: `may_be_best`."""
FRESH_ROUNDS = 7
FINALISTS = 3
MOST_SECONDS = 1200.0


class Exhausted(Document):
    """All trials beyond the advice's own, and who was not reached."""

    trials: tuple[Trial, ...]
    not_measured: tuple[str, ...]


class Fresh(Document):
    """Objective samples of the finalists, measured after the choice was frozen."""

    samples: dict[str, tuple[float, ...]]


def exhaust(
    context: Context, candidates: Sequence[Candidate], done: Sequence[Trial], base: BaselineRun, choice: str, keep: set[Path]
) -> Exhausted:
    """Measure what the advice did not, one at a time, within the budget."""
    measured = {trial.name for trial in done}
    rest = in_order(able(context, candidates), measured, context.workload)
    limit = min(3 * context.workload.budget.advise_s, MOST_SECONDS)
    started = time.monotonic()
    to_beat = next((trial.rounds for trial in done if trial.name == choice), ())
    trials: list[Trial] = []
    for index, candidate in enumerate(rest):
        left = limit - (time.monotonic() - started)
        if left <= 0:
            return Exhausted(trials=tuple(trials), not_measured=tuple(c.name for c in rest[index:]))
        context.progress.say(f"{candidate.name} ({index + 1} of {len(rest)}, {left:.0f} s left)")
        trials += run_trials(context, [candidate], base, deadline_s=left / 2, to_beat=to_beat).trials
        following = {context.build_of(c).out for c in rest[index + 1 :] if not c.url}
        clean(context.out / "work", keep | following)
    return Exhausted(trials=tuple(trials), not_measured=())


def able(context: Context, candidates: Sequence[Candidate]) -> list[Candidate]:
    """What can be measured, what a prediction excluded too: all but what is refused, what trains without the time to, and what
    avoids a fault that this machine does not have."""
    return [
        c
        for c in candidates
        if c.refused is None
        and not untrained(c.method, context.workload)
        and not needless(c, context.device.isa, context.interpreter(c.runtime))
    ]


def in_order(candidates: Sequence[Candidate], measured: set[str], workload: Workload) -> list[Candidate]:
    """Those not measured yet: what may beat the choice, by its prediction or because it has none, then the best of each method
    and scheme without a measurement (so that the report shows why each would have been wrong), then the rest; by prediction
    within each."""
    order = sorted(candidates, key=lambda c: predicted_rank(c, workload))
    reference = objective_predicted(order[0]) if order else None
    maximise = maximised(workload)
    seen = {c.name.split("@")[0] for c in order if c.name in measured}
    near: list[Candidate] = []
    shown: list[Candidate] = []
    rest: list[Candidate] = []
    for candidate in (c for c in order if c.name not in measured):
        what, value = candidate.name.split("@")[0], objective_predicted(candidate)
        if candidate.excluded is None and (value is None or reference is None or may_be_best(value, reference, maximise)):
            near.append(candidate)
            seen.add(what)
        elif what not in seen:
            shown.append(candidate)
            seen.add(what)
        else:
            rest.append(candidate)
    return near + shown + rest


def may_be_best(value: float, reference: float, maximise: bool) -> bool:
    """Is `value` within NEAR of `reference`, what the best is predicted to be, or better?"""
    return value * NEAR >= reference if maximise else value <= NEAR * reference


def objective_predicted(candidate: Candidate) -> float | None:
    return candidate.predicted.objective if candidate.predicted else None


def predicted_rank(candidate: Candidate, workload: Workload) -> tuple[bool, float]:
    value = objective_predicted(candidate)
    if value is None:
        return (True, 0.0)
    return (candidate.excluded is not None, -value if maximised(workload) else value)


def finalists(candidates: Sequence[Candidate], choice: str, workload: Workload) -> list[Candidate]:
    """The three best feasible ones and the choice."""
    order = ranked([c.model_copy(update={"excluded": None}) for c in candidates], workload)
    chosen = order[:FINALISTS] + [c for c in order[FINALISTS:] if c.name == choice]
    return chosen


def measure_again(context: Context, chosen: Sequence[Candidate]) -> Fresh:
    """Fresh samples of the objective, interleaved in one run."""
    context.build_all([context.build_of(c) for c in chosen if not c.url])
    workload = context.workload
    samples: dict[str, tuple[float, ...]] = {}
    if workload.objective == "concurrency":
        for candidate in (c for c in chosen if not c.url):
            users = objective_of(candidate)
            guess = int(users.median) if users else workload.traffic.concurrency
            found, _ = search_users(context, candidate, guess, {})
            if found.median:
                samples[candidate.name] = (found.median,)
        return Fresh(samples=samples)
    with ExitStack() as stack:
        workers, _ = start_workers({c.name: session_of(context, c) for c in chosen}, stack)
        rows, _ = interleave(workers, context.prompts, workload.traffic, FRESH_ROUNDS, progress=context.progress.say)
    for name, rounds in rows.items():
        values = [objective_value(workload.objective, workload.traffic, r.ttft_s, r.tpot_s) for r in rounds]
        samples[name] = tuple(value for value in values if value is not None)
    return Fresh(samples=samples)


def regret_of(
    fresh: Fresh,
    choice: str,
    trials: Sequence[Trial],
    workload: Workload,
    advice_s: float,
    shared_s: float,
    not_measured: Sequence[str],
) -> Regret | None:
    """The document; None where the choice could not be re-measured. Interval: paired bootstrap over rounds."""
    if choice not in fresh.samples:
        return None
    medians = {name: float(np.median(values)) for name, values in fresh.samples.items()}
    best = (max if maximised(workload) else min)(medians, key=lambda name: medians[name])
    ratio, low, high = ratio_interval(fresh.samples[choice], fresh.samples[best], maximised(workload))
    return Regret(
        best=best,
        advised=choice,
        advised_objective=medians[choice],
        best_objective=medians[best],
        ratio=ratio,
        low=low,
        high=high,
        measuring_share=advice_s / max(advice_s, everything_s(trials, shared_s, len(not_measured))),
        not_measured=tuple(not_measured),
    )


def ratio_interval(advised: Sequence[float], best: Sequence[float], maximise: bool) -> tuple[float, float, float]:
    a, b = np.asarray(advised), np.asarray(best)
    over, under = (b, a) if maximise else (a, b)

    def ratio(rows: np.ndarray) -> float:
        return float(np.median(over[rows]) / np.median(under[rows]) - 1.0)

    n = min(len(a), len(b))
    chosen = np.random.default_rng(0).integers(0, n, (1000, n))
    spread = [ratio(rows) for rows in chosen]
    middle = ratio(np.arange(n))
    return middle, min(middle, float(np.percentile(spread, 2.5))), max(middle, float(np.percentile(spread, 97.5)))


def everything_s(trials: Sequence[Trial], shared_s: float, unreached: int) -> float:
    """Measuring time of all candidates at the same rounds, those far slower than the best left out; `unreached` ones, which the
    budget did not allow, count as the median of those that were measured."""
    tpots = {t.name: float(np.median([r.tpot_s + r.ttft_s / 100 for r in t.rounds])) for t in trials if t.rounds}
    fastest = min(tpots.values(), default=0.0)
    counted = [t.seconds for t in trials if t.name not in tpots or tpots[t.name] <= SLOW * fastest]
    return shared_s + sum(counted) + unreached * (float(np.median(counted)) if counted else 0.0)


def merged(candidates: Sequence[Candidate], trials: Sequence[Trial], context: Context) -> tuple[Candidate, ...]:
    by_name = {trial.name: trial for trial in trials}
    return tuple(with_trial(c, by_name[c.name], context) if c.name in by_name else c for c in candidates)
