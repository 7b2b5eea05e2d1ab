"""From bounds to the gated time metrics: limits of each, the words, the blocks that are still needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from quantadvisor.documents import Against, GateMetric

from .gate_rule import (
    MOST_BLOCKS,
    UNBOUNDED,
    Bounds,
    Limits,
    holm,
    judge,
    paired,
    settling_blocks,
    settling_blocks_unpaired,
    welch,
)

UNNOTICED_TTFT_S = 0.002
UNNOTICED_TPOT_S = 0.0002
UNNOTICED_TPOT_SHARE = 0.02


class PairedTimes(NamedTuple):
    """One time metric of a live run, a block a place: seconds of both sides, ln of side A's first half over its second."""

    baseline_s: Sequence[float]
    candidate_s: Sequence[float]
    log_ratios: Sequence[float]
    log_self: Sequence[float]


class BlockTimes(NamedTuple):
    """One time metric of two stored results: seconds, one a block, unpaired."""

    baseline_s: Sequence[float]
    candidate_s: Sequence[float]


def limits(name: str, baseline_s: float, threshold: float) -> Limits:
    """Absolute bounds as a share of the baseline: TTFT 2 ms; TPOT and ITL the lesser of 0.2 ms and 2 %."""
    if name == "ttft_s":
        return Limits(threshold, UNNOTICED_TTFT_S / baseline_s)
    return Limits(threshold, min(UNNOTICED_TPOT_S / baseline_s, UNNOTICED_TPOT_SHARE))


def paired_metrics(of: str, series: Mapping[str, PairedTimes], alpha: float, threshold: float) -> list[GateMetric]:
    """Live: anytime-valid intervals of the median paired ratio, Holm over the metrics."""
    found = holm({name: partial(paired, s.log_ratios) for name, s in series.items()}, alpha)
    metrics = []
    for name, times in series.items():
        bounds, share = found[name], limits(name, median(times.baseline_s), threshold)
        itself = paired(times.log_self, alpha)
        more = settling_blocks(times.log_ratios, bounds.alpha, share)
        made = time_metric(of, name, times.baseline_s, times.candidate_s, bounds, share, more)
        metrics.append(made.model_copy(update={"self_against_self": against(itself), "log_ratios": tuple(times.log_ratios)}))
    return metrics


def unpaired_metrics(
    series: Mapping[tuple[str, str], BlockTimes], alpha: float, threshold: float, decides: bool
) -> list[GateMetric]:
    """Stored: Welch's intervals of log block times, Holm over candidates (first of the key) and metrics (second)."""

    def logs(values: Sequence[float]) -> list[float]:
        return [math.log(value) for value in values]

    named = {f"{of} {name}": (logs(s.baseline_s), logs(s.candidate_s)) for (of, name), s in series.items()}
    found = holm({key: partial(welch, *s) for key, s in named.items()}, alpha)
    metrics = []
    for (of, name), times in series.items():
        bounds, share = found[f"{of} {name}"], limits(name, median(times.baseline_s), threshold)
        if list(times.baseline_s) == list(times.candidate_s):
            made = time_metric(of, name, times.baseline_s, times.candidate_s, bounds._replace(low=0.0, high=0.0), share, None)
            made = made.model_copy(update={"reason": "the same samples: one measurement, not two"})
        else:
            more = settling_blocks_unpaired(*named[f"{of} {name}"], bounds.alpha, share)
            made = time_metric(of, name, times.baseline_s, times.candidate_s, bounds, share, more)
        metrics.append(made.model_copy(update={"decides": decides}))
    return metrics


def time_metric(
    of: str, name: str, baseline_s: Sequence[float], candidate_s: Sequence[float], bounds: Bounds, share: Limits, more: int | None
) -> GateMetric:
    state = judge(bounds, share)
    return GateMetric(
        of=of,
        name=name,
        kind="time",
        state=state,
        reason=reason(bounds, share, state, more),
        baseline=median(baseline_s),
        candidate=median(candidate_s),
        ratio=math.exp(bounds.middle),
        low=finite(bounds.low),
        high=finite(bounds.high),
        alpha=bounds.alpha,
        noise_floor=bounds.noise_floor,
        blocks=bounds.blocks,
        more_blocks=more if state == "inconclusive" else None,
    )


def reason(bounds: Bounds, share: Limits, state: str, more: int | None) -> str:
    change = math.expm1(bounds.middle)
    if state == "regression":
        return f"{change:+.1%}, surely slower, by the threshold of {share.threshold:.1%} at least"
    if state == "pass":
        if bounds.low > 0:
            return f"{change:+.1%}, surely slower but by less than counts"
        if bounds.high < 0:
            return f"{change:+.1%}, faster"
        if share.unnoticed > 2 * share.threshold:
            return f"{change:+.1%}, surely within the absolute bound ({share.unnoticed:.1%} of the baseline)"
        return f"{change:+.1%}, surely less than {2 * share.threshold:.1%} slower"
    if bounds.empty:
        return f"{change:+.1%}, but the ratio did not stay the same during the run"
    needed = f"{more} more blocks would settle it" if more is not None else f"not even {MOST_BLOCKS} blocks would settle it"
    if more is None and bounds.blocks < 2:
        needed = "at least two blocks are needed to say more"
    return f"{change:+.1%} after {bounds.blocks} blocks; {needed}"


def against(bounds: Bounds) -> Against:
    return Against(ratio=math.exp(bounds.middle), low=finite(bounds.low), high=finite(bounds.high))


def finite(log: float) -> float | None:
    return math.exp(log) if abs(log) <= UNBOUNDED else None


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
