"""The candidates: method x scheme x runtime x options, as a literal catalogue, each refused with its reason or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from quantadvisor.documents import BadInput, Candidate, Device, RuntimeChoice, Scheme, Target, Unavailable, Workload
from quantadvisor.methods.refusals import COMPRESSED
from quantadvisor.methods.registry import method, trains
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.environments import interpreter_of, named_interpreter, refusal
from quantadvisor.profiling.runtimes.registry import RUNTIMES
from quantadvisor.profiling.server import split_url


class Entry(NamedTuple):
    method: str
    scheme: str
    target: Target
    runtimes: tuple[str, ...]


ONNX = ("onnxruntime", "onnxruntime-genai")
OPENVINO = ("openvino+f32", "openvino+bf16")

LLAMA = ("llama.cpp", "llama.cpp+fa")
CACHE_OPTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "openvino": (("kvf16",), ("kvu8",)),
    "llama.cpp": ((), ("kvq8",)),
    "vllm": ((), ("kvfp8",)),
}
"""runtime -> options of a session with a plain cache, and with a quantized one (vLLM's: FP8, its scales 1.0); runtimes whose
artifact says it are not here."""

SIMULATED = ("onnxruntime", "openvino+f32", "llama.cpp")
"""Where methods are listed that no runtime here has the kernel of: each refused with what the runtime lacks."""

TRITON_CACHES = (
    ("kv_int8", "kv8-head", "kvint8"),
    ("kv_int4", "kv4-head", "kvint4"),
    ("kv_fp8", "kvf8-unit", "kvfp8"),
    ("turboquant", "kv4-turbo", "kvturbo"),
)
"""Method, cache of the scheme, and the option of the triton runtime that stores it so."""
WRITES = {"bf16": "none", "w4-g64-bf16": "gptq", "w8a8-bf16": "dynamic_int8", "fp8-bf16": "fp8"}
"""Weights under a cache that is an option of vllm or triton -> the method that writes their artifact."""

CATALOGUE = (
    Entry("none", "bf16", "none", ("torch", *LLAMA, *COMPRESSED)),
    Entry("none", "fp32", "none", ("torch", *ONNX, *OPENVINO)),
    Entry("rtn", "w4-g64", "weights", (*ONNX, *OPENVINO)),
    Entry("rtn", "w8-g64", "weights", (*ONNX, *OPENVINO)),
    Entry("rtn", "w3-g64", "weights", (*ONNX, *OPENVINO)),
    Entry("gptq", "w4-g64", "weights", (*ONNX, *OPENVINO)),
    Entry("awq", "w4-g64", "weights", (*ONNX, *OPENVINO)),
    Entry("lkd", "w4-g64", "weights", (*ONNX, *OPENVINO)),
    Entry("gptq", "w4-g64-bf16", "weights", (*COMPRESSED, "torch")),
    Entry("awq", "w4-g64-bf16", "weights", (*COMPRESSED, "torch")),
    Entry("obq", "w4-g64", "weights", ("onnxruntime", "openvino+f32")),
    Entry("kbit", "nf4-b64", "weights", ("onnxruntime", "openvino+f32")),
    Entry("qlora", "nf4-b64-dq", "weights", ("onnxruntime",)),
    Entry("fpq", "wfp4", "weights", ("onnxruntime", "openvino+f32")),
    Entry("mixed", "w4w8-g64", "weights", ONNX),
    Entry("dynamic_int8", "w8a8", "activations", ONNX),
    Entry("dynamic_int8", "w8a8-tensor", "activations", ("onnxruntime",)),
    Entry("dynamic_int8", "w8a8-bf16", "activations", COMPRESSED),
    Entry("static_int8", "w8a8-static", "activations", OPENVINO),
    Entry("smoothquant", "w8a8", "activations", ONNX),
    Entry("smoothquant", "w8a8-tensor", "activations", ("onnxruntime",)),
    Entry("smoothquant", "w8a8-static", "activations", OPENVINO),
    Entry("smoothquant", "w8a8-bf16", "activations", COMPRESSED),
    Entry("gguf", "q8_0", "weights", LLAMA),
    Entry("gguf", "q4_0", "weights", LLAMA),
    Entry("gguf", "q4_k", "weights", LLAMA),
    Entry("gguf_imatrix", "q4_0", "weights", LLAMA),
    Entry("kv_int8", "fp32-kv8", "kv_cache", ("onnxruntime", *OPENVINO)),
    Entry("kv_int8", "q8_0-kv8", "kv_cache", ("llama.cpp+fa",)),
    Entry("kv_int8", "w8-g64-kv8", "kv_cache", ("onnxruntime", *OPENVINO)),
    Entry("kv_int4", "fp32-kv4", "kv_cache", ("onnxruntime",)),
    Entry("kv_int4", "w8-g64-kv4", "kv_cache", ("onnxruntime",)),
    Entry("llm_int8", "w8a8-outlier", "activations", ("onnxruntime",)),
    Entry("rotation", "w8a8", "activations", ("onnxruntime",)),
    Entry("rotation", "w4a4", "activations", ("onnxruntime",)),
    Entry("llm_qat", "w8a8", "activations", ONNX),
    Entry("llm_qat", "w4a8-kv8-token", "activations", SIMULATED),
    Entry("zeroquant", "w4a8-g64", "activations", SIMULATED),
    Entry("fp8", "fp8", "activations", SIMULATED),
    Entry("fp8", "fp8-bf16", "activations", ("triton",)),
    Entry("fpq_activations", "w4a4-fp", "activations", SIMULATED),
    Entry("fpq_activations", "w4a8-fp", "activations", SIMULATED),
    Entry("kivi", "fp32-kv4-kivi", "kv_cache", SIMULATED),
    Entry("kv_fp8", "bf16-kvf8-unit", "kv_cache", ("vllm",)),
    Entry("kv_fp8", "w8a8-bf16-kvf8-unit", "kv_cache", ("vllm",)),
    Entry("kv_fp8", "fp32-kvf8", "kv_cache", SIMULATED),
    Entry("turboquant", "fp32-kv2.5-turbo", "kv_cache", SIMULATED),
    Entry("turboquant", "fp32-kv4-turbo", "kv_cache", SIMULATED),
    *(
        Entry(method_name, f"{weights}-{cache}", "kv_cache", (f"triton+{option}",))
        for weights in WRITES
        for method_name, cache, option in TRITON_CACHES
    ),
)


def candidate_name(method_name: str, scheme_name: str, runtime_name: str, options: Sequence[str] = ()) -> str:
    return f"{method_name}-{scheme_name}@" + "+".join((runtime_name, *options))


def enumerate_candidates(workload: Workload, model_folder: Path, device: Device) -> tuple[Candidate, ...]:
    """Every entry of the catalogue on every runtime asked for, with `refused` set where it cannot run here, and methods that
    train excluded where the workload leaves them no time."""
    asked = asked_runtimes(workload)
    found = []
    for entry in CATALOGUE:
        for place in entry.runtimes:
            name, *options = place.split("+")
            if name in asked:
                made = candidate(entry, name, tuple(options), model_folder, device, asked[name])
                found.append(made.model_copy(update={"excluded": untrained(entry.method, workload)}))
    return tuple(found)


def untrained(method_name: str, workload: Workload) -> str | None:
    """Why a method that trains is no candidate; None for others, and where it has time to."""
    if workload.budget.train_s > 0 or not trains(method_name):
        return None
    return "it trains, and budget.train_s is 0: set the seconds that it may take"


def candidate(entry: Entry, name: str, options: tuple[str, ...], model_folder: Path, device: Device, python: str) -> Candidate:
    """`python`: the interpreter that the runtime lives in."""
    made = scheme(entry.scheme)
    refused = refusal(name, python, None, session_options(name, options, made.quantizes_cache), device.isa)
    if refused is None:
        method_name, made_of = recipe(entry.method, made, name)
        refused = method(method_name).refuse(model_folder, made_of, name)
    return Candidate(
        name=candidate_name(entry.method, entry.scheme, name, options),
        method=entry.method,
        scheme=made,
        runtime=name,
        options=options,
        target=entry.target,
        refused=refused,
    )


def recipe(method_name: str, wanted: Scheme, runtime_name: str) -> tuple[str, Scheme]:
    """(method, scheme) of the artifact to build: outside ONNX a quantized cache is an option of the runtime, not of the
    artifact."""
    if runtime_name in COMPRESSED and wanted.quantizes_cache:
        plain = scheme(wanted.name.partition("-kv")[0])
        return WRITES.get(plain.name, method_name), plain
    if runtime_name in CACHE_OPTIONS and wanted.name.endswith("-kv8"):
        plain = scheme(wanted.name.removesuffix("-kv8"))
        writes = "gguf" if runtime_name == "llama.cpp" else "rtn"
        return ("none" if plain.weights is None else writes), plain
    return method_name, wanted


def session_options(runtime_name: str, options: tuple[str, ...], cache_quantized: bool) -> tuple[str, ...]:
    """What the session is opened with: a cache's precision is never left to the runtime's default where it has an option."""
    plain, quantized = CACHE_OPTIONS.get(runtime_name, ((), ()))
    return (*options, *(quantized if cache_quantized else plain))


def check_runtimes(workload: Workload, device: Device) -> None:
    """Before anything is measured: every runtime that is named is known, and one at least can run here."""
    asked = asked_runtimes(workload)
    reasons = {name: refusal(name, asked[name], None, (), device.isa) for name in sorted(asked)}
    if reasons and all(reasons.values()):
        name, reason = next(iter(reasons.items()))
        raise Unavailable("runtimes", f"none of {', '.join(reasons)} can run here: {name}: {reason}")


def asked_runtimes(workload: Workload) -> dict[str, str]:
    """The runtimes to start here, each with its interpreter; BadInput for one that nobody knows, or a url that is none."""
    if workload.runtimes == "auto":
        return {name: interpreter_of(name) for name in RUNTIMES}
    found = {}
    for choice in workload.runtimes:
        name = choice.name if isinstance(choice, RuntimeChoice) else choice
        if name not in RUNTIMES:
            raise BadInput("runtimes", f"unknown runtime {name!r}", f"known here: {', '.join(RUNTIMES)}")
        python = choice.python if isinstance(choice, RuntimeChoice) else None
        if python is not None:
            named_interpreter(f"runtimes.{name}.python", python)
        if isinstance(choice, RuntimeChoice) and choice.url:
            split_url(choice.url)
        else:
            found[name] = interpreter_of(name, python)
    return found


def baseline_name(workload: Workload, device: Device, already_quantized: str | None, dtype: str) -> str:
    """What the user runs today: the spec's, else transformers on torch in the checkpoint's float type.

    bf16 where the checkpoint is quantized or fp32 and the device computes bf16 in hardware.
    """
    if workload.baseline != "auto":
        return workload.baseline
    hardware = {"amx_bf16", "avx512_bf16"} & set(device.isa) or device.kind == "cuda"
    half = hardware and (already_quantized is not None or dtype in ("float32", "bfloat16"))
    return candidate_name("none", "bf16" if half else "fp32", "torch")
