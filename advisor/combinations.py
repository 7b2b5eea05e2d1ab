"""Weights and cache, chosen apart and applied together: of each place the best weights under each cache that gains.

Where only one of them binds, the other's rounding costs quality for nothing, and every method under every cache would be a
product that nobody can measure. So both are predicted alone, and the winners are joined where both bind. A combination's times
and memory are those of its weights, plus what its cache was predicted to change where nothing else differs. Its quality is not
added up from the parts: it is measured, like that of any candidate.

Weights and activations are joined by a method that is listed as such (`smoothquant_gptq`): its products, and so its times, are
those of its activations' method at the same place, which alone goes first. `risk.not_searched` says where that one will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from quantadvisor.documents import Candidate, Predicted, Shares, Workload

from .candidates import Entry, cache_end, candidate, recipe
from .context import Context
from .decide import better, maximised
from .predict import certain, expected_kl, objective, predicted

BINDS = 0.15
"""Share of what the objective asks for from which on a tensor binds too: to leave it alone forgoes more than a tie (a quarter
of its bytes: 1.13x)."""
MOST = 3
"""Combinations that become candidates."""
WORTH = 0.01
"""What a quantized cache must be predicted to gain over the same candidate without one."""


class Apart(NamedTuple):
    """Candidates of one place: the chosen weights, the chosen cache, and the latter's weights without it."""

    weights: Candidate
    cache: Candidate
    plain: Candidate


def both_bind(shares: Shares) -> bool:
    """Do the cache and what linears read or multiply bind together?"""
    return shares.kv_cache >= BINDS and shares.weights + shares.activations >= BINDS


def combinations(context: Context, candidates: Sequence[Candidate], shares: Shares) -> list[Candidate]:
    """The combinations that `candidates`, as predicted, do not list already."""
    if not both_bind(shares):
        return []
    found = (joined(context, one) for one in chosen_apart(candidates, context.workload))
    listed = {built(one) for one in candidates}
    return [one for one in found if one is not None and built(one) not in listed]


def best_of(combined: Sequence[Candidate], workload: Workload) -> list[Candidate]:
    """The MOST best predicted, those that nothing excludes before all others. First the best under each cache: what the fewest
    bits cost is not known before it is measured."""
    order = sorted(combined, key=objective, reverse=maximised(workload))
    leaders = {cache_of(c): c.name for c in reversed(order) if not (c.refused or c.excluded)}.values()
    return sorted(order, key=lambda c: (bool(c.refused or c.excluded), c.name not in leaders))[:MOST]


def chosen_apart(candidates: Sequence[Candidate], workload: Workload) -> list[Apart]:
    """Of each place the weights of the greatest predicted gain, with every cache that gains WORTH there; where one is listed over
    several weights, with that of the greater gain."""
    places = dict.fromkeys((c.runtime, c.options) for c in candidates)
    found = []
    for place in places:
        here = [c for c in candidates if (c.runtime, c.options) == place and c.predicted and c.predicted.objective is not None]
        able = [c for c in here if not (c.refused or c.excluded or c.checkpoint or c.url)]
        sign = -1.0 if maximised(workload) else 1.0
        weights = min(
            (c for c in able if c.scheme.weights is not None and not c.scheme.quantizes_cache),
            key=lambda c: (sign * objective(c), expected_kl(c)),
            default=None,
        )
        caches = [(c, plain) for c in able if c.scheme.quantizes_cache and (plain := without_cache(c, here))]
        caches = [(c, plain) for c, plain in caches if gains(c, plain, workload)]
        caches.sort(key=lambda pair: sign * objective(pair[0]) / max(objective(pair[1]), 1e-9))
        best = {cache_of(c): (c, plain) for c, plain in reversed(caches)}
        found += [Apart(weights, *pair) for pair in best.values() if weights is not None]
    return found


def cache_of(one: Candidate) -> str:
    """The end of its scheme's name, without its weights: `8` of `w4-g64-kv8`."""
    return one.scheme.name.partition("-kv")[2]


def without_cache(one: Candidate, candidates: Sequence[Candidate]) -> Candidate | None:
    """The candidate of the same place, with a prediction, that differs in nothing but its plain cache."""
    plain = one.scheme.name.partition("-kv")[0]
    place = (plain, one.runtime, one.options)
    return next((c for c in candidates if (c.scheme.name, c.runtime, c.options) == place), None)


def gains(one: Candidate, plain: Candidate, workload: Workload) -> bool:
    """Is a candidate with a quantized cache predicted to be better than the same without, by WORTH?"""
    factor = 1 + WORTH if maximised(workload) else 1 - WORTH
    return better(objective(one), objective(plain) * factor, workload)


def joined(context: Context, apart: Apart) -> Candidate | None:
    """The candidate of both parts with its prediction; None where that comes out below nothing."""
    weights, cache, _ = apart
    end = cache_end(cache.runtime, cache.scheme)
    total = added(apart, context.workload)
    if end is None or total is None:
        return None
    entry = Entry(weights.method, weights.scheme.name + end, "kv_cache", ())
    python = context.interpreter(weights.runtime)
    made = candidate(entry, weights.runtime, weights.options, context.model_folder, context.device, python)
    return made.model_copy(update={"predicted": total})


def added(apart: Apart, workload: Workload) -> Predicted | None:
    """The weights' prediction, plus what the cache changes."""
    parts = [one.predicted for one in apart if one.predicted]
    assert len(parts) == len(apart)
    times = [(p.ttft_s, p.tpot_s, p.peak_bytes) for p in parts]
    if any(value is None for row in times for value in row):
        return None
    ttft, tpot, peak = (mine + with_it - without for mine, with_it, without in zip(*times, strict=True))
    if min(ttft, tpot, peak) <= 0:
        return None
    names = (one.name.partition("@")[0] for one in apart)
    basis = "{}, plus what {} changes of {}".format(*names)
    source, rough = certain(p.kernels for p in parts if p.kernels), any(p.rough for p in parts)
    return predicted(workload, ttft, tpot, int(peak), basis, source, rough)


def built(one: Candidate) -> tuple[str, str, str, tuple[str, ...]]:
    """What tells two candidates apart once they are built: who wrote the weights, the whole scheme, the place."""
    return recipe(one.method, one.scheme, one.runtime)[0], one.scheme.name, one.runtime, one.options
