"""SYNTHETIC TEST DATA, measured nowhere: a complete chat-like Results and a minimal one.

The shapes are SmolLM2-135M's; the times follow simple formulas, so that pictures look like real ones.
"""

from __future__ import annotations

from quantadvisor.documents import (
    Artifact,
    Boundary,
    Candidate,
    Capacity,
    Diagnosis,
    Environment,
    Interval,
    LedgerRow,
    Measured,
    MemoryLedger,
    OperatorCount,
    Operators,
    PhaseDiagnosis,
    Predicted,
    Quality,
    Question,
    Regret,
    Results,
    RunnerUp,
    Serve,
    Shares,
    SourceCheckpoint,
    SourceQuality,
    Speedup,
    Verdict,
    Workload,
)

from .sample_map import coarse, decision_map
from .sample_profile import BASELINE, MIB, SCHEMES, device, figure, profile

OUTPUT = 128
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
CHOICE, UNQUANTIZED = "rtn-w8-g64@onnxruntime", "none-fp32@openvino+bf16"
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
        choice_diagnosis=diagnosis(CHOICE, 0.21),
        candidates=items,
        verdict=verdict(),
        questions=questions(),
        decision_map=decision_map(),
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
                Serve(runtime="onnxruntime-genai", command="python -m onnxruntime_genai.chat artifact", verified=True),
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


def short() -> Results:
    """Everything filled, and few rows of a kind in the long tables: kernels of one linear, layers, points of the map."""
    whole = complete()
    kernels, stats, drawn = whole.profile.kernels, whole.profile.activations, whole.decision_map
    assert stats is not None and drawn is not None
    first = (kernels[0].n, kernels[0].k)
    profile = whole.profile.model_copy(
        update={
            "kernels": tuple(one for one in kernels if one.refused or (one.n, one.k) == first),
            "activations": stats.model_copy(update={"layers": stats.layers[-8:]}),
        }
    )
    return whole.model_copy(update={"profile": profile, "decision_map": coarse(drawn)})


def minimal() -> Results:
    """Only what the schema requires: nothing measured, no choice, every optional part absent."""
    bare = profile().model_copy(update={"activations": None, "kernels": (), "phases": (), "memory": MemoryLedger(items=())})
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
