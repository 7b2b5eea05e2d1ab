"""The latency model of GPUs: step_time's parts from work and parameters, vectorised over cases. Pure.

`Physical` holds on every GPU; `read` and `peak` are fractions of the data sheet's bandwidth and peak by lane.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import serving_tail, step_time
from .serving_work import Work

Array = np.ndarray[Any, Any]


class Factors(NamedTuple):
    """Of the bandwidth and of the peak that isolated kernels reach: what is left of it in a server."""

    read: float
    peak: float


class Physical(NamedTuple):
    """What holds on every GPU, with its prior and how far (in log) it may reasonably be from it."""

    cache_read: float
    """What a server leaves of the bandwidth at which isolated decode attention reads its cache."""
    prompt_peak: float
    """Fraction of the 16-bit peak of attention over a fresh prompt, and of arithmetic in decode attention."""
    launch_s: float
    """Of one kernel that CUDA graphs replay, beyond what its bytes take."""
    reduce_s: float
    """Of one all-reduce over two GPUs, latency and skew; over 2^n GPUs n times."""
    link: float
    """Fraction of the link's bandwidth in all-reduces."""
    request_s: float
    """A running request's share in a step: sampling, its token's way to the client."""
    joining: float
    """Share of a joining prompt's added time by which the others' tokens come later."""


class Arrival(NamedTuple):
    """Where the time to the first token goes, beside waiting for room in the cache."""

    own: float
    """Times the own prompt's pass."""
    before: float
    """Share of the other requests' prompts that come first. A closed loop of n rounds starts with a burst, in which half of
    them do, and later requests arrive one by one: 1 / 2n."""
    steps: float
    """Steps until its token is out: the one that runs when it arrives, and those by which results are sent behind."""


PRIOR = Physical(cache_read=0.9, prompt_peak=0.5, launch_s=2e-6, reduce_s=6e-6, link=0.5, request_s=20e-6, joining=0.9)
SPREAD = Physical(cache_read=0.2, prompt_peak=0.4, launch_s=0.7, reduce_s=0.7, link=0.5, request_s=0.8, joining=0.15)


def products_s(work: Work, read: Array, peak: Array, rows: Array, head_rows: Array) -> Array:
    """Seconds of all products at `rows` [R] rows, lm_head at `head_rows`: [R]. read, peak: fractions [R, S]."""
    tokens = np.where(work.head, head_rows[:, None], rows[:, None])
    missed = np.log1p(-np.minimum(work.chosen / work.experts, 1 - 1e-12)) * tokens
    reading = (work.weight_s * -np.expm1(missed) + work.row_s * tokens) / read
    arithmetic = work.flop_s * tokens / peak
    return np.asarray(norm4(reading, arithmetic).sum(axis=1))


def norm4(reading: Array, arithmetic: Array) -> Array:
    """The corner of the roofline, where reading and arithmetic hide each other only partly: the fourth root of the sum of
    fourth powers, by squares and square roots, of which numpy takes a sixth of the time of other powers."""
    squares = np.square(np.square(reading)) + np.square(np.square(arithmetic))
    return np.asarray(np.sqrt(np.sqrt(squares)))


def step_s(p: Physical, work: Work, read: Array, peak: Array) -> Array:
    """Seconds of one decode step of the running requests: [R]."""
    reading = work.cache_s / np.minimum(1.0, work.cache_share * p.cache_read)
    attention = np.maximum(reading, work.score_s / p.prompt_peak)
    request = attention + p.request_s + work.message_s / p.link
    return np.asarray(step_time.step_s(products_of(work, read, peak), work.running, request, fixed_s(p, work)))


def prompt_s(p: Physical, work: Work, read: Array, peak: Array) -> Array:
    """Seconds by which the rows of one prompt lengthen a step of the running requests: [R]."""
    return np.asarray(step_time.joining_s(products_of(work, read, peak), work.running, work.prompt, own_s(p, work)))


def alone_s(p: Physical, work: Work, read: Array, peak: Array) -> Array:
    """Seconds of a prompt in a pass of its own: [R]."""
    products = products_of(work, read, peak)
    return np.asarray(step_time.prompts_s(products, work.prompt, np.ones_like(work.prompt), own_s(p, work), fixed_s(p, work)))


def products_of(work: Work, read: Array, peak: Array) -> step_time.Products:
    return lambda rows, heads: products_s(work, read, peak, rows, heads)


def own_s(p: Physical, work: Work) -> Array:
    """Of a prompt beside its products: attention over itself, and its rows between the GPUs."""
    return np.asarray(work.prompt_s / p.prompt_peak + work.prompt * work.message_s / p.link)


def fixed_s(p: Physical, work: Work) -> Array:
    """Of any pass: launches, and the latency of all-reduces."""
    return np.asarray(work.launches * p.launch_s + work.reduces * p.reduce_s)


def tpot_s(p: Physical, work: Work, read: Array, peak: Array) -> Array:
    """A step, and the prompts of the other running requests that join while one writes its output: [R]."""
    step, joining = step_s(p, work, read, peak), prompt_s(p, work, read, peak)
    return np.asarray(step_time.tpot_s(step, joining, work.running, work.output, p.joining))


def ttft_s(p: Physical, arrival: Arrival, work: Work, read: Array, peak: Array) -> Array:
    """Own prompt, part of the prompts before it, steps, and a share of a request's time where the cache is full: [R]."""
    step = tpot_s(p, work, read, peak)
    before = (work.running - 1) * prompt_s(p, work, read, peak)
    queue = work.waiting / work.running * work.output * step
    return arrival.own * alone_s(p, work, read, peak) + arrival.before * before + arrival.steps * step + queue


def tail_s(p: Physical, arrival: Arrival, work: Work, read: Array, peak: Array, percentile: float) -> tuple[Array, Array]:
    """(TTFT, TPOT) of the request at a percentile (serving_tail): [R] each."""
    first, step = ttft_s(p, arrival, work, read, peak), tpot_s(p, work, read, peak)
    joining, others = prompt_s(p, work, read, peak), work.running - 1
    busy = np.minimum(1.0, others * joining / (first + work.output * step))
    ahead = serving_tail.ahead_of(work.running, busy, percentile)
    more = serving_tail.joining_of(work.running, percentile) - others
    return first + (ahead - arrival.before * others) * joining, step + p.joining * more / work.output * joining
