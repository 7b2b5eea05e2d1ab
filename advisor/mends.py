"""Words of an explanation: the evidence for each cause and the change that would mend it. Pure functions of documents."""

from __future__ import annotations

from typing import Literal

from quantadvisor.documents import Cause, CauseTime, Checkpoint, Observation, OperatorCount, Operators, PhaseTime, Target
from quantadvisor.kernels.llama_layouts import REBUILD
from quantadvisor.kernels.processes import crashed

Phase = Literal["prefill", "decode"]

TITLES: dict[Cause, str] = {
    "fallback_or_slow_kernel": "a fallback or slow kernel",
    "activation_quantization": "quantizing the activations",
    "layers_left_unquantized": "layers left unquantized",
    "attention": "attention",
    "launches_and_framework": "launches and framework",
    "wrong_phase": "the wrong phase",
    "wrong_tensor": "the wrong tensor",
}
UNTOLD = "this runtime's profiler tells no times of operators here, so the gap cannot be taken apart"
NOTHING_TOLD = "none can be named without those times"
SHOWN = 3
MUCH_ROUNDING = 0.15
"""Of a pass's operators: more than this between the products is named."""
FAST_BUFFERS = ("CPU_REPACK", "AMX", "CPU_KLEIDIAI")
"""llama.cpp's buffers of weights in a layout that its fast kernels read."""


def change_for(cause: Cause, phase: Phase, checkpoint: Checkpoint, quantized: Observation, binds: Target) -> str:
    """What to do about a cause, in one line; `binds`: the tensor that decode is bound by where the format shrinks another."""
    scheme = checkpoint.scheme
    if cause == "fallback_or_slow_kernel":
        return kernel_change(phase, checkpoint, quantized)
    if cause == "activation_quantization":
        return "keep the activations in float (w8-g64), or take a runtime that rounds them inside its kernel or by fixed scales"
    if cause == "layers_left_unquantized":
        left = checkpoint.linears - checkpoint.stored_quantized
        plural, verb = ("", "was") if left == 1 else ("s", "were")
        return f"quantize the {left} linear{plural} that {verb} left out too (lm_head in 8 bit costs little quality)"
    if cause == "attention":
        if scheme.quantizes_cache:
            return f"leave the cache unquantized on {checkpoint.place}, or take a runtime whose attention reads it faster"
        if checkpoint.runtime == "llama.cpp" and "fa" not in checkpoint.options:
            return "run it with llama.cpp+fa: flash attention"
        return "a runtime with a faster attention kernel (bf16, flash attention): no format of the linears touches it"
    if cause == "launches_and_framework":
        return "a runtime with fused operators or a compiled graph, or more requests per step: the format cannot shrink it"
    if cause == "wrong_phase":
        if scheme.weights is None:
            return "quantize what prefill computes with (w8a8), or compute in bf16: prefill does not read the cache"
        return "quantize the activations too (w8a8) or compute in bf16: prefill computes, fewer bits of weight do not help it"
    if binds == "weights":
        return "quantize the weights (w8-g64, w4-g64): the decode step reads them, the cache is small here"
    if binds == "kv_cache":
        return "quantize the KV cache (…-kv8): at this context and concurrency the decode step reads the cache, not the weights"
    return "quantize the activations too (w8a8): with this many requests in a step, decode computes instead of reading weights"


def kernel_change(phase: Phase, checkpoint: Checkpoint, quantized: Observation) -> str:
    """The option or the format that gets the fast kernel."""
    levels = set(checkpoint.accuracy_levels)
    ran = operators_of(quantized, phase)
    if checkpoint.scheme.weights is not None and checkpoint.stored_quantized and not ran.quantized_linears:
        return (
            f"no quantized kernel ran: {checkpoint.place} expands the weights again; convert to a format it has a kernel for "
            "(advisor runtimes)"
        )
    if checkpoint.unpacked:
        unwanted = " and ".join(checkpoint.unpacked)
        return f"export again without {unwanted}: with that MatMulNBits dequantizes all weights to fp32 at each step"
    if levels and levels != {4} and checkpoint.format == "onnx":
        return "export again with accuracy_level 4 (MatMulNBits then multiplies INT8 instead of dequantizing to fp32)"
    if checkpoint.runtime == "llama.cpp" and (change := layout_change(checkpoint, ran)):
        return change
    if checkpoint.runtime == "openvino" and "bf16" in checkpoint.options and phase == "decode":
        return "run it with openvino+f32: under bf16 the quantized decode falls off its fast kernel"
    if checkpoint.runtime == "openvino" and "f32" in checkpoint.options and phase == "prefill":
        return "run it with openvino+bf16: its prefill kernel is the fast one"
    return (
        "another format or runtime, with a kernel that is fast at these sizes: advisor kernels shows which, advisor run chooses"
    )


def layout_change(checkpoint: Checkpoint, ran: Operators) -> str | None:
    """How llama.cpp's weights get into the layout of a fast kernel; None where they lie there, or it has none here."""
    kind, layouts = checkpoint.scheme.name.partition("-kv")[0], checkpoint.layouts
    fast = [name for name, where in layouts.items() if where.startswith(FAST_BUFFERS)]
    if "plain" in checkpoint.options:
        if words := next((where for where in layouts.values() if crashed(where)), None):
            return f"{REBUILD}; then run it without the option plain, which this build needs: its AMX path crashes ({words})"
        if kind in fast or kind not in layouts:
            return "run it without the option plain: llama.cpp then repacks the weights for its fast kernels"
    if any(row.provider.startswith(FAST_BUFFERS) for row in ran.operators if row.quantized):
        return None
    other = " or ".join(name for name in fast if name != kind)
    return f"convert it to {other}: llama.cpp has no repacked kernel for {kind} on this CPU" if other else None


def evidence_for(
    cause: Cause, phase: Phase, checkpoint: Checkpoint, quantized: Observation, unquantized: Observation, binds: Target
) -> str:
    """What was seen, in one line."""
    ours, theirs = time_of(quantized, phase), time_of(unquantized, phase)
    rows = operators_of(quantized, phase)
    step = "a decode step" if phase == "decode" else "prefill"
    if cause == "fallback_or_slow_kernel":
        named = seen([row for row in rows.operators if row.linear or "quantize" in row.name.lower()])
        return (
            f"{rows.quantized_linears} of {rows.linears} linears ran quantized; linears took {ms(ours.linears_s)} of {step}, "
            f"unquantized {ms(theirs.linears_s)} ({named})"
        )
    if cause == "activation_quantization":
        before = {row.name: row.count for row in operators_of(unquantized, phase).operators}
        added = [row for row in rows.operators if not row.linear and row.count > before.get(row.name, 0)]
        words = [f"operators of {step} that only the quantized model runs: {seen(added)}", rounding_said(rows.rounding_share)]
        return "; ".join(filter(None, words))
    if cause == "layers_left_unquantized":
        plain = [row for row in rows.operators if row.linear and not row.quantized]
        left = checkpoint.linears - checkpoint.stored_quantized
        return f"{left} of {checkpoint.linears} linears stored unquantized: {seen(plain)} of {step}"
    if cause == "attention":
        now, was = (time.attention_s + time.cache_s for time in (ours, theirs))
        return f"attention took {ms(now)} of {step}, unquantized {ms(was)}"
    if cause == "launches_and_framework":
        rest = [max(0.0, time.wall_s.median - time.linears_s - time.attention_s - time.cache_s) for time in (ours, theirs)]
        return f"outside linears and attention {step} spends {ms(rest[0])} of {ms(ours.wall_s.median)}, unquantized {ms(rest[1])}"
    if cause == "wrong_phase":
        took = f"prefill's linears took {ms(theirs.linears_s)} unquantized"
        return f"{took}, bound by arithmetic that {what(checkpoint)} does not shrink"
    reads = ms(theirs.attention_s + theirs.cache_s)
    bound = {"weights": "weights", "activations": "activations", "kv_cache": "KV cache", "none": "nothing"}[binds]
    return (
        f"unquantized, a decode step took {ms(theirs.linears_s)} in linears and {reads} in attention over the cache: "
        f"{what(checkpoint)} does not shrink the {bound}"
    )


def rounding_said(share: float) -> str | None:
    """What operators that only round take of a pass's operators, where that is much."""
    return f"QuantizeLinear and DequantizeLinear take {share:.0%} of its time" if share > MUCH_ROUNDING else None


def verdict_for(largest: CauseTime | None, speedup: float, hoped_factor: float, untold: bool) -> str:
    """One sentence; `untold`: there is a gap, and no times to take it apart by."""
    speed = f"{speedup:.2f}x as fast as unquantized, hoped for {hoped_factor:.1f}x"
    if untold:
        return f"{speed}; {UNTOLD}"
    if largest is None:
        return f"{speed}: nothing is in its way"
    return f"{speed}; the largest reason is {TITLES[largest.cause]} ({largest.share:.0%} of the gap)"


def what(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.scheme.name} on {checkpoint.place}"


def time_of(observation: Observation, phase: Phase) -> PhaseTime:
    return observation.prefill if phase == "prefill" else observation.decode


def operators_of(observation: Observation, phase: Phase) -> Operators:
    return observation.prefill_operators if phase == "prefill" else observation.decode_operators


def seen(rows: list[OperatorCount]) -> str:
    """The most expensive operators: `MatMulNBits 211x 4.10 ms`."""
    ordered = sorted(rows, key=lambda row: -(row.time_s or 0.0))[:SHOWN]
    return ", ".join(f"{row.name} {row.count}x {ms(row.time_s or 0.0)}" for row in ordered) or "none was seen"


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
