"""What a GPU candidate would take by the cost model alone, where no ghost of its family ran. Pure.

The pass of `advisor plan` (serving_times over serving_work: products, caches and launches by data sheet and kernel tables),
with what the baseline's own linears showed of this device (KernelFactors) and a static batch, as `advisor run` measures it:
nothing joins. What servers leave of isolated kernels is not in it: nothing was served here. A ghost, where it runs, replaces it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from quantadvisor.documents import BadInput, Candidate, GpuModel, KernelFactors, Predicted, Scheme, Workload
from quantadvisor.kernels.gpu_schemes import gpu_scheme
from quantadvisor.profiling.gpu_memory import BATCHED_TOKENS, activation_bytes, sequence_bytes, weight_bytes
from quantadvisor.profiling.shard import Shard, shard_of

from . import step_time
from .gpu_kernels import CUBLAS, table_scheme
from .predict import Probes, outlier_channels, predicted
from .serving_fit import lane_prior
from .serving_times import PRIOR, Array, fixed_s, own_s, products_of, step_s
from .serving_work import Case, Work, placement_of, work_of

BASIS = "the cost model with {}: no ghost of its family ran"
SOURCES = {
    "measured": "kernels timed here",
    "interpolated": "published kernel tables, calibrated on the baseline",
    "roofline": "the roofline, calibrated on the baseline",
}


def first(
    candidate: Candidate,
    config: Mapping[str, Any],
    sheet: GpuModel,
    workload: Workload,
    by: KernelFactors,
    probes: Probes,
) -> Predicted | None:
    """None where the tables have nothing like its kernels, the GPU no such arithmetic, or the model an unknown shape."""
    form = form_of(candidate.scheme)
    if form is None or candidate.runtime == "torch" or outlier_channels(candidate.scheme):
        return None
    try:
        shard = shard_of(config)
        runtime = "vllm" if candidate.runtime in CUBLAS else candidate.runtime
        place = placement_of(shard, sheet, form, runtime)
    except BadInput:
        return None
    traffic = workload.traffic
    case = Case(place, traffic.concurrency, traffic.prompt_length, traffic.output_length)
    ttft, tpot = pass_s(work_of([case]), traffic.concurrency, by)
    peak = peak_bytes(shard, form, workload)
    source = probes.source(candidate.scheme, candidate.runtime, candidate.options)
    return predicted(workload, ttft, tpot, peak, BASIS.format(SOURCES[source]), source)


def form_of(made: Scheme) -> Scheme | None:
    """The scheme in the tables' words, with its own cache."""
    name = table_scheme(made)
    return None if name is None else gpu_scheme(name).model_copy(update={"keys": made.keys, "values": made.values})


def pass_s(work: Work, requests: int, by: KernelFactors) -> tuple[float, float]:
    """(all prompts in one pass, a decode step of all requests), seconds."""
    read, peak = reached_here(work, by)
    rows, heads = work.prompt * requests, np.full_like(work.prompt, requests)
    products = products_of(work, read, peak)
    ttft = step_time.prompts_s(products, rows, heads, own_s(PRIOR, work), fixed_s(PRIOR, work))
    return float(ttft[0]), float(step_s(PRIOR, work, read, peak)[0])


def reached_here(work: Work, by: KernelFactors) -> tuple[Array, Array]:
    """Fractions of bandwidth and peak [1, S]: those of the kernel tables, less what the baseline's linears took more."""
    prior = np.array([lane_prior(lane) for lane in work.lanes])
    return (prior[:, 0] / by.reading)[work.lane], (prior[:, 1] / by.arithmetic)[work.lane]


def peak_bytes(shard: Shard, form: Scheme, workload: Workload) -> int:
    traffic = workload.traffic
    caches = traffic.concurrency * sequence_bytes(shard, form, traffic.context_length)
    rows = min(BATCHED_TOKENS, traffic.prompt_length * traffic.concurrency)
    return weight_bytes(shard, form) + round(caches) + activation_bytes(shard, rows)
