"""What kernels let one expect of a candidate before its ghost has run: pure functions.

The baseline's pass with its linears exchanged for the candidate's, as predict does with a ghost's, and its cache by bytes.
Linears that no probe times are put at the roofline, and at the share of it that the probed kernels reach. Good enough for
the order in which ghosts are run, to tell a ghost's time that cannot be, and as the prediction of whom no ghost spoke for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from quantadvisor.documents import Candidate, Ghost, KernelSource, KernelTiming, Peaks, Predicted, Scheme, Workload
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.measure import request_s

from .explain import number_of, roof_of_linears
from .predict import Probes, cache_row_bytes, outlier_channels, predicted, weights_and_cache

NO_GHOST = "no ghost of its kernels ran"
DOUBTFUL = 10.0
"""Times what is expected: slow paths are 2 to 6 times slower (docs/log.md), a machine out of memory hundreds of times."""


class Expected(NamedTuple):
    ttft_s: float
    tpot_s: float


class Known(NamedTuple):
    """What was measured of the device before any ghost ran; `baseline`: its rounds, as a ghost's."""

    baseline: Ghost
    probes: Probes
    peaks: Peaks | None
    reached: float


def reached_share(kernels: Iterable[KernelTiming]) -> float:
    """Median share of the roof over the probed kernels; 1 where none is known."""
    shares = [one.roofline_share for one in kernels if one.roofline_share]
    return min(1.0, float(np.median(shares))) if shares else 1.0


def expected(candidate: Candidate, workload: Workload, known: Known) -> Expected | None:
    """Of a candidate under the workload; None where the device's roofs or the baseline's times are unknown."""
    base, traffic, inventory = known.baseline, workload.traffic, known.probes.inventory
    base_scheme = scheme(base.scheme)
    users, rows = traffic.concurrency, traffic.concurrency * traffic.prompt_length
    place = (candidate.scheme, candidate.runtime, candidate.options)
    theirs = (base_scheme, base.runtime, base.options)
    if base.ttft_s is None or base.tpot_s is None or known.peaks is None:
        return None
    times = [linears_s(*one, known, m, users) for one in (place, theirs) for m in (rows, users)]
    if any(seconds is None for seconds in times):
        return None
    prefill, decode, base_prefill, base_decode = (seconds or 0.0 for seconds in times)
    more_cache = users * (
        cache_row_bytes(inventory, candidate.scheme, candidate.runtime, workload)
        - cache_row_bytes(inventory, base_scheme, base.runtime, workload)
    )
    rest = base.tpot_s.median - base_decode + more_cache / known.peaks.read_bytes_per_s.median
    return Expected(max(0.0, base.ttft_s.median - base_prefill) + prefill, max(0.0, rest) + decode)


def linears_s(made: Scheme, runtime: str, options: tuple[str, ...], known: Known, rows: int, head_rows: int) -> float | None:
    """Seconds of all linears at `rows` rows: probed, else at the roof as far as the probed kernels reach it."""
    probed = known.probes.linears_s(made, runtime, options, rows, head_rows)
    if probed is not None or known.peaks is None:
        return probed
    plain = 2 if made.compute != "fp32" or "bf16" in options else 4
    number = number_of(made, plain)
    if number not in known.peaks.flops_per_s:
        number = "fp32"
    roof = roof_of_linears(known.probes.inventory, made, known.peaks, rows, head_rows, plain, number)
    return None if roof is None else roof / known.reached


def without_ghost(candidate: Candidate, workload: Workload, known: Known) -> Predicted | None:
    """The expectation as a prediction, of least certainty; None where there is none, or a second product (LLM.int8()) beside
    the kernel's would run."""
    of, base = expected(candidate, workload, known), known.baseline
    if of is None or base.peak_bytes is None or outlier_channels(candidate.scheme):
        return None
    inventory, users = known.probes.inventory, workload.traffic.concurrency
    sizes = (workload.traffic.prompt_length * users, users)
    probed = all(known.probes.linears_s(candidate.scheme, candidate.runtime, candidate.options, m, users) for m in sizes)
    source: KernelSource = "measured" if probed else "roofline"
    peak = base.peak_bytes + weights_and_cache(inventory, candidate.scheme, candidate.runtime, workload)
    peak -= weights_and_cache(inventory, scheme(base.scheme), base.runtime, workload)
    basis = f"the baseline's pass, linears exchanged by {'probes' if probed else 'the roofline'}: {NO_GHOST}"
    return predicted(workload, of.ttft_s, of.tpot_s, max(0, peak), basis, source, rough=True)


def promise(workload: Workload, of: Expected | None) -> float:
    """Seconds of a request, by which ghosts are run: the smallest first; infinity where nothing is expected."""
    return float("inf") if of is None else request_s(workload.traffic, of.ttft_s, of.tpot_s)


def doubt(of: Expected | None, ttft_s: float, tpot_s: float) -> str | None:
    """Why a ghost's times are not believed; None where they may be."""
    if of is None:
        return None
    for what, seen, thought in (("TTFT", ttft_s, of.ttft_s), ("TPOT", tpot_s, of.tpot_s)):
        if seen > DOUBTFUL * thought:
            return (
                f"not believed: {what} of {seen:.4g} s is {seen / thought:,.0f} times the {thought:.4g} s that its kernels and "
                "the baseline's other parts take"
            )
    return None
