"""TTFT and TPOT of continuous batching on GPUs: a roofline with a few physical parameters, fitted, and their priors.

    step   = sum over products of norm4(bytes / bandwidth, operations / peak) + cache + launches + all-reduces + requests
    TPOT   = step + prompts that join meanwhile, (c - 1) of them in `output` steps, each by what its rows add to a step
    TTFT   = own prompt + half of the first burst's prompts over the rounds + two steps + waiting for room in the cache

Every bandwidth and peak is the data sheet's, times what the runtime's isolated kernels reach of it (kernel tables,
kernels/gpu/fractions.json), times a fitted factor: what a server leaves of that. The fit has one factor for all, a deviation by
architecture and one by GPU and scheme, as far as rows insist (ridge); where there are no rows the coarser one holds. No fitted
number is keyed by model, runtime or row.
The 80 % intervals come from residuals on groups (model, GPU, runtime, precision) left out of inner fits; that of TPOT reaches at
least to the fastest row that was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from quantadvisor.documents import BadInput

from .serving_fit import Parameters, at_percentile_s, first_token_s, fit, fit_first_token, group_of, per_token_s, with_spread
from .serving_times import Array
from .serving_work import Case, case_of, positive, word, work_of

Row = Mapping[str, Any]


class Prediction(NamedTuple):
    """Milliseconds; `low` and `high` bound TPOT with 80 %, `ttft_low` and `ttft_high` TTFT. The tails are those of the request
    at a percentile that was asked for, else the means."""

    ttft_ms: float
    tpot_ms: float
    low: float
    high: float
    ttft_low: float
    ttft_high: float
    ttft_tail_ms: float
    tpot_tail_ms: float


def calibrate(rows: Sequence[Row]) -> Parameters:
    """The parameters from measured rows: the columns of serving_points.csv, with silicon_ttft_ms and silicon_tpot_ms."""
    if not rows:
        raise BadInput("calibrate", "no rows", "give at least one measured row")
    work = work_of([case_of(row) for row in rows])
    tpot, ttft = (measured(rows, name) for name in ("silicon_tpot_ms", "silicon_ttft_ms"))
    found = fit(work, tpot)
    groups = [group_of(row) for row in rows]
    return with_spread(work, tpot, ttft, groups, fit_first_token(work, ttft, groups, found))


def predict(parameters: Parameters, row: Row) -> Prediction:
    """TTFT and TPOT of a row without its measured columns."""
    return predict_cases(parameters, [case_of(row)])[0]


def predict_cases(parameters: Parameters, cases: Sequence[Case], percentile: float | None = None) -> list[Prediction]:
    """All at once; `percentile` of requests for the tails."""
    work = work_of(cases)
    tpot = 1e3 * per_token_s(parameters, work)
    ttft = 1e3 * first_token_s(parameters, work)
    low, high = tpot * parameters.low, np.maximum(tpot * parameters.high, 1e3 * parameters.shortest_s)
    tails = (ttft, tpot) if percentile is None else [1e3 * one for one in at_percentile_s(parameters, work, percentile)]
    columns = [ttft, tpot, low, high, ttft * parameters.first_low, ttft * parameters.first_high, *tails]
    return [Prediction(*one) for one in np.stack(columns, axis=1).tolist()]


def measured(rows: Sequence[Row], name: str) -> Array:
    """Seconds: [R]."""
    return np.array([positive(row, name, word(row, "id") or "row") for row in rows]) / 1e3
