"""Too good to be true: surely faster than the baseline, and better than physics or than the full-precision model allows.

Then another workload or text was run, or weights were left unread: exit 3, not a pass.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from quantadvisor.documents import GateMetric
from quantadvisor.methods.refusals import EXPERTS

BETTER_THAN_FULL = 0.97
"""Perplexity under this share of the fp32 model's, where the baseline's was not."""
READ_AT_LEAST = 0.25
"""Share of a dense artifact's bytes that one decode step must read: embeddings are not, and fp32 files may run in 16 bit."""
BEYOND_CACHE = 2
"""Only an artifact of so many last-level caches is sure to be read from memory."""


class Perplexities(NamedTuple):
    """On the same tokens."""

    baseline: float
    candidate: float
    full: float


def surely_faster(metric: GateMetric) -> bool:
    return metric.kind == "time" and metric.state == "pass" and metric.high is not None and metric.high < 1


def better_than_full(metrics: Sequence[GateMetric], seen: Perplexities | None) -> list[GateMetric]:
    """Times that got surely faster while the text was modelled better than by the fp32 model, marked."""
    if seen is None or not seen.candidate < BETTER_THAN_FULL * seen.full <= seen.baseline:
        return list(metrics)
    said = f"perplexity {seen.candidate:.4g} is better than the fp32 model's {seen.full:.4g}: another workload or text?"
    return [anomalous(metric, said) if surely_faster(metric) else metric for metric in metrics]


def beyond_physics(
    metrics: Sequence[GateMetric], artifact_bytes: int | None, cache_bytes: int, bytes_per_s: Callable[[], float | None]
) -> list[GateMetric]:
    """TPOT that got surely faster than a quarter of the weights can be read. `bytes_per_s` is asked only where it matters."""
    metrics = list(metrics)
    suspects = [m for m in metrics if m.name == "tpot_s" and surely_faster(m) and m.candidate is not None]
    if not suspects or artifact_bytes is None or not 0 < cache_bytes * BEYOND_CACHE < artifact_bytes:
        return metrics
    rate = bytes_per_s()
    if not rate:
        return metrics
    floor_s = READ_AT_LEAST * artifact_bytes / rate
    said = f"less than the {floor_s * 1e3:.3g} ms that reading a quarter of the weights takes: were they read?"
    return [anomalous(m, said) if m in suspects and (m.candidate or 0.0) < floor_s else m for m in metrics]


def anomalous(metric: GateMetric, said: str) -> GateMetric:
    return metric.model_copy(update={"state": "anomalous", "reason": f"faster, and {said}"})


def of_experts(folder: Path) -> bool:
    """Does a decode step read only some experts of this model?"""
    try:
        config = json.loads((folder / "config.json").read_text())
        return any(config.get(name) for name in EXPERTS)
    except (OSError, ValueError, AttributeError):
        return False
