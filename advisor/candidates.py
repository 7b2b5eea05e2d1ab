"""The candidates: method x scheme x runtime x options, as a literal catalogue, each refused with its reason or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from quantadvisor.documents import BadInput, Candidate, Device, RuntimeChoice, Scheme, Target, Unavailable, Workload
from quantadvisor.kernels.llama_layouts import crash
from quantadvisor.kernels.saturation import saturates
from quantadvisor.methods.refusals import COMPRESSED
from quantadvisor.methods.registry import method, trains
from quantadvisor.methods.schemes import scheme
from quantadvisor.methods.static_int8 import NPU
from quantadvisor.profiling.environments import check_runtime, interpreter_of, named_interpreter, refusal
from quantadvisor.profiling.gpus import capability
from quantadvisor.profiling.runtimes import vllm
from quantadvisor.profiling.runtimes.registry import RUNTIMES
from quantadvisor.profiling.runtimes.torch_compile import COMPILE
from quantadvisor.profiling.server import split_url

from .builds import missing_writer


class Entry(NamedTuple):
    method: str
    scheme: str
    target: Target
    runtimes: tuple[str, ...]


ONNX = ("onnxruntime", "onnxruntime-genai")
OPENVINO = ("openvino+f32", "openvino+bf16")

LLAMA = ("llama.cpp", "llama.cpp+fa")
LLAMA_WEIGHTS = (*LLAMA, "llama.cpp+plain", "llama.cpp+fa+plain")
"""Of quantized weights: `plain` keeps them out of the layouts of fast kernels, which crash in some builds."""
CACHE_OPTIONS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "openvino": (("kvf16",), {"-kv8": "kvu8"}),
    "llama.cpp": ((), {"-kv8": "kvq8", "-kv4": "kvq4"}),
    "vllm": ((), {"-kvf8-unit": "kvfp8", "-kv4-turbo": "kvturbo"}),
    "triton": ((), {"-kv8-head": "kvint8", "-kv4-head": "kvint4", "-kvf8-unit": "kvfp8", "-kv4-turbo": "kvturbo"}),
}
"""runtime -> options of a session with a plain cache, and by the end of a scheme's name that of a quantized one (vLLM's FP8: its
scales 1.0); runtimes whose artifact says it are not here."""
CACHES_WITHIN = {"onnxruntime": {"-kv8": "kv_int8", "-kv4": "kv_int4"}, "onnxruntime-genai": {"-kv8": "kv_int8"}}
"""runtime -> by the end of a scheme's name the method that puts such a cache into the artifact, on top of any weights."""

ON_REQUEST = (COMPILE,)
"""Options that make a candidate only where the spec names them: inductor may compile for minutes, longer than a run measures."""

SIMULATED = ("onnxruntime", "openvino+f32", "llama.cpp")
"""Where methods are listed that no runtime here has the kernel of: each refused with what the runtime lacks."""

TRITON_CACHES = (
    Entry("kv_int8", "bf16-kv8-head", "kv_cache", ("triton",)),
    Entry("kv_int4", "bf16-kv4-head", "kv_cache", ("triton",)),
    Entry("kv_fp8", "bf16-kvf8-unit", "kv_cache", ("triton",)),
    Entry("turboquant", "bf16-kv4-turbo", "kv_cache", ("triton",)),
)

CATALOGUE = (
    Entry("none", "bf16", "none", ("torch", "torch+compile", *LLAMA, *COMPRESSED)),
    Entry("none", "fp32", "none", ("torch", "torch+compile", *ONNX, *OPENVINO)),
    Entry("rtn", "w4-g64", "weights", (*ONNX, *OPENVINO)),
    Entry("rtn", "w8-g64", "weights", (*ONNX, *OPENVINO)),
    Entry("rtn", "w8-g32", "weights", (*ONNX, *OPENVINO)),
    Entry("rtn", "w3-g64", "weights", (*ONNX, *OPENVINO)),
    Entry("rtn", "w2-g64", "weights", (*ONNX, *OPENVINO)),
    Entry("gptq", "w4-g64", "weights", (*ONNX, *OPENVINO)),
    Entry("awq", "w4-g64", "weights", (*ONNX, *OPENVINO)),
    Entry("gptq", "w8-g64", "weights", (*ONNX, *OPENVINO)),
    Entry("gptq", "w4-g32", "weights", (*ONNX, *OPENVINO)),
    Entry("awq", "w4-g32", "weights", (*ONNX, *OPENVINO)),
    Entry("lkd", "w4-g64", "weights", (*ONNX, *OPENVINO)),
    Entry("gptq", "w4-g64-bf16", "weights", (*COMPRESSED, "torch")),
    Entry("awq", "w4-g64-bf16", "weights", (*COMPRESSED, "torch")),
    Entry("gptq", "w4-g32-bf16", "weights", (*COMPRESSED, "torch")),
    Entry("awq", "w4-g32-bf16", "weights", (*COMPRESSED, "torch")),
    Entry("obq", "w4-g64", "weights", ("onnxruntime", "openvino+f32")),
    Entry("kbit", "nf4-b64", "weights", ("onnxruntime", "openvino+f32")),
    Entry("kbit", "nf4-b64-bf16", "weights", ("torch",)),
    Entry("qlora", "nf4-b64-dq", "weights", ("onnxruntime",)),
    Entry("qlora_merged", "nf4-b64-dq", "weights", ("onnxruntime",)),
    Entry("gptq_lora", "w4-g64", "weights", ONNX),
    Entry("gptq_lora", "w4-g64-bf16", "weights", ("torch",)),
    Entry("fpq", "wfp4", "weights", ("onnxruntime", "openvino+f32")),
    Entry("mixed", "w4w8-g64", "weights", ONNX),
    Entry("dynamic_int8", "w8a8", "activations", ONNX),
    Entry("dynamic_int8", "w7a8", "activations", ONNX),
    Entry("dynamic_int8", "w8a8-tensor", "activations", ("onnxruntime",)),
    Entry("dynamic_int8", "w8a8-bf16", "activations", COMPRESSED),
    Entry("static_int8", "w8a8-static", "activations", ("onnxruntime", *OPENVINO)),
    Entry("static_int8", "w8a8-static-mse", "activations", ("onnxruntime", *OPENVINO)),
    Entry("static_int8", "w8a8-static-npu", "activations", ("onnxruntime",)),
    Entry("smoothquant", "w8a8", "activations", ONNX),
    Entry("smoothquant", "w7a8", "activations", ONNX),
    Entry("smoothquant", "w8a8-tensor", "activations", ("onnxruntime",)),
    Entry("smoothquant", "w8a8-static", "activations", ("onnxruntime", *OPENVINO)),
    Entry("smoothquant", "w8a8-static-npu", "activations", ("onnxruntime",)),
    Entry("smoothquant", "w8a8-bf16", "activations", COMPRESSED),
    Entry("smoothquant_gptq", "w8a8", "activations", ONNX),
    Entry("smoothquant_gptq", "w8a8-bf16", "activations", COMPRESSED),
    Entry("gguf", "q8_0", "weights", LLAMA_WEIGHTS),
    Entry("gguf", "q4_0", "weights", LLAMA_WEIGHTS),
    Entry("gguf", "q4_k", "weights", LLAMA_WEIGHTS),
    Entry("gguf_imatrix", "q4_0", "weights", LLAMA_WEIGHTS),
    Entry("gguf", "q5_k", "weights", LLAMA_WEIGHTS),
    Entry("gguf", "q6_k", "weights", LLAMA_WEIGHTS),
    Entry("gguf_imatrix", "q4_k", "weights", LLAMA_WEIGHTS),
    Entry("gguf_imatrix", "q5_k", "weights", LLAMA_WEIGHTS),
    Entry("gguf", "q3_k", "weights", LLAMA_WEIGHTS),
    Entry("gguf_imatrix", "q3_k", "weights", LLAMA_WEIGHTS),
    Entry("gguf", "q2_k", "weights", LLAMA_WEIGHTS),
    Entry("gguf_imatrix", "q2_k", "weights", LLAMA_WEIGHTS),
    Entry("kv_int8", "fp32-kv8", "kv_cache", ("onnxruntime", *OPENVINO)),
    Entry("kv_int8", "q8_0-kv8", "kv_cache", ("llama.cpp+fa", "llama.cpp+fa+plain")),
    Entry("kv_int8", "w8-g64-kv8", "kv_cache", ("onnxruntime", *OPENVINO)),
    Entry("kv_int4", "q8_0-kv4", "kv_cache", ("llama.cpp+fa", "llama.cpp+fa+plain")),
    Entry("kv_int4", "fp32-kv4", "kv_cache", ("onnxruntime",)),
    Entry("kv_int4", "w8-g64-kv4", "kv_cache", ("onnxruntime",)),
    Entry("llm_int8", "w8a8-outlier", "activations", ("onnxruntime",)),
    Entry("llm_int8", "w8a8-outlier-fp16", "activations", ("torch",)),
    Entry("rotation", "w8a8", "activations", ("onnxruntime",)),
    Entry("rotation", "w4a4", "activations", ("onnxruntime",)),
    Entry("llm_qat", "w8a8", "activations", ONNX),
    Entry("llm_qat", "w4a8-kv8-token", "activations", SIMULATED),
    Entry("zeroquant", "w4a8-g64", "activations", SIMULATED),
    Entry("fp8", "fp8", "activations", SIMULATED),
    Entry("fp8", "fp8-bf16", "activations", ("vllm", "triton")),
    Entry("fp8", "fp8-block-bf16", "activations", ("vllm",)),
    Entry("fpq_activations", "w4a4-fp", "activations", SIMULATED),
    Entry("fpq_activations", "w4a8-fp", "activations", SIMULATED),
    Entry("kivi", "fp32-kv4-kivi", "kv_cache", SIMULATED),
    Entry("kv_fp8", "bf16-kvf8-unit", "kv_cache", ("vllm",)),
    Entry("kv_fp8", "bf16-kvf8", "kv_cache", ("vllm",)),
    Entry("kv_fp8", "fp32-kvf8", "kv_cache", SIMULATED),
    Entry("turboquant", "fp32-kv2.5-turbo", "kv_cache", SIMULATED),
    Entry("turboquant", "fp32-kv4-turbo", "kv_cache", SIMULATED),
    *TRITON_CACHES,
)


TORCH_GPU = ("torch+cuda", "torch+cuda+compile")
LLAMA_GPU = ("llama.cpp+cuda", "llama.cpp+cuda+fa")
ONNX_CUDA = ("onnxruntime+cuda", "onnxruntime-genai+cuda")
ONNX_GPU = (*ONNX_CUDA, "onnxruntime+tensorrt")

GPU_CATALOGUE = (
    Entry("none", "bf16", "none", (*TORCH_GPU, "vllm+cuda", "triton", *LLAMA_GPU)),
    Entry("none", "fp16", "none", (*TORCH_GPU, "vllm+cuda", "triton", *ONNX_GPU)),
    Entry("none", "fp32", "none", (*TORCH_GPU, *ONNX_GPU)),
    Entry("rtn", "w4-g64", "weights", ONNX_CUDA),
    Entry("rtn", "w8-g64", "weights", ONNX_CUDA),
    Entry("gptq", "w4-g64", "weights", ONNX_CUDA),
    Entry("awq", "w4-g64", "weights", ONNX_CUDA),
    Entry("rtn", "w8-g32", "weights", ONNX_CUDA),
    Entry("gptq", "w8-g64", "weights", ONNX_CUDA),
    Entry("gptq", "w4-g32", "weights", ONNX_CUDA),
    Entry("awq", "w4-g32", "weights", ONNX_CUDA),
    Entry("dynamic_int8", "w8a8", "activations", ("onnxruntime+cuda",)),
    Entry("static_int8", "w8a8-static", "activations", ("onnxruntime+cuda", "onnxruntime+tensorrt")),
    Entry("static_int8", "w8a8-static-mse", "activations", ("onnxruntime+cuda", "onnxruntime+tensorrt")),
    Entry("smoothquant", "w8a8-static", "activations", ("onnxruntime+cuda", "onnxruntime+tensorrt")),
    Entry("kv_int8", "fp32-kv8", "kv_cache", ("onnxruntime+cuda",)),
    Entry("rtn", "w4-g64-bf16", "weights", ("vllm+cuda", "torch+cuda")),
    Entry("gptq", "w4-g64-bf16", "weights", ("vllm+cuda", "torch+cuda", "triton")),
    Entry("awq", "w4-g64-bf16", "weights", ("vllm+cuda", "torch+cuda", "triton")),
    Entry("gptq", "w4-g32-bf16", "weights", ("vllm+cuda", "torch+cuda")),
    Entry("awq", "w4-g32-bf16", "weights", ("vllm+cuda", "torch+cuda")),
    Entry("rtn", "w8-g64-bf16", "weights", ("vllm+cuda", "triton")),
    Entry("dynamic_int8", "w8a8-bf16", "activations", ("vllm+cuda", "triton")),
    Entry("smoothquant", "w8a8-bf16", "activations", ("vllm+cuda", "triton")),
    Entry("smoothquant_gptq", "w8a8-bf16", "activations", ("vllm+cuda", "triton")),
    Entry("fp8", "fp8-bf16", "activations", ("vllm+cuda", "triton")),
    Entry("fp8", "fp8-tensor-bf16", "activations", ("vllm+cuda",)),
    Entry("fp8", "fp8-static-bf16", "activations", ("vllm+cuda",)),
    Entry("fp8", "fp8-block-bf16", "activations", ("vllm+cuda",)),
    Entry("kbit", "nf4-b64-bf16", "weights", ("torch+cuda", "triton")),
    Entry("llm_int8", "w8a8-outlier-fp16", "activations", ("torch+cuda", "triton")),
    Entry("gguf", "q8_0", "weights", LLAMA_GPU),
    Entry("gguf", "q4_0", "weights", LLAMA_GPU),
    Entry("gguf", "q4_k", "weights", LLAMA_GPU),
    Entry("gguf_imatrix", "q4_0", "weights", LLAMA_GPU),
    Entry("gguf", "q5_k", "weights", LLAMA_GPU),
    Entry("gguf", "q6_k", "weights", LLAMA_GPU),
    Entry("gguf_imatrix", "q4_k", "weights", LLAMA_GPU),
    Entry("gguf_imatrix", "q5_k", "weights", LLAMA_GPU),
    Entry("gguf", "q3_k", "weights", LLAMA_GPU),
    Entry("gguf_imatrix", "q3_k", "weights", LLAMA_GPU),
    Entry("gguf", "q2_k", "weights", LLAMA_GPU),
    Entry("gguf_imatrix", "q2_k", "weights", LLAMA_GPU),
    Entry("kv_int8", "q8_0-kv8", "kv_cache", ("llama.cpp+cuda+fa",)),
    Entry("kv_fp8", "bf16-kvf8-unit", "kv_cache", ("vllm+cuda",)),
    Entry("kv_fp8", "bf16-kvf8", "kv_cache", ("vllm+cuda",)),
    Entry("turboquant", "bf16-kv4-turbo", "kv_cache", ("vllm+cuda",)),
    *TRITON_CACHES,
)
"""On a GPU: option `cuda` or `tensorrt` says where a runtime computes that could also do so on the CPU; triton cannot."""

FIRST_FP8, FIRST_BF16 = 89, 80
"""Compute capabilities from which on there are such products."""


GIVEN_SERVER = "given-server"
UNKNOWN = Scheme(name="unknown", compute="bf16")
"""Of what cannot be read: a server's artifact, a file that no runtime here reads."""


def candidate_name(method_name: str, scheme_name: str, runtime_name: str, options: Sequence[str] = ()) -> str:
    return f"{method_name}-{scheme_name}@" + "+".join((runtime_name, *options))


def enumerate_candidates(workload: Workload, model_folder: Path, device: Device) -> tuple[Candidate, ...]:
    """Every entry of the catalogue on every runtime asked for, with `refused` set where it cannot run here, and methods that
    train excluded where the workload leaves them no time."""
    asked = asked_runtimes(workload)
    found = []
    for entry in catalogue_of(device):
        for place in entry.runtimes:
            name, *options = place.split("+")
            if name in asked and requested(workload, candidate_name(entry.method, entry.scheme, name, options), name, options):
                made = candidate(entry, name, tuple(options), model_folder, device, asked[name])
                excluded = untrained(entry.method, workload) or needless(made, device.isa, asked[name])
                found.append(made.model_copy(update={"excluded": excluded}))
    return tuple(found)


def requested(workload: Workload, candidate: str, name: str, options: Sequence[str]) -> bool:
    """Does the spec name what of `options` has to be named: with the runtime, or as the baseline?"""
    named = {one for choice in choices(workload) if choice.name == name for one in choice.options}
    return candidate == workload.baseline or set(options) & set(ON_REQUEST) <= named


def catalogue_of(device: Device) -> tuple[Entry, ...]:
    return GPU_CATALOGUE if device.kind == "cuda" else CATALOGUE


def gpu_places(name: str) -> tuple[str, ...]:
    """The places (runtime+option) of a runtime on a GPU."""
    places = (place for entry in GPU_CATALOGUE for place in entry.runtimes)
    return tuple(dict.fromkeys(place for place in places if place.split("+")[0] == name))


def places_on(device: Device, places: Sequence[str]) -> tuple[str, ...]:
    """The places (runtime+option) as they are on the device: on a GPU those of runtimes that have one there, with `cuda` where
    they could also compute on the CPU."""
    if device.kind != "cuda":
        return tuple(places)
    there = {place for entry in GPU_CATALOGUE for place in entry.runtimes}
    moved = (
        place if place in there else "+".join((name, "cuda", *rest)) for place in places for name, *rest in [place.split("+")]
    )
    return tuple(place for place in moved if place in there)


def needless(made: Candidate, isa: tuple[str, ...], python: str) -> str | None:
    """Why the option `plain`, 7-bit weights or a graph for NPUs are no candidate: what they avoid does not happen here."""
    if made.scheme.name.startswith("w7a8") and not made.refused and not saturates():
        return "this CPU multiplies 8-bit weights exactly and as fast: 7 bits avoid the saturation of CPUs without VNNI or AMX"
    if made.scheme.name == NPU and not made.refused:
        return "for an NPU, which takes integers alone: w8a8-static does the same here in fewer steps"
    if made.refused or "plain" not in made.options:
        return None
    fast = tuple(option for option in made.options if option != "plain")
    if crash(made.scheme, made.runtime, fast, isa, python):
        return None
    return "llama.cpp's fast layouts of weights run here: plain only avoids builds that crash in them"


def untrained(method_name: str, workload: Workload) -> str | None:
    """Why a method that trains is no candidate; None for others, and where it has time to."""
    if workload.budget.train_s > 0 or not trains(method_name):
        return None
    return "it trains, and budget.train_s is 0: set the seconds that it may take"


def candidate(entry: Entry, name: str, options: tuple[str, ...], model_folder: Path, device: Device, python: str) -> Candidate:
    """`python`: the interpreter that the runtime lives in."""
    made = scheme(entry.scheme)
    refused = no_arithmetic(made, device) or no_kernel_of_vllm(made, name, device)
    refused = refused or refusal(name, python, None, session_options(name, options, made), device.isa)
    refused = refused or crash(made, name, options, device.isa, python)
    if refused is None:
        writes, plain = recipe(entry.method, made, name)
        refused = method(writes).refuse(model_folder, plain, name) or missing_writer(name)
    return Candidate(
        name=candidate_name(entry.method, entry.scheme, name, options),
        method=entry.method,
        scheme=made,
        runtime=name,
        options=options,
        target=entry.target,
        refused=refused,
    )


def no_arithmetic(made: Scheme, device: Device) -> str | None:
    """Why a GPU has no products of a scheme; None where it has or does not tell, and for a CPU, of which its runtimes know."""
    has = capability(device)
    if not has:
        return None
    known = device.gpus[0].compute_capability
    if made.activations is not None and made.activations.number == "float" and has < FIRST_FP8:
        return f"{device.name} (compute capability {known}) has no FP8 products: those begin with 8.9"
    if made.compute == "bf16" and has < FIRST_BF16:
        return f"{device.name} (compute capability {known}) has no bfloat16 products: those begin with 8.0"
    return None


def no_kernel_of_vllm(made: Scheme, name: str, device: Device) -> str | None:
    """Why vLLM's CPU build has no product of a scheme on this CPU, or no such cache: before there is a folder, which would say
    it."""
    if name != "vllm" or device.kind != "cpu":
        return None
    weights, float_cache = made.weights, made.keys is not None and made.keys.number == "float"
    if float_cache and (refused := vllm.fp8_cache_refusal(device.isa)):
        return refused
    if weights is None:
        return None
    if weights.number == "float":
        return vllm.fp8_product_refusal(weights.granularity, device.isa)
    if weights.number != "int" or made.activations is not None:
        return None
    if weights.bits != 4:
        return f"vLLM's CPU build multiplies weights alone in 4 bits only, not in {weights.bits:g}"
    return vllm.int4_refusal(device.isa)


def recipe(method_name: str, wanted: Scheme, runtime_name: str) -> tuple[str, Scheme]:
    """(method, scheme) of the weights under the cache, whose artifact comes first: the candidate's own method, or, where that one
    is about the cache, whoever rounds such weights without a search."""
    end = cache_end(runtime_name, wanted)
    if end is None:
        return method_name, wanted
    plain = scheme(wanted.name.removesuffix(end))
    if method(method_name).TARGET != "kv_cache":
        return method_name, plain
    if plain.weights is None:
        return "none", plain
    return ("gguf" if runtime_name == "llama.cpp" else "rtn"), plain


def cache_end(runtime_name: str, wanted: Scheme) -> str | None:
    """The end of the scheme's name that says its quantized cache, where the runtime can serve that one."""
    _, quantized = CACHE_OPTIONS.get(runtime_name, ((), {}))
    return next((end for end in (*quantized, *CACHES_WITHIN.get(runtime_name, ())) if wanted.name.endswith(end)), None)


def session_options(runtime_name: str, options: tuple[str, ...], made: Scheme) -> tuple[str, ...]:
    """What the session is opened with: a cache's precision is never left to the runtime's default where it has an option. Of a
    cache that it cannot serve, the method says why."""
    plain, quantized = CACHE_OPTIONS.get(runtime_name, ((), {}))
    end = cache_end(runtime_name, made)
    return (*options, *((quantized[end],) if end in quantized else plain))


def check_runtimes(workload: Workload, device: Device) -> None:
    """Before anything is measured: every runtime that is named is known, and one at least can run here."""
    asked = asked_runtimes(workload)
    reasons = {name: cannot_run(name, asked[name], device) for name in sorted(asked)}
    if reasons and all(reasons.values()):
        name, reason = next(iter(reasons.items()))
        here = f"on {device.name}" if device.kind == "cuda" else "here"
        raise Unavailable("runtimes", f"none of {', '.join(reasons)} can run {here}: {name}: {reason}")


def cannot_run(name: str, python: str, device: Device) -> str | None:
    """Why a runtime cannot compute on the device, whatever the artifact; None where it can."""
    if device.kind != "cuda":
        return refusal(name, python, None, (), device.isa)
    reasons = [refusal(name, python, None, tuple(place.split("+")[1:]), device.isa) for place in gpu_places(name)]
    if not reasons:
        return "nothing is offered for it on a GPU: device: cpu"
    return next((None for reason in reasons if reason is None), reasons[0])


def asked_runtimes(workload: Workload) -> dict[str, str]:
    """The runtimes to start here, each with its interpreter; BadInput for one that nobody knows, or a url that is none."""
    if workload.runtimes == "auto":
        return {name: interpreter_of(name) for name in RUNTIMES}
    found: dict[str, str] = {}
    for choice in choices(workload):
        name = choice.name
        check_runtime("runtimes", name)
        if unknown := [one for one in choice.options if name != "torch" or one not in ON_REQUEST]:
            known = f"torch's {', '.join(ON_REQUEST)} alone: the others are candidates anyway"
            raise BadInput(f"runtimes.{name}.options", f"{unknown[0]!r} is none to be asked for", known)
        if choice.url:
            split_url(choice.url)
            continue
        python = interpreter_of(name, choice.python)
        if found.setdefault(name, python) != python:
            raise BadInput(
                f"runtimes.{name}.python", f"is {found[name]} and {python}", "leave one: a run starts a runtime in one"
            )
    return found


def choices(workload: Workload) -> list[RuntimeChoice]:
    """The runtimes that the spec names, each as a mapping, its interpreter by its path; BadInput for one that is none."""
    named = () if workload.runtimes == "auto" else workload.runtimes
    return [located(one if isinstance(one, RuntimeChoice) else RuntimeChoice(name=one)) for one in named]


def located(choice: RuntimeChoice) -> RuntimeChoice:
    if choice.python is None:
        return choice
    return choice.model_copy(update={"python": named_interpreter(f"runtimes.{choice.name}.python", choice.python)})


def baseline_name(workload: Workload, device: Device, already_quantized: str | None, dtype: str) -> str:
    """What is profiled: the spec's, else transformers on torch in the checkpoint's float type. A server's time by part cannot
    be seen: where that is the baseline, this one is profiled for it.

    bf16 where the checkpoint is quantized or fp32 and the device computes bf16 in hardware; on a GPU 16 bits in any case.
    """
    if workload.baseline != "auto" and not workload.baseline.startswith(GIVEN_SERVER):
        return workload.baseline
    if device.kind == "cuda":
        return candidate_name("none", "fp16" if 0 < capability(device) < FIRST_BF16 else "bf16", "torch", ("cuda",))
    hardware = {"amx_bf16", "avx512_bf16"} & set(device.isa)
    half = hardware and (already_quantized is not None or dtype in ("float32", "bfloat16"))
    return candidate_name("none", "bf16" if half else "fp32", "torch")
