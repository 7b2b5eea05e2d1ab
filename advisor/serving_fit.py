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

from .serving_times import PRIOR, SPREAD, Array, Arrival, Fractions, Physical, tpot_s, ttft_s
from .serving_work import Work

NOISE = 0.08
"""Log error of a measured row that is no news: benchmarks of one set-up differ by as much."""
FACTOR_SPREAD = 0.15
"""Of the factor between isolated kernels and kernels in a server, over all lanes, in log."""
LANE_SPREAD = 0.10
"""Of one lane's own deviation from it."""
ARRIVAL = Arrival(own=1.5, before=0.2)
COVERAGE = 0.8
UNSEEN = 2.0
"""The rows of a single group say nothing about others: their residuals, times this."""


class Parameters(Document):
    """A calibrated latency model."""

    physical: dict[str, float]
    arrival: dict[str, float]
    read_factor: float
    """Of every lane's fraction of bandwidth, over the kernel tables' median."""
    peak_factor: float
    fractions: dict[str, Fractions]
    low: float
    """Measured over predicted TPOT: the 10 % and 90 % quantiles on groups that were left out."""
    high: float
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
    """Log of the priors (deviations: 0) and their spreads: physical, two factors, two deviations a lane."""
    deviations = 2 * len(work.lanes)
    at = np.concatenate([np.log(PRIOR), np.zeros(2 + deviations)])
    return at, np.concatenate([SPREAD, np.full(2, FACTOR_SPREAD), np.full(deviations, LANE_SPREAD)])


def unpacked(x: Array, work: Work) -> tuple[Physical, Array, Array]:
    """(physical, fractions of bandwidth [R, S], of peak [R, S])."""
    size, lanes = len(PRIOR), len(work.lanes)
    prior = np.array([reached(*lane.split(" "))[:2] for lane in work.lanes])
    read = prior[:, 0] * np.exp(x[size] + x[size + 2 : size + 2 + lanes])
    peak = prior[:, 1] * np.exp(x[size + 1] + x[size + 2 + lanes :])
    return Physical(*np.exp(x[:size])), read[work.lane], peak[work.lane]


def packed(x: Array, work: Work) -> Parameters:
    size, lanes = len(PRIOR), len(work.lanes)
    read, peak = (float(np.exp(x[size + i])) for i in (0, 1))
    fractions = {}
    for i, lane in enumerate(work.lanes):
        prior = reached(*lane.split(" "))
        own = np.exp(x[[size + 2 + i, size + 2 + lanes + i]])
        fractions[lane] = Fractions(bandwidth=prior.read * read * own[0], peak=prior.peak * peak * own[1], fitted=True)
    return Parameters(
        physical=Physical(*np.exp(x[:size]).tolist())._asdict(),
        arrival=ARRIVAL._asdict(),
        read_factor=read,
        peak_factor=peak,
        fractions=fractions,
        low=1 / (1 + UNSEEN * NOISE),
        high=1 + UNSEEN * NOISE,
        rows=len(work.prompt),
    )


def fractions_of(parameters: Parameters, lane: str) -> Fractions:
    """Fitted, or the kernel tables' median times the factor that other lanes' rows gave."""
    if lane in parameters.fractions:
        return parameters.fractions[lane]
    prior = reached(*lane.split(" "))
    return Fractions(bandwidth=prior.read * parameters.read_factor, peak=prior.peak * parameters.peak_factor, fitted=False)


def arrays_of(parameters: Parameters, work: Work) -> tuple[Physical, Array, Array]:
    found = [fractions_of(parameters, lane) for lane in work.lanes]
    read, peak = np.array([one.bandwidth for one in found]), np.array([one.peak for one in found])
    return Physical(**parameters.physical), read[work.lane], peak[work.lane]


def per_token_s(parameters: Parameters, work: Work) -> Array:
    physical, read, peak = arrays_of(parameters, work)
    return tpot_s(physical, work, read, peak)


def first_token_s(parameters: Parameters, work: Work) -> Array:
    physical, read, peak = arrays_of(parameters, work)
    return ttft_s(physical, Arrival(**parameters.arrival), work, read, peak)


def fit_first_token(work: Work, ttft: Array, parameters: Parameters) -> Parameters:
    """The two numbers of arrival, from TTFT in seconds, the rest as it is."""
    from scipy.optimize import least_squares

    physical, read, peak = arrays_of(parameters, work)
    target = np.log(ttft)

    def residuals(x: Array) -> Array:
        return np.log(ttft_s(physical, Arrival(*np.exp(x)), work, read, peak)) - target

    found = least_squares(residuals, np.log(ARRIVAL), loss="soft_l1", f_scale=0.3).x
    return parameters.model_copy(update={"arrival": Arrival(*np.exp(found).tolist())._asdict()})


def group_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What is left out together: model, GPU, runtime and precision."""
    return tuple(str(row.get(name) or "") for name in ("model_path", "system", "backend", "precision"))


def spread_of(work: Work, tpot: Array, groups: Sequence[tuple[str, ...]], found: Parameters) -> tuple[float, float]:
    """(low, high): quantiles of measured over predicted TPOT, each group predicted by a fit of the others."""
    names = sorted(set(groups))
    number = np.array([names.index(group) for group in groups])
    if len(names) == 1:
        errors = UNSEEN * np.log(tpot / per_token_s(found, work))
    else:
        errors = np.zeros(len(tpot))
        for i in range(len(names)):
            out = number == i
            errors[out] = np.log(tpot[out] / per_token_s(fit(work.rows(~out), tpot[~out]), work.rows(out)))
    tail = (1 - COVERAGE) / 2
    low, high = np.exp(np.quantile(errors, [tail, 1 - tail]))
    return float(min(low, 1.0)), float(max(high, 1.0))
