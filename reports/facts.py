"""What can be read off a Results without measuring anything more: pure functions, seconds and bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median

from quantadvisor.documents import (
    Candidate,
    Diagnosis,
    Figure,
    LedgerRow,
    MapCandidate,
    NumberClass,
    Results,
    Scheme,
    Traffic,
)

from . import units

RUNTIMES = {
    "torch": "PyTorch",
    "onnxruntime": "ONNX Runtime",
    "onnxruntime-genai": "ONNX Runtime GenAI",
    "openvino": "OpenVINO",
    "llama.cpp": "llama.cpp",
    "openvino-genai": "OpenVINO GenAI",
    "vllm": "vLLM",
    "triton": "Triton",
}
METHODS = {
    "none": "no quantization",
    "rtn": "round to nearest",
    "mixed": "a mix by sensitivity",
    "dynamic_int8": "dynamic quantization",
    "static_int8": "static quantization",
    "kv_int8": "an INT8 cache",
    "gguf": "llama.cpp's own rounding",
    "gguf_imatrix": "llama.cpp's own rounding, inputs weighed",
    "smoothquant": "SmoothQuant",
    "smoothquant_gptq": "SmoothQuant with GPTQ's weights",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "obq": "OBQ",
    "kbit": "a k-bit number type",
    "fpq": "LLM-FP4's floats",
    "llm_int8": "LLM.int8()",
    "zeroquant": "ZeroQuant",
    "fp8": "FP8",
    "fpq_activations": "FPQ",
    "rotation": "a rotation",
    "kivi": "KIVI",
    "kv_fp8": "an FP8 cache",
    "kv_int4": "an INT4 cache",
    "turboquant": "TurboQuant",
    "given": "the checkpoint as given",
}
TENSORS = {
    "weights": "weights",
    "activations": "activations",
    "kv_cache": "KV cache",
    "other": "other",
    "overhead": "overhead",
    "none": "none",
}
OBJECTIVES = {
    "latency": "request latency",
    "throughput": "output tokens per second",
    "concurrency": "requests in flight",
}
PARTS = ("weights", "kv_cache", "activations", "other")
"""Tensors that shares are of, in the order of every picture and table."""
QUANTITIES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "peak_bytes": "Peak memory", "max_concurrency": "Users"}
TIMES = ("ttft_s", "tpot_s")


def candidate(results: Results, name: str | None) -> Candidate | None:
    """The candidate of that name, or None."""
    return next((item for item in results.candidates if item.name == name), None)


def baseline(results: Results) -> Candidate | None:
    return candidate(results, results.profile.baseline)


def choice(results: Results) -> Candidate | None:
    return candidate(results, results.verdict.choice)


def runtime_of(name: str) -> str:
    """`rtn-w8-g64@onnxruntime+option` → `onnxruntime`."""
    return name.rpartition("@")[2].partition("+")[0]


def unquantized(scheme: Scheme) -> bool:
    return not (scheme.weights or scheme.activations or scheme.keys or scheme.values)


def best_unquantized(results: Results) -> Candidate | None:
    """The best measured candidate that leaves every tensor in 16 or 32 bit: where the method's share starts."""
    if results.unquantized_diagnosis is not None:
        named = candidate(results, results.unquantized_diagnosis.of)
        if named is not None:
            return named
    able = [c for c in results.candidates if unquantized(c.scheme) and not c.refused]
    timed = [(seconds, c.name, c) for c in able if (seconds := request_s(results, c)) is not None]
    return min(timed)[2] if timed else None


def figure(item: Candidate | None, field: str) -> Figure | None:
    """A measured figure of a candidate, or None."""
    value = getattr(item.measured, field, None) if item is not None and item.measured is not None else None
    return value if isinstance(value, Figure) else None


def measured(item: Candidate | None, field: str) -> float | None:
    found = figure(item, field)
    return None if found is None else found.median


def predicted(item: Candidate | None, field: str) -> float | None:
    value = getattr(item.predicted, field, None) if item is not None and item.predicted is not None else None
    return None if value is None else float(value)


def _request(results: Results, ttft: float | None, tpot: float | None) -> float | None:
    if ttft is None or tpot is None:
        return None
    return ttft + (results.workload.traffic.output_length - 1) * tpot


def request_s(results: Results, item: Candidate | None) -> float | None:
    """TTFT + (output_tokens − 1) · TPOT from the measured medians, seconds."""
    return _request(results, measured(item, "ttft_s"), measured(item, "tpot_s"))


def request_bounds(results: Results, item: Candidate) -> tuple[float, float] | None:
    """The interval of the request latency from those of TTFT and TPOT, seconds; of the objective itself where it is it."""
    own = figure(item, "objective") if results.workload.objective == "latency" else None
    if own is not None:
        return own.low, own.high
    ttft, tpot = figure(item, "ttft_s"), figure(item, "tpot_s")
    if ttft is None or tpot is None:
        return None
    ends = [_request(results, *pair) for pair in ((ttft.low, tpot.low), (ttft.high, tpot.high))]
    return (ends[0], ends[1]) if ends[0] is not None and ends[1] is not None else None


def predicted_request_s(results: Results, item: Candidate | None) -> float | None:
    return _request(results, predicted(item, "ttft_s"), predicted(item, "tpot_s"))


def over(numerator: float | None, denominator: float | None) -> float | None:
    """A ratio of two positive numbers, or None."""
    if numerator is None or denominator is None or numerator <= 0 or denominator <= 0:
        return None
    value = numerator / denominator
    return value if math.isfinite(value) else None


def speed_effect(results: Results, item: Candidate) -> float | None:
    """How much faster a request is than on the baseline, measured."""
    return over(request_s(results, baseline(results)), request_s(results, item))


def capacity_effect(results: Results, item: Candidate) -> float | None:
    """How many more requests fit than on the baseline."""
    mine, before = on_map(results, item.name), on_map(results, results.profile.baseline)
    if mine is not None and before is not None:
        return over(mine.users, before.users)
    return over(users(item), users(baseline(results)))


def users(item: Candidate | None) -> float | None:
    """Requests in flight that fit: measured where it was, else predicted."""
    found = measured(item, "max_concurrency")
    return found if found is not None else predicted(item, "max_concurrency")


def users_kind(item: Candidate | None) -> NumberClass:
    found = figure(item, "max_concurrency")
    return found.kind if found is not None else "modelled"


def shortfall(results: Results, item: Candidate) -> float | None:
    """How much worse than the choice on the objective (1.2 = 20 % worse), from measured or from predicted numbers."""
    chosen = choice(results)
    for read in (measured, predicted):
        own, best = read(item, "objective"), read(chosen, "objective")
        ratio = over(own, best) if results.workload.objective == "latency" else over(best, own)
        if ratio is not None:
            return ratio
    return None


def worst_kind(figures: Iterable[Figure | None]) -> NumberClass:
    """The class of a number made of several: modelled as soon as one of them is, or is absent."""
    return least_certain("modelled" if item is None else item.kind for item in figures)


def least_certain(kinds: Iterable[NumberClass]) -> NumberClass:
    """The least certain of several classes; modelled where there is none."""
    found = set(kinds)
    if "modelled" in found or not found:
        return "modelled"
    return "cited" if "cited" in found else "measured"


def speed_kind(results: Results, item: Candidate) -> NumberClass:
    """Class of `speed_effect`: of the request times of the candidate and of the baseline."""
    return worst_kind(figure(one, field) for one in (item, baseline(results)) for field in TIMES)


def chain_kind(results: Results, fields: Sequence[str]) -> NumberClass:
    """Class of a speed-up along baseline → best unquantized → choice."""
    chain = [baseline(results), best_unquantized(results) or baseline(results), choice(results)]
    return worst_kind(figure(item, field) for item in chain for field in fields)


def memory_limit(results: Results) -> tuple[int, str]:
    """The bound on memory in bytes, and where it comes from."""
    if results.workload.memory_limit_gib is not None:
        return round(results.workload.memory_limit_gib * 2**30), "memory_limit_gib of the spec"
    if results.decision_map is not None:
        limit = results.decision_map.limit_bytes
        return limit, f"{units.percent(limit / results.device.memory_bytes)} of the device's memory"
    device = results.device
    if device.kind == "cuda" and device.gpus:
        return device.gpus[0].memory_bytes, "memory of the GPU"
    return device.memory_bytes, "memory of the device"


def on_map(results: Results, name: str | None) -> MapCandidate | None:
    """The candidate's line in the decision map, or None."""
    known = results.decision_map.candidates if results.decision_map is not None else ()
    return next((item for item in known if item.name == name), None)


def median_error(rows: Iterable[LedgerRow]) -> tuple[float, int] | None:
    """Median of |predicted / measured − 1| and the number of rows."""
    errors = [abs(row.ratio - 1) for row in rows]
    return (median(errors), len(errors)) if errors else None


def ledger_errors(results: Results) -> list[tuple[str, str, float, int]]:
    """(quantity, runtime or `all`, median absolute error, rows), quantities in their order, runtimes by name."""
    found: list[tuple[str, str, float, int]] = []
    for quantity in QUANTITIES:
        rows = [row for row in results.ledger if row.quantity == quantity]
        groups = {"all": rows} | {
            name: [row for row in rows if runtime_of(row.candidate) == name]
            for name in sorted({runtime_of(row.candidate) for row in rows})
        }
        for name, members in groups.items():
            error = median_error(members)
            if error is not None:
                found.append((quantity, name, *error))
    return found


def time_error(results: Results) -> tuple[float, int] | None:
    """Median absolute error of TTFT and TPOT predictions together."""
    return median_error(row for row in results.ledger if row.quantity in TIMES)


def profiled(results: Results) -> str:
    """The word for whose profile it is: the baseline's, or, where that is a server, of what was profiled in its place."""
    return "baseline" if results.diagnosis.of == results.profile.baseline else "profiled"


def diagnoses(results: Results) -> list[tuple[str, Diagnosis]]:
    """Baseline, and where they are others the best unquantized and the advice: before and after."""
    found = [(profiled(results), results.diagnosis)]
    for what, other in (("best unquantized", results.unquantized_diagnosis), ("advised", results.choice_diagnosis)):
        if other is not None and other.of not in {diagnosis.of for _, diagnosis in found}:
            found.append((what, other))
    return found


def runtime_words(name: str) -> str:
    return RUNTIMES.get(name, name)


def method_words(name: str) -> str:
    return METHODS.get(name, name)


def _bits(value: float) -> str:
    return f"{value:g}-bit"


def scheme_words(scheme: Scheme) -> str:
    """`8-bit weights in groups of 64, 8-bit KV cache`; `bf16` where nothing is quantized."""
    parts = []
    if scheme.weights is not None:
        group = f" in groups of {scheme.weights.group_size}" if scheme.weights.group_size else ""
        reduced = " (reduce_range: exact on CPUs without VNNI)" if scheme.name.startswith("w7a8") else ""
        parts.append(f"{_bits(scheme.weights.bits)} weights{group}{reduced}")
    if scheme.activations is not None:
        parts.append(f"{_bits(scheme.activations.bits)} activations")
    cache = scheme.keys or scheme.values
    if cache is not None:
        parts.append(f"{_bits(cache.bits)} KV cache")
    return ", ".join(parts) or scheme.compute


def traffic_words(traffic: Traffic) -> str:
    """`512 prompt + 128 output tokens, 1 request in flight`."""
    flight = "1 request" if traffic.concurrency == 1 else f"{traffic.concurrency:,} requests"
    return f"{traffic.prompt_length:,} prompt + {traffic.output_length:,} output tokens, {flight} in flight"
