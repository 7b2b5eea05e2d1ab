"""From a profile to the shortlist: which ghosts to run, what is predicted, and which candidates are applied for real."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from quantadvisor.documents import Candidate, Document, Ghost, Predicted, Quality, Scheme, Shares, Workload
from quantadvisor.methods.registry import trains
from quantadvisor.profiling.measure import request_s
from quantadvisor.profiling.quality import budget_breach

from .candidates import ON_REQUEST
from .combinations import best_of, combinations, gains, without_cache
from .context import Context
from .decide import TIE, better, breach_of_prediction, maximised, objective_of, ranked
from .predict import (
    Probes,
    exact,
    expected_kl,
    family,
    kernel_class,
    objective,
    outlier_channels,
    predict,
    users_within,
)
from .prove import memory_limit
from .risk import at_best, coarser_of, not_searched

MARGIN = 0.15
"""Candidates predicted within this of the best are measured too, up to MOST_TRIALS of them."""
MOST_TRIALS = 3
First = Callable[[Candidate], Predicted | None]


class Advice(Document):
    """Frozen before any real artifact is run: every candidate with its prediction, and who is measured."""

    candidates: tuple[Candidate, ...]
    shortlist: tuple[str, ...]
    choice: str | None


def without_failed(
    candidates: Sequence[Candidate], failed: Mapping[str, str], nothing: str | None = None
) -> tuple[Candidate, ...]:
    """Candidates of a `method-scheme` whose simulation failed are refused with its reason. Where not one could be simulated
    (`nothing`: why), that speaks against none of them, and those that quantize are noted to be measured without."""
    result = []
    for candidate in candidates:
        reason = failed.get(f"{candidate.method}-{candidate.scheme.name}")
        if candidate.refused is None and candidate.excluded is None:
            if reason:
                candidate = candidate.model_copy(update={"refused": f"its fake quantization failed: {reason}"})
            elif nothing and candidate.target != "none":
                note = f"its quality was not simulated before it was measured: {nothing}"
                candidate = candidate.model_copy(update={"notes": (*candidate.notes, note)})
        result.append(candidate)
    return tuple(result)


def exclude_by_quality(
    candidates: Sequence[Candidate], simulated: Mapping[str, Quality], workload: Workload
) -> tuple[Candidate, ...]:
    """Candidates whose simulated quality breaks the budget with its whole interval are excluded, searches that start too far
    from it, and what is finer than it asks for."""
    result, lone = [], {c.name for c in standing_alone(candidates)}
    for candidate in candidates:
        quality = simulated.get(f"{candidate.method}-{candidate.scheme.name}")
        reason = budget_breach(quality, workload) if quality and budget_breach(at_best(quality), workload) else None
        if quality and reason:
            reason = f"{reason} (fake quantization, {quality.tokens} tokens)"
        reason = reason or not_searched(candidate.method, candidate.scheme, simulated, workload, candidate.name in lone)
        if candidate.refused is None and candidate.excluded is None and reason:
            candidate = candidate.model_copy(update={"excluded": reason})
        result.append(candidate)
    return tuple(result)


def standing_alone(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no coarser one stands before at their place: it is not listed there, or refused."""
    here = {(f"{c.method}-{c.scheme.name}", c.runtime, c.options) for c in candidates if c.refused is None}
    return [c for c in candidates if (coarser_of(f"{c.method}-{c.scheme.name}"), c.runtime, c.options) not in here]


def ghosts_to_run(candidates: Sequence[Candidate], probes: Probes, workload: Workload, cache_binds: bool) -> list[Candidate]:
    """One candidate per family (runtime, options), kernel class (LLM.int8() is one of its own), and cache where it binds: the
    fastest by probes.

    GenAI runs ONNX Runtime's kernels: one ghost, of its fastest class, shows what its loop adds. A mixture of 4 and 8 bit
    is predicted from a ghost of each, so its 4-bit half runs even where alone it would cost too much quality.
    """
    best: dict[str, tuple[float, Candidate]] = {}
    for candidate in candidates:
        if (
            candidate.refused
            or candidate.runtime == "torch"
            or (candidate.excluded and not half_of_a_mixture(candidate, candidates))
        ):
            continue
        if candidate.method in ("mixed", "given"):  # which layers get 8 bits is not known of random weights
            continue
        if candidate.scheme.quantizes_cache and not cache_binds:
            continue
        seconds = linears_objective(candidate, probes, workload)
        parts = [family(candidate.runtime, candidate.options)]
        if candidate.runtime != "onnxruntime-genai":
            second = "outliers" * outlier_channels(candidate.scheme)
            parts += [kernel_class(candidate.scheme), second, "kv8" * candidate.scheme.quantizes_cache]
        place = " ".join(parts)
        if place not in best or seconds < best[place][0]:
            best[place] = (seconds, candidate)
    return [candidate for _, candidate in best.values()]


def half_of_a_mixture(candidate: Candidate, candidates: Sequence[Candidate]) -> bool:
    """Does an open mixture on the same runtime hold linears of the candidate's scheme?"""
    mixture = candidate.scheme.name.replace("w4", "w4w8", 1)
    return candidate.method == "rtn" and any(
        c.scheme.name == mixture
        and (c.runtime, c.options) == (candidate.runtime, candidate.options)
        and c.refused is None
        and c.excluded is None
        for c in candidates
    )


def linears_objective(candidate: Candidate, probes: Probes, workload: Workload) -> float:
    """Seconds of a request that its linears take, by probes; infinity where one was not timed."""
    traffic = workload.traffic
    rows = traffic.concurrency
    place = (candidate.scheme, candidate.runtime, candidate.options)
    prefill = probes.linears_s(*place, traffic.prompt_length * rows, rows)
    decode = probes.linears_s(*place, rows, rows)
    if prefill is None or decode is None:
        return float("inf")
    return request_s(traffic, prefill, decode)


def advise(
    context: Context,
    candidates: Sequence[Candidate],
    ghosts: Sequence[Ghost],
    probes: Probes,
    baseline: str,
    simulated: Mapping[str, Quality],
    shares: Shares,
    first: First = lambda _: None,
) -> Advice:
    """Predict every candidate, exclude what cannot meet SLO or memory, join what was chosen apart where the `shares` of the
    diagnosis ask for both, and choose who is measured. `first`: what is said of one that no ghost speaks for."""
    workload = context.workload
    schemes = {c.scheme.name: c.scheme for c in reversed(candidates)}  # a checkpoint's may bear the name of one of ours
    done = [predicted_candidate(context, c, ghosts, probes, schemes, simulated, first) for c in candidates]
    both = [within_limits(context, c, simulated) for c in combinations(context, done, shares)]
    done += best_of(both, workload)
    open_ = [c for c in done if c.refused is None and c.excluded is None and c.predicted and c.predicted.objective is not None]
    order = sorted(open_, key=objective, reverse=maximised(workload))
    return Advice(
        candidates=tuple(done),
        shortlist=shortlist(order, done, baseline, workload),
        choice=order[0].name if order else None,
    )


def predicted_candidate(
    context: Context,
    candidate: Candidate,
    ghosts: Sequence[Ghost],
    probes: Probes,
    schemes: Mapping[str, Scheme],
    simulated: Mapping[str, Quality],
    first: First,
) -> Candidate:
    if candidate.refused or candidate.url:
        return candidate
    own = next((g for g in ghosts if exact(candidate, g)), None)
    if own and own.refused:
        return candidate.model_copy(update={"refused": own.refused})
    predicted = predict(candidate, context.workload, probes, [g for g in ghosts if g.unused is None], schemes)
    relatives = [g for g in ghosts if (g.runtime, g.options) == (candidate.runtime, candidate.options)]
    alike = (g for g in relatives if kernel_class(schemes[g.scheme]) == kernel_class(candidate.scheme))
    if predicted is None and not any(g.refused or (g.unused and g.ttft_s) for g in alike):  # failed, or not believed
        predicted = first(candidate)
    missing = own if predicted else next((g for g in (own, *relatives) if g and g.unused), None)
    if missing and missing.unused:
        whose = "its ghost" if missing is own else f"the ghost of {missing.scheme} in its runtime"
        candidate = candidate.model_copy(update={"notes": (*candidate.notes, f"{whose} was {missing.unused}")})
    if predicted is None:
        return candidate
    return within_limits(context, candidate.model_copy(update={"predicted": predicted}), simulated)


def within_limits(context: Context, candidate: Candidate, simulated: Mapping[str, Quality]) -> Candidate:
    """A predicted candidate with all that is predicted of it, excluded where that breaks SLO or memory."""
    assert candidate.predicted
    predicted = completed(context, candidate, candidate.predicted, simulated)
    excluded = candidate.excluded or breach_of_prediction(predicted, context.workload)
    return candidate.model_copy(update={"predicted": predicted, "excluded": excluded})


def completed(context: Context, candidate: Candidate, predicted: Predicted, simulated: Mapping[str, Quality]) -> Predicted:
    """With the simulated KL and, where users or memory are asked about, the users inside the limit."""
    quality = simulated.get(f"{candidate.method}-{candidate.scheme.name}")
    predicted = predicted.model_copy(update={"kl": quality.kl.mean if quality else None})
    if context.workload.objective != "concurrency" and context.workload.memory_limit_gib is None:
        return predicted
    assert predicted.peak_bytes is not None
    users = users_within(
        context.inventory,
        candidate.scheme,
        candidate.runtime,
        context.workload,
        predicted.peak_bytes,
        memory_limit(context),
    )
    update: dict[str, float] = {"max_concurrency": users}
    if context.workload.objective == "concurrency":
        update["objective"] = float(users)
    return predicted.model_copy(update=update)


def shortlist(order: Sequence[Candidate], everyone: Sequence[Candidate], baseline: str, workload: Workload) -> tuple[str, ...]:
    """The baseline, the best predicted and those close to it, what the user has or named, and who the comparison needs:
    the best unquantized one and, where users count, the fastest one with an unquantized cache."""
    names = [baseline, *(c.name for c in closest(order, workload))]
    named = [c for c in everyone if c.checkpoint or c.url or set(c.options) & set(ON_REQUEST)]
    names += [c.name for c in named if not c.refused and not c.excluded]
    fastest = sorted((c for c in order if c.predicted and c.predicted.tpot_s), key=seconds_of(workload))
    names += [c.name for c in fastest if c.target == "none"][:1]
    if workload.objective == "concurrency":
        names += [c.name for c in fastest if not c.scheme.quantizes_cache][:1]
    known = {c.name for c in everyone}
    return tuple(dict.fromkeys(name for name in names if name in known))


def closest(order: Sequence[Candidate], workload: Workload) -> list[Candidate]:
    """The best predicted candidates within MARGIN of the best of all, at most two runtimes of one method and scheme.

    One that quantizes the cache too, and is not predicted better than the same without, is left out: ties go to changing
    less. So is one that another method outdoes.
    """
    chosen: list[Candidate] = []
    for candidate in order:
        if shrinks_more_for_nothing(candidate, order, workload) or outdone(candidate, order):
            continue
        best, value = objective(order[0]), objective(candidate)
        near = value >= best * (1 - MARGIN) if maximised(workload) else value <= best * (1 + MARGIN)
        same = [c for c in chosen if c.name.split("@")[0] == candidate.name.split("@")[0]]
        if near and len(same) < 2:
            chosen.append(candidate)
    return chosen[:MOST_TRIALS]


def outdone(candidate: Candidate, order: Sequence[Candidate]) -> bool:
    """Does another method fill the very same kernels with weights of better simulated quality? What training makes of them is
    not known before."""
    place = (candidate.scheme.name, candidate.runtime, candidate.options)
    same = [c for c in order if (c.scheme.name, c.runtime, c.options) == place]
    return not trains(candidate.method) and any(expected_kl(c) < expected_kl(candidate) for c in same)


def shrinks_more_for_nothing(candidate: Candidate, order: Sequence[Candidate], workload: Workload) -> bool:
    """Does it quantize the cache beside what another one quantizes on the same runtime, and gain less than WORTH by it?"""
    same = without_cache(candidate, order) if candidate.scheme.quantizes_cache else None
    return same is not None and not gains(candidate, same, workload)


def overlooked(candidates: Sequence[Candidate], workload: Workload) -> list[Candidate]:
    """The unmeasured candidate that is predicted to beat the best feasible measured one, or to tie it and win the tie by
    better quality, if any: the best predicted of a method and scheme that was not measured on any runtime. Who lost by what was
    measured of it outdoes nobody any more."""
    order = ranked(candidates, workload)
    open_ = [c for c in candidates if not c.measured and not c.refused and not c.excluded and c.predicted]
    open_ = [c for c in open_ if c.predicted and c.predicted.objective is not None]
    open_.sort(key=objective, reverse=maximised(workload))
    if not order:
        return open_[:1]
    measured = objective_of(order[0])
    assert measured
    seen = {c.name.split("@")[0] for c in candidates if c.measured}
    known = [c for c in candidates if c.predicted and c.predicted.objective is not None]
    rivals = [c for c in known if not c.measured or c in order]
    wins, ties = (measured.median * factor for factor in ((TIE, 1 / TIE) if maximised(workload) else (1 / TIE, TIE)))
    kl = order[0].quality.kl.mean if order[0].quality else 0.0
    return [
        c
        for c in open_
        if c.name.split("@")[0] not in seen
        and better(objective(c), ties if expected_kl(c) < kl else wins, workload)
        and not shrinks_more_for_nothing(c, known, workload)
        and not outdone(c, rivals)
    ][:1]


def seconds_of(workload: Workload):  # type: ignore[no-untyped-def]
    """Key: predicted request latency, or TPOT alone where users count."""

    def key(candidate: Candidate) -> float:
        p = candidate.predicted
        assert p and p.tpot_s is not None and p.ttft_s is not None
        return p.tpot_s if workload.objective == "concurrency" else request_s(workload.traffic, p.ttft_s, p.tpot_s)

    return key
