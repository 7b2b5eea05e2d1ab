"""SYNTHETIC TEST DATA, measured nowhere: a complete chat-like Results and a minimal one.

The shapes are SmolLM2-135M's; the times follow simple formulas, so that pictures look like real ones.
"""

from __future__ import annotations

from quantadvisor.documents import (
    ActivationStats,
    Artifact,
    Boundary,
    Candidate,
    Capacity,
    Device,
    Diagnosis,
    Environment,
    Figure,
    Format,
    Interval,
    Inventory,
    KernelTiming,
    LayerActivations,
    LedgerItem,
    LedgerRow,
    LinearShape,
    Measured,
    MemoryLedger,
    OperatorCount,
    Operators,
    Peaks,
    PhaseDiagnosis,
    PhaseTime,
    Predicted,
    Profile,
    Quality,
    Question,
    Regret,
    Results,
    RunnerUp,
    Scheme,
    Serve,
    Shares,
    SourceCheckpoint,
    SourceQuality,
    Speedup,
    Verdict,
    Workload,
)

MIB = 2**20
OUTPUT = 128
LINEARS = (
    LinearShape(name="attention.qkv", n=960, k=576, count=30, layers=30),
    LinearShape(name="attention.o", n=576, k=576, count=30, layers=30),
    LinearShape(name="mlp.gate_up", n=3072, k=576, count=30, layers=30),
    LinearShape(name="mlp.down", n=576, k=1536, count=30, layers=30),
    LinearShape(name="lm_head", n=49152, k=576, count=1, lm_head=True),
)


def figure(value: float, width: float = 0.03, kind: str = "measured") -> Figure:
    """A figure with a symmetric interval and five samples."""
    samples = tuple(value * (1 + width * step) for step in (-0.9, -0.4, 0.0, 0.5, 1.1))
    return Figure.model_validate(
        {"median": value, "low": value * (1 - width), "high": value * (1 + width), "samples": samples, "kind": kind}
    )


def scheme(name: str, weights: int = 0, activations: int = 0, cache: int = 0, compute: str = "fp32") -> Scheme:
    def part(bits: int, granularity: str) -> Format | None:
        group = 64 if granularity == "group" else None
        made = {"number": "int", "bits": bits, "granularity": granularity, "group_size": group}
        return Format.model_validate(made) if bits else None

    return Scheme.model_validate(
        {
            "name": name,
            "compute": compute,
            "weights": part(weights, "channel" if activations else "group"),
            "activations": part(activations, "token"),
            "keys": part(cache, "channel"),
            "values": part(cache, "channel"),
        }
    )


SCHEMES = {
    "fp32": scheme("fp32"),
    "bf16": scheme("bf16", compute="bf16"),
    "w4-g64": scheme("w4-g64", 4),
    "w8-g64": scheme("w8-g64", 8),
    "w4w8-g64": scheme("w4w8-g64", 6),
    "w8a8": scheme("w8a8", 8, 8),
    "w8-g64-kv8": scheme("w8-g64-kv8", 8, cache=8),
}
MADE = (  # method, scheme, runtime, options, TTFT ms, TPOT ms, peak MiB, users, KL, top-1, perplexity, against it
    ("none", "bf16", "torch", (), 161, 35.7, 655, 61, 0.0010, 0.980, 16.91, ""),
    ("none", "fp32", "torch", (), 465, 31.8, 1010, 48, 0.0, 1.0, 16.91, ""),
    ("none", "fp32", "onnxruntime", (), 520, 19.9, 940, 52, 0.0, 1.0, 16.91, ""),
    ("none", "fp32", "openvino", ("bf16",), 143, 15.6, 690, 60, 0.0005, 0.988, 16.92, ""),
    ("rtn", "w8-g64", "onnxruntime", (), 577, 7.4, 402, 66, 0.0065, 0.968, 17.03, ""),
    ("mixed", "w4w8-g64", "onnxruntime", (), 590, 7.9, 371, 67, 0.042, 0.91, 17.9, ""),
    ("rtn", "w8-g64", "openvino", ("f32",), 386, 8.3, 421, 65, 0.0059, 0.957, 16.96, ""),
    ("rtn", "w4-g64", "onnxruntime", (), 602, 5.0, 318, 68, 0.4637, 0.650, 26.68, "mean KL 0.46 is above 0.05"),
    ("rtn", "w8a8", "onnxruntime", (), 250, 7.8, 410, 66, 0.4133, 0.698, 26.46, "mean KL 0.41 is above 0.05"),
    ("smoothquant", "w8a8", "onnxruntime", (), 256, 7.9, 412, 66, 0.061, 0.89, 18.1, "mean KL 0.061 is above 0.05"),
    ("rtn", "w8-g64-kv8", "onnxruntime", (), 720, 7.9, 371, 240, 0.0068, 0.967, 17.04, ""),
)
CHOICE, BASELINE, UNQUANTIZED = "rtn-w8-g64@onnxruntime", "none-bf16@torch", "none-fp32@openvino+bf16"
TIED = "rtn-w8-g64@openvino+f32"


def named(method: str, scheme_name: str, runtime: str, options: tuple[str, ...] = ()) -> str:
    return f"{method}-{scheme_name}@{'+'.join((runtime, *options))}"


def operators(quantized: int, linears: int = 211) -> Operators:
    ran = (
        OperatorCount(name="MatMulNBits", count=quantized, provider="CPU", time_s=0.0049, linear=True, quantized=True),
        OperatorCount(name="GroupQueryAttention", count=30, provider="CPU", precision="fp32", time_s=0.0016),
        OperatorCount(name="SkipSimplifiedLayerNormalization", count=60, provider="CPU", time_s=0.0004),
    )
    notes = ("the profiler names the operator, not the instruction set",)
    return Operators(phase="decode", operators=ran, linears=linears, quantized_linears=quantized, notes=notes)


def candidates() -> tuple[Candidate, ...]:
    made = []
    for position, row in enumerate(MADE):
        method, kind, runtime, options, ttft, tpot, peak, users, kl, top1, perplexity, against = row
        request, off = ttft / 1e3 + (OUTPUT - 1) * tpot / 1e3, 1 + 0.06 * (position % 4 - 1.5)
        made.append(
            Candidate.model_validate(
                {
                    "name": named(method, kind, runtime, options),
                    "method": method,
                    "scheme": SCHEMES[kind],
                    "runtime": runtime,
                    "options": options,
                    "target": "none" if method == "none" else "weights",
                    "excluded": against or None,
                    "predicted": Predicted(
                        ttft_s=ttft / 1e3 * off,
                        tpot_s=tpot / 1e3 * off,
                        peak_bytes=round(peak * MIB * 1.02),
                        max_concurrency=users,
                        objective=request * off,
                        basis="ghost at full depth",
                        written_at="2026-01-01T00:00:00Z",
                    ),
                    "measured": Measured(
                        ttft_s=figure(ttft / 1e3),
                        tpot_s=figure(tpot / 1e3),
                        peak_bytes=figure(peak * MIB, 0.004),
                        max_concurrency=figure(users, 0, "modelled"),
                        load_s=figure(0.8),
                        objective=figure(request, 0.06 if "w8-g64@" in named(method, kind, runtime) else 0.02),
                    ),
                    "quality": Quality(
                        perplexity=perplexity,
                        kl=Interval(mean=kl, low=kl * 0.9, high=kl * 1.1),
                        top1=Interval(mean=top1, low=top1 - 0.006, high=min(1.0, top1 + 0.006)),
                        tokens=4096,
                        text="synthetic text",
                    ),
                    "operators": operators(211 if method != "none" else 0),
                    "apply_s": 12.5 if method != "none" else None,
                    "artifact_bytes": round(peak * MIB * 0.4),
                    "notes": ("group size 64 divides K of every linear",) if method != "none" else (),
                }
            )
        )
    return (*made, *bystanders())


def bystanders() -> tuple[Candidate, ...]:
    """One that was only predicted and two that were refused."""
    awq = Candidate(name="awq-w4-g64@vllm", method="awq", scheme=SCHEMES["w4-g64"], runtime="vllm", target="weights")
    return (
        Candidate(
            name="rtn-w8-g64@onnxruntime-genai",
            method="rtn",
            scheme=SCHEMES["w8-g64"],
            runtime="onnxruntime-genai",
            target="weights",
            predicted=Predicted(ttft_s=0.6, tpot_s=0.0079, objective=1.6, basis="ghost at full depth"),
        ),
        awq.model_copy(update={"refused": "vllm is not installed here: pip install vllm"}),
        Candidate(
            name="rtn-w8a8@torch",
            method="rtn",
            scheme=SCHEMES["w8a8"],
            runtime="torch",
            target="activations",
            refused="no kernel for INT8 activations at M = 1",
        ),
    )


def kernels() -> tuple[KernelTiming, ...]:
    """Times from a roofline of 20 GB/s and the peaks below, with an overhead per call."""
    probes = (
        ("torch_linear", "bf16", "torch", 0.9e12, 2.0, 1.0),
        ("torch_linear", "fp32", "torch", 0.26e12, 4.0, 1.0),
        ("ort_matmul", "fp32", "onnxruntime", 0.24e12, 4.0, 1.15),
        ("ort_matmulnbits", "w8-g64", "onnxruntime", 0.23e12, 1.1, 1.3),
        ("ort_matmulnbits", "w4-g64", "onnxruntime", 0.2e12, 0.6, 1.3),
        ("ort_dynamic_quantize_matmul", "w8a8", "onnxruntime", 0.8e12, 1.0, 1.6),
        ("openvino_fullyconnected", "w8-g64", "openvino", 0.25e12, 1.1, 1.2),
    )
    made = []
    for probe, kind, runtime, peak, width, slack in probes:
        for shape in LINEARS:
            for m in (1, 8, 64, 512):
                cost = slack * (max(2 * m * shape.n * shape.k / peak, shape.n * shape.k * width / 2e10) + 3e-6)
                share = min(1.0, (2 * m * shape.n * shape.k / cost) / 1.1e12)
                made.append(
                    KernelTiming(
                        probe=probe,
                        scheme=SCHEMES[kind],
                        runtime=runtime,
                        m=m,
                        n=shape.n,
                        k=shape.k,
                        time_s=figure(cost),
                        operator=probe.partition("_")[2],
                        roofline_share=share,
                    )
                )
    why = "the wheel has no INT4 matmul for this CPU"
    refused = KernelTiming(
        probe="torch_int4", scheme=SCHEMES["w4-g64"], runtime="torch", m=1, n=960, k=576, refused=why
    )
    return (*made, refused)


def activations() -> ActivationStats:
    kinds = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    layers = []
    for layer in range(30):
        for place, kind in enumerate(kinds):
            absmax = 2.5 + layer * 0.12 + place * 1.7 + (280.0 if (layer, place) == (28, 3) else 0.0)
            layers.append(
                LayerActivations(
                    name=f"model.layers.{layer}.{kind}",
                    absmax=absmax,
                    absmax_channel_p50=absmax / 7,
                    outlier_channels=max(0, round(absmax - 6)),
                    outlier_tokens_share=min(1.0, max(0.0, absmax - 6) / 40),
                    error_per_tensor=0.0004 * absmax,
                    error_per_token=0.0001 * absmax,
                    error_per_channel=0.00003 * absmax,
                )
            )
    return ActivationStats(tokens=4096, layers=tuple(layers), outlier_layers_share=0.55)


def device() -> Device:
    rates = {"fp32": figure(0.27e12), "bf16": figure(1.1e12), "int8": figure(1.9e12)}
    return Device(
        name="Synthetic CPU with AMX",
        isa=("avx2", "avx512f", "avx512_vnni", "amx_bf16", "amx_int8"),
        cores=2,
        threads=2,
        memory_bytes=8 * 2**30,
        last_level_cache_bytes=32 * MIB,
        fingerprint="synthetic-0000",
        peaks=Peaks(read_bytes_per_s=figure(2.0e10), flops_per_s=rates),
    )


def inventory() -> Inventory:
    return Inventory(
        architecture="LlamaForCausalLM",
        layers=30,
        hidden=576,
        vocabulary=49152,
        heads=9,
        kv_heads=3,
        head_dim=64,
        max_context_tokens=8192,
        tied_embeddings=True,
        linears=LINEARS,
        embedding_parameters=28_311_552,
        linear_parameters=106_168_320,
        other_parameters=35_136,
        kv_values_per_token=11_520,
    )


def profile() -> Profile:
    items = (
        LedgerItem.model_validate({"tensor": "weights", "bytes": 269 * MIB, "kind": "modelled", "source": "config"}),
        LedgerItem.model_validate(
            {"tensor": "kv_cache", "bytes": 14 * MIB, "kind": "modelled", "source": "640 tokens × 1 × 23,040 bytes"}
        ),
        LedgerItem.model_validate(
            {"tensor": "activations", "bytes": 118 * MIB, "kind": "modelled", "source": "prefill of 512 tokens"}
        ),
        LedgerItem.model_validate(
            {"tensor": "overhead", "bytes": 240 * MIB, "kind": "measured", "source": "session without a model"}
        ),
    )
    prefill = PhaseTime(
        phase="prefill", batch=1, tokens=512, context_tokens=512, wall_s=figure(0.161), linears_s=0.096,
        attention_s=0.031, cache_s=0.004, other_s=0.022, residue_s=0.008,
    )  # fmt: skip
    decode = PhaseTime(
        phase="decode", batch=1, tokens=1, context_tokens=576, wall_s=figure(0.0357), linears_s=0.0243,
        attention_s=0.0041, cache_s=0.0009, other_s=0.0052, residue_s=0.0012,
    )  # fmt: skip
    return Profile(
        device=device(),
        inventory=inventory(),
        source=SourceCheckpoint(
            model="builtin:smollm2-135m",
            path="synthetic/model",
            sha256="0" * 64,
            already_quantized="Q4_1",
            reparametrised="input-channel scales, log-uniform in [0.5, 2], seed 0",
        ),
        baseline=BASELINE,
        memory=MemoryLedger(items=items, measured_peak_bytes=655 * MIB),
        phases=(prefill, decode),
        activations=activations(),
        kernels=kernels(),
    )


def shares(weights: float, activations_: float, cache: float) -> Shares:
    rest = 1 - weights - activations_ - cache
    return Shares(weights=weights, activations=activations_, kv_cache=cache, other=rest)


def diagnosis(of: str, scale: float = 1.0) -> Diagnosis:
    prefill, decode, memory = shares(0.08, 0.71, 0.02), shares(0.68, 0.02, 0.12), shares(0.42, 0.18, 0.02)
    return Diagnosis(
        of=of,
        capacity=PhaseDiagnosis(binds="weights", shares=memory, total=641 * MIB),
        prefill=PhaseDiagnosis(binds="activations", shares=prefill, total=0.161 * scale, inefficiency=0.18),
        decode=PhaseDiagnosis(binds="weights", shares=decode, total=0.0357 * scale, inefficiency=0.41),
        binds="weights",
        shares=shares(0.66, 0.05, 0.11),
        ceilings={"weights": 2.94, "activations": 1.05, "kv_cache": 1.12},
        method_ceilings={"w4-g64": 2.31, "w8-g64": 1.93, "w8a8": 2.01},
    )


def workload(**changed: object) -> Workload:
    return Workload.model_validate(
        {
            "schema": "quantadvisor/workload/1",
            "model": "builtin:smollm2-135m",
            "traffic": {"prompt_tokens": 512, "output_tokens": OUTPUT, "concurrency": 1},
            "memory_limit_gib": 1.0,
        }
        | changed
    )


def verdict() -> Verdict:
    return Verdict(
        choice=CHOICE,
        change=True,
        target="weights",
        reason="Weights bind decode, and 8-bit weights are the smallest that stay inside the quality budget.",
        tied_with=(TIED,),
        runner_up=RunnerUp(name=TIED, why_not="tied within 6 %, but it keeps a second runtime"),
        boundaries=(
            Boundary(axis="prompt_tokens", at=3100, winner="none-fp32@openvino+bf16"),
            Boundary(axis="concurrency", at=9, winner="none-fp32@openvino+bf16"),
        ),
        capacity=Capacity(max_concurrency=66, over_baseline=1.08, over_best_unquantized_cache=1.1),
        speedup=Speedup(total=3.09, runtime=2.21, method=1.4),
        decode_speedup=Speedup(total=4.82, runtime=2.29, method=2.11),
        predicted_choice=TIED,
    )


def questions() -> tuple[Question, ...]:
    made = (
        ("target", True, "Weights hold 66 % of a request's time on the baseline, and weights were shrunk."),
        ("quality", True, "Mean KL 0.0065 [0.0059–0.0072] against a budget of 0.05 on 4,096 tokens."),
        ("operator", True, "MatMulNBits ran 211 times of 211 linears in decode, by the runtime's own profile."),
        ("bottleneck", False, "Linears fell from 24.3 ms to 4.9 ms a token; they still hold 66 % of it."),
    )
    return tuple(Question.model_validate({"id": i, "answer": a, "evidence": e}) for i, a, e in made)


def ledger(items: tuple[Candidate, ...]) -> tuple[LedgerRow, ...]:
    rows = []
    for item in items:
        for quantity in ("ttft_s", "tpot_s", "peak_bytes"):
            if item.predicted and item.measured:
                guess, real = getattr(item.predicted, quantity), getattr(item.measured, quantity).median
                rows.append(
                    LedgerRow.model_validate(
                        {
                            "candidate": item.name, "quantity": quantity, "predicted": guess, "measured": real,
                            "ratio": guess / real, "basis": "ghost at full depth",
                        }
                    )
                )  # fmt: skip
    return tuple(rows)


def complete(**changed: object) -> Results:
    """Everything filled; keyword arguments replace top-level fields."""
    items = candidates()
    made = Results(
        created_at="2026-01-01T00:00:00Z",
        workload=workload(),
        device=device(),
        profile=profile(),
        diagnosis=diagnosis(BASELINE),
        unquantized_diagnosis=diagnosis(UNQUANTIZED, 0.44),
        candidates=items,
        verdict=verdict(),
        questions=questions(),
        ledger=ledger(items),
        regret=Regret(
            best=TIED, advised=CHOICE, advised_objective=1.517, best_objective=1.44, ratio=0.053, low=-0.01, high=0.09,
            measuring_share=0.37, not_measured=("rtn-w8-g64@onnxruntime-genai",),
        ),
        artifact=Artifact(
            path="artifact",
            format="onnx",
            sha256={"model.onnx": "a" * 64, "model.onnx.data": "b" * 64},
            serve=(
                Serve(runtime="onnxruntime-genai", command="python -m onnxruntime_genai.chat -m artifact", verified=True),
                Serve(runtime="onnxruntime", command="advisor serve artifact", verified=False, reason="no server here"),
            ),
        ),
        environment=Environment(
            versions={"torch": "2.13.0+cpu", "onnxruntime": "1.31.1", "openvino": "2026.4.1"},
            threads=2,
            source_already_quantized="Q4_1",
            python="3.11.2",
        ),
        source_quality=SourceQuality(rtn_int4_kl_before=0.003, rtn_int4_kl_after=0.46, tokens=4096),
        timing_s={"profile": 34.0, "plan": 41.0, "apply": 55.0, "measure": 62.0},
    )  # fmt: skip
    return made.model_copy(update=changed)


def minimal() -> Results:
    """Only what the schema requires: nothing measured, no choice, every optional part absent."""
    bare = profile().model_copy(
        update={"activations": None, "kernels": (), "phases": (), "memory": MemoryLedger(items=())}
    )
    nothing = Shares(weights=0, activations=0, kv_cache=0, other=0)
    zero = PhaseDiagnosis(binds="other", shares=nothing, total=0)
    empty = Diagnosis(of=BASELINE, capacity=zero, prefill=zero, decode=zero, binds="other", shares=nothing, ceilings={})
    return Results(
        created_at="",
        workload=workload(memory_limit_gib=None),
        device=device().model_copy(update={"peaks": None, "isa": ()}),
        profile=bare.model_copy(update={"source": SourceCheckpoint(model="m", path="", sha256="")}),
        diagnosis=empty,
        candidates=(),
        verdict=Verdict(choice=None, change=False, target="none", reason="nothing fits"),
        questions=(),
        ledger=(),
        environment=Environment(versions={}, threads=1),
    )
