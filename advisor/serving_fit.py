"""Fits the latency model to measured rows: ridge in log space, robust, and the interval from groups left out.

Every parameter has a prior and a spread (`serving_times`, the kernel tables); a residual is the log error of TPOT over
`NOISE`. So with few rows, or rows that say nothing of a parameter, it stays at its prior.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quantadvisor.documents import Document
from quantadvisor.kernels.gpu_fractions import reached

from .serving_tail import ROUNDS
from .serving_times import PRIOR, SPREAD, Array, Arrival, Factors, Physical, tail_s, tpot_s, ttft_s
from .serving_work import Lane, Work, word

NOISE = 0.08
"""Log error of a measured row that is no news: benchmarks of one set-up differ by as much."""
FACTOR_SPREAD = 0.15
"""Of the factor between isolated kernels and kernels in a server, over all lanes, in log."""
ARCHITECTURE_SPREAD, LANE_SPREAD = 0.12, 0.06
"""Of an architecture's own deviation from it, and of one GPU's and scheme's from that."""
ARRIVAL = Arrival(own=1.0, before=1 / (2 * ROUNDS), steps=2.0)
ARRIVAL_SPREAD = Arrival(own=0.1, before=0.1, steps=0.5)
FIRST_TOKEN_NOISE = 0.5
"""Log error of TTFT that the rows of a group share: how its server chunks, batches and streams is in no column."""
COVERAGE = 0.8
UNSEEN = 2.0
"""The rows of a single group say nothing about others: their residuals, times this."""


class Parameters(Document):
    """A calibrated latency model."""

    physical: dict[str, float]
    arrival: dict[str, float]
    factors: dict[str, Factors]
    """Of what isolated kernels reach (the kernel tables): by GPU and scheme, by architecture, and "" for others."""
    low: float
    """Measured over predicted TPOT: the 10 % and 90 % quantiles on groups that were left out."""
    high: float
    first_low: float
    """The same of TTFT."""
    first_high: float
    shortest_s: float
    """TPOT of the fastest row. Below it nothing was measured, and the server's host, which is not modelled, may set the pace."""
    rows: int


def fit(work: Work, tpot: Array) -> Parameters:
    """Parameters without arrival and interval, from TPOT in seconds: [R]."""
    from scipy.optimize import least_squares

    at, spread = start(work)
    target = np.log(tpot)

    def residuals(x: Array) -> Array:
        physical, read, peak = unpacked(x, work)
        return np.concatenate([(np.log(tpot_s(physical, work, read, peak)) - target) / NOISE, (x - at) / spread])

    found = least_squares(residuals, at, loss="soft_l1", x_scale=spread, max_nfev=60).x
    return packed(found, work)


def start(work: Work) -> tuple[Array, Array]:
    """Log of the priors (factors and deviations: 0) and their spreads: physical; factors of reading; factors of peaks."""
    architectures, kinds = len(architectures_of(work.lanes)), len(kinds_of(work.lanes))
    spread = np.concatenate([[FACTOR_SPREAD], np.full(architectures, ARCHITECTURE_SPREAD), np.full(kinds, LANE_SPREAD)])
    return np.concatenate([np.log(PRIOR), np.zeros(2 * len(spread))]), np.concatenate([SPREAD, spread, spread])


def unpacked(x: Array, work: Work) -> tuple[Physical, Array, Array]:
    """(physical, fractions of bandwidth [R, S], of peak [R, S])."""
    read, peak = factors(x, work.lanes)
    prior = np.array([lane_prior(lane) for lane in work.lanes])
    return Physical(*np.exp(x[: len(PRIOR)])), (prior[:, 0] * read)[work.lane], (prior[:, 1] * peak)[work.lane]


def lane_prior(lane: Lane) -> tuple[float, float]:
    found = reached(lane.gpu, lane.scheme, lane.runtime)
    return found.read, found.peak


def kinds_of(lanes: Sequence[Lane]) -> list[str]:
    return sorted({lane.kind for lane in lanes})


def architectures_of(lanes: Sequence[Lane]) -> list[str]:
    return sorted({lane.architecture for lane in lanes})


def factors(x: Array, lanes: Sequence[Lane]) -> tuple[Array, Array]:
    """Of reading and of peaks, over what the kernel tables reach: [lanes] each."""
    architectures, kinds = architectures_of(lanes), kinds_of(lanes)
    wide = 1 + np.array([architectures.index(lane.architecture) for lane in lanes])
    own = 1 + len(architectures) + np.array([kinds.index(lane.kind) for lane in lanes])
    made = [np.exp(one[0] + one[wide] + one[own]) for one in x[len(PRIOR) :].reshape(2, -1)]
    return made[0], made[1]


def packed(x: Array, work: Work) -> Parameters:
    architectures, kinds = architectures_of(work.lanes), kinds_of(work.lanes)
    above = {lane.kind: 1 + architectures.index(lane.architecture) for lane in work.lanes}
    logs = x[len(PRIOR) :].reshape(2, -1).T
    sums = {"": logs[0]} | {name: logs[0] + logs[1 + i] for i, name in enumerate(architectures)}
    sums |= {name: logs[0] + logs[above[name]] + logs[1 + len(architectures) + i] for i, name in enumerate(kinds)}
    found = {name: Factors(*np.exp(one).tolist()) for name, one in sums.items()}
    return Parameters(
        physical=Physical(*np.exp(x[: len(PRIOR)]).tolist())._asdict(),
        arrival=ARRIVAL._asdict(),
        factors=found,
        low=1 / (1 + UNSEEN * NOISE),
        high=1 + UNSEEN * NOISE,
        first_low=1 / (1 + UNSEEN * FIRST_TOKEN_NOISE),
        first_high=1 + UNSEEN * FIRST_TOKEN_NOISE,
        shortest_s=0.0,
        rows=len(work.prompt),
    )


def factors_of(parameters: Parameters, lane: Lane) -> Factors:
    """Fitted to the lane's own rows, else to those of its architecture, else to all."""
    known = parameters.factors
    return known.get(lane.kind) or known.get(lane.architecture) or known[""]


def arrays_of(parameters: Parameters, work: Work) -> tuple[Physical, Array, Array]:
    prior = np.array([lane_prior(lane) for lane in work.lanes])
    found = [factors_of(parameters, lane) for lane in work.lanes]
    read = prior[:, 0] * [one.read for one in found]
    peak = prior[:, 1] * [one.peak for one in found]
    return Physical(**parameters.physical), read[work.lane], peak[work.lane]


def per_token_s(parameters: Parameters, work: Work) -> Array:
    physical, read, peak = arrays_of(parameters, work)
    return tpot_s(physical, work, read, peak)


def first_token_s(parameters: Parameters, work: Work) -> Array:
    physical, read, peak = arrays_of(parameters, work)
    return ttft_s(physical, Arrival(**parameters.arrival), work, read, peak)


def at_percentile_s(parameters: Parameters, work: Work, percentile: float) -> tuple[Array, Array]:
    """(TTFT, TPOT) of the request at a percentile: [R] each."""
    physical, read, peak = arrays_of(parameters, work)
    return tail_s(physical, Arrival(**parameters.arrival), work, read, peak, percentile)


def fit_first_token(work: Work, ttft: Array, groups: Sequence[tuple[str, ...]], parameters: Parameters) -> Parameters:
    """The numbers of arrival, from TTFT in seconds, the rest as it is. A group counts once, however many rows it has."""
    from scipy.optimize import least_squares

    physical, read, peak = arrays_of(parameters, work)
    target, at, spread = np.log(ttft), np.log(ARRIVAL), np.array(ARRIVAL_SPREAD)
    weight = 1 / (FIRST_TOKEN_NOISE * np.sqrt([groups.count(group) for group in groups]))

    def residuals(x: Array) -> Array:
        errors = np.log(ttft_s(physical, Arrival(*np.exp(x)), work, read, peak)) - target
        return np.concatenate([weight * errors, (x - at) / spread])

    found = least_squares(residuals, at).x
    return parameters.model_copy(update={"arrival": Arrival(*np.exp(found).tolist())._asdict()})


def group_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What is left out together: model, GPU, runtime and precision."""
    return tuple(word(row, name) for name in ("model_path", "system", "backend", "precision"))


def with_spread(work: Work, tpot: Array, ttft: Array, groups: Sequence[tuple[str, ...]], found: Parameters) -> Parameters:
    """With the quantiles of measured over predicted TPOT and TTFT, each group predicted by a fit of the others."""
    names = sorted(set(groups))
    alone = len(names) == 1
    errors, first = np.zeros(len(tpot)), np.zeros(len(tpot))
    for name in names:
        out = np.array([group == name for group in groups])
        others, own = found, work.rows(out)
        if not alone:
            rest = [group for group in groups if group != name]
            others = fit_first_token(work.rows(~out), ttft[~out], rest, fit(work.rows(~out), tpot[~out]))
        errors[out] = np.log(tpot[out] / per_token_s(others, own))
        first[out] = np.log(ttft[out] / first_token_s(others, own))
    times = UNSEEN if alone else 1.0
    low, high = quantiles(times * errors, times * NOISE)
    first_low, first_high = quantiles(times * first, times * NOISE)
    spread = {"low": low, "high": high, "first_low": first_low, "first_high": first_high}
    return found.model_copy(update={**spread, "shortest_s": float(tpot.min()), "rows": len(tpot)})


def quantiles(errors: Array, least: float) -> tuple[float, float]:
    """Factors that hold COVERAGE of the log errors, and not less than `least` to either side."""
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(errors, [tail, 1 - tail])
    return float(np.exp(min(low, -least))), float(np.exp(max(high, least)))
