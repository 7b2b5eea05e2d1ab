"""What a percentile of requests meets, in a closed loop of ROUNDS rounds that starts with all prompts at once. Pure.

1 of n requests is of the first burst, where each place in the queue is as likely as another; the others come as requests end,
and find k prompts or more with probability rho^k, rho being the share of the time that prompts take (a queue with Poisson
arrivals, Kleinrock, Queueing Systems I, section 3.2; prompts of one length queue less, so it errs to the safe side):

    P(more than k prompts come first) = (1 - k / (c - 1)) / n + (1 - 1 / n) rho^(k + 1),    k up to c - 1

Prompts that join while a request writes its output are c - 1 in the mean and, as a Poisson count, sqrt(c - 1) from it.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
ROUNDS = 10
"""Of a serving benchmark: it sends ten times as many requests as are in flight."""
HALVINGS = 24


def ahead_of(running: Array, busy: Array, percentile: float) -> Array:
    """Prompts that come before the one at the percentile: [R], not whole. busy: rho [R]."""
    above = 1 - percentile / 100
    others = running - 1
    low, high = np.zeros_like(others), others.copy()
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        burst = 1 - middle / np.maximum(others, 1e-12)
        more = burst / ROUNDS + (1 - 1 / ROUNDS) * busy ** (middle + 1) > above
        low, high = np.where(more, middle, low), np.where(more, high, middle)
    return high


def joining_of(running: Array, percentile: float) -> Array:
    """Prompts that join during a request at the percentile, the normal limit of a Poisson count: [R]."""
    others = running - 1
    return np.asarray(np.maximum(0.0, others + NormalDist().inv_cdf(percentile / 100) * np.sqrt(others)))
