"""Quality of a candidate against the fp32 logits of the same model on the same tokens, through its own runtime.

Perplexity = exp(mean negative log-likelihood); KL = mean over tokens of sum_v p(v) (log p(v) − log q(v)), nats, with p
the fp32 model's distribution; top-1 = share of tokens whose most likely next token is the fp32 model's. Intervals are
95 % percentile bootstraps over blocks of 32 neighbouring tokens, which are not independent.
"""

from __future__ import annotations

import math

import numpy as np

from quantadvisor.documents import Interval, Quality, Workload

from .workers import RunningWorker

WINDOW = 512
CHUNK = 128
BLOCK = 32
RESAMPLES = 2000


def quality_of(scores: np.ndarray, text: str, chunk: int | None = None, simulated: bool = False) -> Quality:
    """scores: float64 [3, tokens]: negative log-likelihood (NaN where unknown), KL, top-1 agreement."""
    return Quality(
        perplexity=math.exp(min(700.0, float(np.nanmean(scores[0])))),
        kl=block_interval(scores[1]),
        top1=block_interval(scores[2]),
        tokens=scores.shape[1],
        text=text,
        chunk_tokens=chunk,
        simulated=simulated,
    )


def block_interval(values: np.ndarray) -> Interval:
    """Mean and 95 % block-bootstrap interval; fixed seed."""
    blocks = values[: len(values) // BLOCK * BLOCK].reshape(-1, BLOCK).mean(1) if len(values) >= 2 * BLOCK else values
    chosen = np.random.default_rng(0).integers(0, len(blocks), (RESAMPLES, len(blocks)))
    low, high = np.percentile(blocks[chosen].mean(1), [2.5, 97.5])
    mean = float(values.mean())
    return Interval(mean=mean, low=min(float(low), mean), high=max(float(high), mean))


def budget_breach(quality: Quality, workload: Workload) -> str | None:
    """Why the quality is outside the budget; None where the mean is inside it. A simulation is not asked the tasks: what runs
    must have been."""
    budget = workload.quality
    how = "simulated " if quality.simulated else ""
    if budget.kl_mean_max is not None and quality.kl.mean > budget.kl_mean_max:
        return f"{how}mean KL {quality.kl.mean:.3g} is over the budget of {budget.kl_mean_max:g}"
    if budget.top1_agreement_min is not None and quality.top1.mean < budget.top1_agreement_min:
        return f"{how}top-1 agreement {quality.top1.mean:.3f} is under the budget of {budget.top1_agreement_min:g}"
    if quality.passkey_found is False:
        nor = ", nor by the fp32 model: nothing shows what this cache keeps" if quality.passkey_reference_found is False else ""
        return f"the passkey at the declared context is not found{nor}"
    for score in quality.tasks:
        if score.drop.mean > budget.tasks[score.task].max_drop:
            limit = budget.tasks[score.task].max_drop
            return f"{score.metric} of {score.task} falls by {score.drop.mean:.3f}, more than its max_drop of {limit:g}"
    unasked = [task for task in budget.tasks if task not in {score.task for score in quality.tasks}]
    return f"{unasked[0]} of quality.tasks was not asked of it" if unasked and not quality.simulated else None


def straddles(quality: Quality, workload: Workload) -> bool:
    """Does the interval lie on both sides of a budget, so that more tokens are needed?"""
    budget = workload.quality
    kl, top1 = budget.kl_mean_max, budget.top1_agreement_min
    return (kl is not None and quality.kl.low <= kl <= quality.kl.high) or (
        top1 is not None and quality.top1.low <= top1 <= quality.top1.high
    )


def passkey_found(worker: RunningWorker, prompt: np.ndarray, answer: np.ndarray) -> bool:
    """Does greedy decoding after int64 [S] continue with `answer`, int64 [n]? A quantized cache is read at each step."""
    made = worker.generate(prompt[None], len(answer))
    return bool(made.generated[0] == answer.tolist())
