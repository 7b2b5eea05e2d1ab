"""Predicted TTFT, TPOT and memory of every candidate, from ghosts and kernel probes: pure functions.

A ghost ran the whole graph with random weights in the real runtime: it *is* the prediction of its scheme, runtime and
options, and one runs for each family (runtime and options) and class of kernels. Another scheme in the family differs
only in its linears: its prediction is the ghost's time minus the probed time of the ghost's linears plus the probed time
of its own: step_time's pass, calibrated by the ghost on this device. What a ghost holds beside its linears (attention, norms,
launches) is thereby measured, not modelled. Memory likewise, by the bytes of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import get_args

from quantadvisor.documents import Candidate, Ghost, Inventory, KernelSource, KernelTiming, Predicted, Scheme, Workload
from quantadvisor.kernels.processes import crashed
from quantadvisor.methods.static_int8 import NPU
from quantadvisor.profiling.ledger import bytes_of_cache, bytes_of_weights, held_tokens, plain_cache_bytes
from quantadvisor.profiling.measure import objective_value, request_s
from quantadvisor.profiling.runtimes.torch_compile import COMPILE

from . import step_time


def kernel_class(scheme: Scheme) -> str:
    """Which family of probed kernels computes the scheme's linears. Groups of 32 have that of groups of 64, which alone is
    probed: a prediction too good by the scales that they read beside, and measured before it can win."""
    if scheme.activations is not None:
        if scheme.activations.number == "float":
            return "fp8"
        if scheme.name == NPU:
            return NPU
        return "w7a8" if scheme.weights is not None and scheme.weights.bits == 7 else "w8a8"
    if scheme.weights is None:
        return scheme.compute
    if scheme.weights.number == "codebook":
        return scheme.name
    return f"w{scheme.weights.bits:g}"


def outlier_channels(scheme: Scheme) -> bool:
    """Has it a second product beside the kernel's, which only a ghost of its own shows (LLM.int8())?"""
    return scheme.name.startswith("w8a8-outlier")


def family(runtime: str, options: Sequence[str]) -> str:
    return "+".join((runtime, *options))


def kernel_family(runtime: str, options: Sequence[str]) -> tuple[str, str]:
    """(runtime, option) under which the kernels were probed: GenAI runs ONNX Runtime's; of llama.cpp's options only
    `cuda`, and without it `plain`, are about linears; what torch compiles calls the products of eager."""
    if runtime == "llama.cpp":
        return runtime, next((option for option in ("cuda", "plain") if option in options), "")
    same = [option for option in options if option != COMPILE]
    return ("onnxruntime" if runtime == "onnxruntime-genai" else runtime), "+".join(same)


def curves(kernels: Iterable[KernelTiming]) -> dict[tuple[str, str, str, int, int], list[tuple[int, float]]]:
    """(runtime, option, kernel class, N, K) -> sorted [(M, median seconds)]."""
    found: dict[tuple[str, str, str, int, int], list[tuple[int, float]]] = {}
    for timing in kernels:
        if timing.time_s is not None and timing.time_s.median > 0:
            key = (timing.runtime, timing.option, kernel_class(timing.scheme), timing.n, timing.k)
            found.setdefault(key, []).append((timing.m, timing.time_s.median))
    return {key: sorted(points) for key, points in found.items()}


def certain(sources: Iterable[KernelSource]) -> KernelSource:
    """The least certain of several; measured where there is none."""
    order: tuple[KernelSource, ...] = get_args(KernelSource)
    return max(sources, key=order.index, default="measured")


EIGHT_BIT_SHARE = 0.5
"""Of the linears of a scheme that mixes 4 and 8 bits, before the layers are known."""
FULL_RATE_ROWS = 256
"""From this M on a product is bound by arithmetic and its time proportional to M; below, one reading of the weights may
still be what it waits for."""


def at(points: Sequence[tuple[int, float]], m: int) -> float | None:
    """Seconds at `m` rows: log-log interpolation; beyond the largest measured M proportional to M, None where that one is
    too small to tell."""
    if m <= points[0][0]:
        return points[0][1]
    for (m0, t0), (m1, t1) in pairwise(points):
        if m <= m1:
            share = math.log(m / m0) / math.log(m1 / m0)
            return math.exp(math.log(t0) + share * (math.log(t1) - math.log(t0)))
    if points[-1][0] < FULL_RATE_ROWS:
        return None
    return points[-1][1] * m / points[-1][0]


class Probes:
    """The probed times of a model's linears, summed over one forward pass."""

    def __init__(self, kernels: Iterable[KernelTiming], inventory: Inventory, eight_bit_share: float) -> None:
        kernels = tuple(kernels)
        self.curves = curves(kernels)
        self.schemes = {(one.runtime, one.option, kernel_class(one.scheme)): one.scheme for one in kernels}
        self.sources: dict[tuple[str, str, str], KernelSource] = {}
        for one in kernels:
            key = (one.runtime, one.option, kernel_class(one.scheme))
            self.sources[key] = certain((one.source, self.sources.get(key, "measured")))
        self.rounding = {
            (one.runtime, one.option, kernel_class(one.scheme), one.n, one.k, one.m): one.rounding_share for one in kernels
        }
        self.crashes = {(one.runtime, one.option, kernel_class(one.scheme)) for one in kernels if crashed(one.refused or "")}
        """Kernels that ended their process at some size: their times at others are no model's."""
        self.inventory = inventory
        self.eight_bit_share = eight_bit_share

    def linears_s(self, scheme: Scheme, runtime: str, options: Sequence[str], m: int, head_m: int | None) -> float | None:
        """Seconds of all linears at `m` rows (the head at `head_m`, or left out); None where one was not timed."""
        if scheme.name.startswith("w4w8"):
            low, high = (self._sum(bits, "w8", runtime, options, m, head_m) for bits in ("w4", "w8"))
            share = self.eight_bit_share
            return None if low is None or high is None else (1 - share) * low + share * high
        kind = kernel_class(scheme)
        head = scheme.compute if scheme.lm_head is None else f"w{scheme.lm_head.bits:g}"
        return self._sum(kind, head, runtime, options, m, head_m)

    def rounding_share(self, scheme: Scheme, place: tuple[str, str], m: int) -> float:
        """Of the time of all linears but the head at `m` rows, that of operators between them which only round."""
        kind, total, rounding = kernel_class(scheme), 0.0, 0.0
        for shape in (shape for shape in self.inventory.linears if not shape.lm_head):
            curve = (*place, kind, shape.n, shape.k)
            seconds = shape.count * (at(self.curves[curve], m) or 0.0) if curve in self.curves else 0.0
            total += seconds
            rounding += seconds * (self.rounding.get((*curve, m)) or 0.0)
        return rounding / total if total else 0.0

    def places(self) -> tuple[tuple[str, str], ...]:
        """(runtime, option) of which some kernel was timed."""
        return tuple(dict.fromkeys((runtime, option) for runtime, option, *_ in self.curves))

    def source(self, scheme: Scheme, runtime: str, options: Sequence[str]) -> KernelSource:
        """Of the times of the scheme's linears; of a mixed curve the least certain."""
        return self.sources.get((*kernel_family(runtime, options), kernel_class(scheme)), "measured")

    def _sum(self, kind: str, head: str, runtime: str, options: Sequence[str], m: int, head_m: int | None) -> float | None:
        place = kernel_family(runtime, options)
        total = 0.0
        for shape in self.inventory.linears:
            rows = head_m if shape.lm_head else m
            if rows is None:
                continue
            points = None
            for known in (head, kind, "w8") if shape.lm_head else (kind,):
                points = points or self.curves.get((*place, known, shape.n, shape.k))
            seconds = at(points, rows) if points else None
            if seconds is None:
                return None
            total += shape.count * seconds
        return total


WIDTHS = {"w4": 4, "w8": 8}
"""Classes of ONNX Runtime's kernels that a mixture of widths is made of, and their bits."""


def width_seconds(kernels: Iterable[KernelTiming], workload: Workload) -> dict[tuple[int, int, int], float]:
    """Seconds that a linear takes of a request, by (N, K, bits): of its prefill and its decode steps at the declared concurrency.
    Nothing where the objective is concurrency: there bytes count, not seconds, unless the spec bounds these."""
    if workload.objective == "concurrency" and workload.budget.linears_ms is None:
        return {}
    traffic, found = workload.traffic, dict[tuple[int, int, int], float]()
    for (runtime, option, kind, n, k), points in curves(kernels).items():
        if (runtime, option) == kernel_family("onnxruntime", ()) and kind in WIDTHS:
            prefill, step = (at(points, m) for m in (traffic.prompt_length * traffic.concurrency, traffic.concurrency))
            if prefill is not None and step is not None:
                found[n, k, WIDTHS[kind]] = request_s(traffic, prefill, step)
    return found


def predict(
    candidate: Candidate, workload: Workload, probes: Probes, ghosts: Sequence[Ghost], schemes: Mapping[str, Scheme]
) -> Predicted | None:
    """None where the candidate's family has no ghost that ran: then nothing is claimed."""
    if twin := through_twin(candidate, workload, probes, ghosts, schemes):
        return twin
    if mixture := from_halves(candidate, workload, probes, ghosts):
        return mixture
    base = nearest_ghost(candidate, ghosts, schemes)
    if base is None or base.ttft_s is None or base.tpot_s is None or base.peak_bytes is None:
        return None
    if exact(candidate, base):
        return predicted(workload, base.ttft_s.median, base.tpot_s.median, base.peak_bytes, "ghost")
    traffic = workload.traffic
    rows = traffic.prompt_length * traffic.concurrency
    ttft = shifted(base.ttft_s.median, candidate, schemes[base.scheme], base, probes, rows, traffic.concurrency)
    tpot = shifted(base.tpot_s.median, candidate, schemes[base.scheme], base, probes, traffic.concurrency, traffic.concurrency)
    if ttft is None or tpot is None:
        return None
    peak = base.peak_bytes + weights_and_cache(probes.inventory, candidate.scheme, candidate.runtime, workload)
    peak -= weights_and_cache(probes.inventory, schemes[base.scheme], base.runtime, workload)
    source = exchanged(candidate, schemes[base.scheme], base, probes)
    basis = f"ghost of {base.scheme} in this runtime, linears exchanged by {EXCHANGED[source]}"
    rough = schemes[base.scheme].quantizes_cache != candidate.scheme.quantizes_cache
    return predicted(workload, ttft, tpot, max(0, peak), basis, source, rough)


EXCHANGED: dict[KernelSource, str] = {
    "measured": "probes",
    "interpolated": "published kernel tables (interpolated), calibrated on the baseline",
    "roofline": "the roofline, calibrated on the baseline",
}


def exchanged(candidate: Candidate, base_scheme: Scheme, base: Ghost, probes: Probes) -> KernelSource:
    """Where the times come from by which a ghost's linears were exchanged for the candidate's; measured where they are the
    same."""
    if same_linears(base_scheme, candidate.scheme):
        return "measured"
    mine = probes.source(candidate.scheme, candidate.runtime, candidate.options)
    return certain((mine, probes.source(base_scheme, base.runtime, base.options)))


def from_halves(candidate: Candidate, workload: Workload, probes: Probes, ghosts: Sequence[Ghost]) -> Predicted | None:
    """Of 4 and 8 bit mixed: between the ghosts of its halves, by their shares of the weights. None where one is missing."""
    if not candidate.scheme.name.startswith("w4w8"):
        return None
    halves = []
    for bits in ("w4", "w8"):
        half = candidate.model_copy(
            update={"scheme": candidate.scheme.model_copy(update={"name": bits + candidate.scheme.name[4:]})}
        )
        found = next((g for g in ghosts if exact(half, g) and g.refused is None), None)
        if found is None or found.ttft_s is None or found.tpot_s is None or found.peak_bytes is None:
            return None
        halves.append((found.ttft_s.median, found.tpot_s.median, found.peak_bytes))
    share = probes.eight_bit_share
    ttft, tpot, peak = ((1 - share) * low + share * high for low, high in zip(*halves, strict=True))
    return predicted(workload, ttft, tpot, int(peak), "between the ghosts of its 4-bit and its 8-bit half")


TWINS = {"onnxruntime-genai": "onnxruntime"}
"""Runtimes whose kernels are another one's."""


def through_twin(
    candidate: Candidate, workload: Workload, probes: Probes, ghosts: Sequence[Ghost], schemes: Mapping[str, Scheme]
) -> Predicted | None:
    """What the runtime with the same kernels is predicted, times what this one's loop adds: the ratio of their two ghosts
    of one scheme. None where there is no such pair, or the candidate has a ghost of its own."""
    twin = candidate.model_copy(update={"runtime": TWINS.get(candidate.runtime, candidate.runtime)})
    here, there = nearest_ghost(candidate, ghosts, schemes), nearest_ghost(twin, ghosts, schemes)
    if twin.runtime == candidate.runtime or here is None or there is None or exact(candidate, here):
        return None
    pair = next((g for g in ghosts if g.scheme == here.scheme and g.runtime == twin.runtime and g.refused is None), None)
    theirs = predict(twin, workload, probes, ghosts, schemes)
    if pair is None or theirs is None or theirs.ttft_s is None or theirs.tpot_s is None or theirs.peak_bytes is None:
        return None
    if not (pair.ttft_s and pair.tpot_s and pair.peak_bytes and here.ttft_s and here.tpot_s and here.peak_bytes):
        return None
    return predicted(
        workload,
        theirs.ttft_s * here.ttft_s.median / pair.ttft_s.median,
        theirs.tpot_s * here.tpot_s.median / pair.tpot_s.median,
        theirs.peak_bytes + here.peak_bytes - pair.peak_bytes,
        f"{theirs.basis}, of {twin.runtime}, times the ratio of their ghosts of {here.scheme}",
        theirs.kernels or "measured",
        theirs.rough,
    )


def exact(candidate: Candidate, ghost: Ghost) -> bool:
    return (candidate.scheme.name, candidate.runtime, candidate.options) == (ghost.scheme, ghost.runtime, ghost.options)


def nearest_ghost(candidate: Candidate, ghosts: Sequence[Ghost], schemes: Mapping[str, Scheme]) -> Ghost | None:
    """The ghost of the same family nearest to the candidate: its own scheme, else its second product, its cache, its very
    linears, whether activations are rounded, its bits: what probes must bridge is kept small."""
    same = [g for g in ghosts if g.refused is None and (g.runtime, g.options) == (candidate.runtime, candidate.options)]
    wanted = candidate.scheme

    def distance(ghost: Ghost) -> tuple[bool, bool, bool, bool, bool, float]:
        scheme = schemes[ghost.scheme]
        other_activations = (scheme.activations is None) != (wanted.activations is None)
        apart = abs(math.log2(bits_of_weights(scheme) / bits_of_weights(wanted)))
        second = outlier_channels(scheme) != outlier_channels(wanted)
        other_cache, other_linears = scheme.quantizes_cache != wanted.quantizes_cache, not same_linears(scheme, wanted)
        return (not exact(candidate, ghost), second, other_cache, other_linears, other_activations, apart)

    return min(same, key=distance, default=None)


def same_linears(a: Scheme, b: Scheme) -> bool:
    return (a.compute, a.weights, a.activations, a.lm_head) == (b.compute, b.weights, b.activations, b.lm_head)


def bits_of_weights(scheme: Scheme) -> float:
    return scheme.weights.bits if scheme.weights else 32.0 if scheme.compute == "fp32" else 16.0


def shifted(
    total_s: float, candidate: Candidate, base_scheme: Scheme, base: Ghost, probes: Probes, m: int, head_m: int
) -> float | None:
    """The ghost's time with its linears exchanged for the candidate's; None where a probe at about `m` rows is missing,
    or only one of them has a second product.
    Where the probes give the ghost's linears more time than the whole ghost took, both are brought down alike: the ghost is
    what really ran. Kernels that only store weights in fewer bits compute in the same precision, so at many rows, where
    that is what binds, a missing probe leaves the ghost's time."""
    if outlier_channels(base_scheme) != outlier_channels(candidate.scheme):
        return None
    if same_linears(base_scheme, candidate.scheme):
        return total_s
    theirs = probes.linears_s(base_scheme, base.runtime, base.options, m, head_m)
    ours = probes.linears_s(candidate.scheme, candidate.runtime, candidate.options, m, head_m)
    if theirs is None or ours is None:
        alike = base_scheme.activations == candidate.scheme.activations and base_scheme.compute == candidate.scheme.compute
        return total_s if alike and m >= FULL_RATE_ROWS else None
    trust = min(1.0, total_s / theirs)
    return float(step_time.prompts_s(lambda rows, heads: trust * ours, m, head_m, 0.0, total_s - trust * theirs))


def weights_and_cache(inventory: Inventory, scheme: Scheme, runtime: str, workload: Workload) -> int:
    """Bytes of the weights and of the caches at the declared context and concurrency."""
    once = not (runtime.startswith("onnxruntime") and scheme.lm_head is None)  # its fp32 head is a transposed copy
    return bytes_of_weights(inventory, scheme, tied_once=once) + workload.traffic.concurrency * cache_row_bytes(
        inventory, scheme, runtime, workload
    )


def objective(candidate: Candidate) -> float:
    assert candidate.predicted and candidate.predicted.objective is not None
    return candidate.predicted.objective


def expected_kl(candidate: Candidate) -> float:
    """Simulated, nats; infinity where nothing is known."""
    known = candidate.predicted.kl if candidate.predicted else None
    return float("inf") if known is None else known


def predicted(
    workload: Workload,
    ttft_s: float,
    tpot_s: float,
    peak_bytes: int,
    basis: str,
    kernels: KernelSource = "measured",
    rough: bool = False,
) -> Predicted:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    value = objective_value(workload.objective, workload.traffic, ttft_s, tpot_s)
    return Predicted(
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        peak_bytes=peak_bytes,
        objective=value,
        basis=basis,
        kernels=kernels,
        rough=rough,
        written_at=now,
    )


def users_within(
    inventory: Inventory, scheme: Scheme, runtime: str, workload: Workload, peak_bytes: int, limit_bytes: int
) -> int:
    """Requests that fit into `limit_bytes`: the peak at the declared concurrency, less or more whole caches."""
    row = cache_row_bytes(inventory, scheme, runtime, workload)
    return max(0, workload.traffic.concurrency + math.floor((limit_bytes - peak_bytes) / row))


def cache_row_bytes(inventory: Inventory, scheme: Scheme, runtime: str, workload: Workload) -> int:
    """Cache bytes of one request at the declared context: in whole blocks where the runtime pages its cache; some runtimes'
    unquantized cache is 16 bit whatever computes."""
    tokens = held_tokens(runtime, workload.traffic.context_length)
    return max(1, bytes_of_cache(inventory, scheme, tokens, 1, plain_bytes=plain_cache_bytes(runtime)))
