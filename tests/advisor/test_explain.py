"""Planted cases: documents with one known cause each, which must be named; and the causes sum to the gap."""

import io
from typing import NamedTuple

import pytest
from rich.console import Console

from quantadvisor.advisor.explain import CAUSES, explain
from quantadvisor.advisor.mends import change_for, evidence_for
from quantadvisor.advisor.side_by_side import modelled
from quantadvisor.advisor.terminal import explanation_panel
from quantadvisor.documents import (
    BadInput,
    Checkpoint,
    Explanation,
    Inventory,
    LinearShape,
    Observation,
    OperatorCount,
    Operators,
    Peaks,
    PhaseTime,
    Workload,
)
from quantadvisor.methods.schemes import scheme

from .documents import figure, workload

MS = 1e-3
LINEARS = 211
INVENTORY = Inventory(
    architecture="LlamaForCausalLM", layers=30, hidden=576, vocabulary=49152, heads=9, kv_heads=3, head_dim=64,
    max_context_tokens=8192, tied_embeddings=True,
    linears=(
        LinearShape(name="layers", n=576, k=876, count=210), LinearShape(name="lm_head", n=49152, k=576, count=1, lm_head=True),
    ),
    embedding_parameters=28_311_552, linear_parameters=105_960_960, other_parameters=35_136, kv_values_per_token=11_520,
)  # fmt: skip
PEAKS = Peaks(read_bytes_per_s=figure(3e10), flops_per_s={"fp32": figure(2.5e11), "bf16": figure(5e11), "int8": figure(1e12)})


class Side(NamedTuple):
    """Milliseconds of (linears, attention, rest) in prefill and in a decode step, and the operators that ran."""

    prefill: tuple[float, float, float]
    decode: tuple[float, float, float]
    quantized: int = 0
    rows: tuple[tuple[str, int, float, bool, bool], ...] = ()
    """(name, count, share of the linears' time, linear, quantized), the same in both phases."""


def observation(side: Side, name: str) -> Observation:
    def time(phase: str, parts: tuple[float, float, float]) -> PhaseTime:
        return PhaseTime.model_validate(
            {
                "phase": phase, "batch": 1, "tokens": 1, "context_tokens": 512, "wall_s": figure(sum(parts) * MS),
                "linears_s": parts[0] * MS, "attention_s": parts[1] * MS, "other_s": parts[2] * MS, "residue_s": 0.0,
            }
        )  # fmt: skip

    def operators(phase: str, linears_ms: float) -> Operators:
        rows = side.rows or (("MatMulNBits" if side.quantized else "MatMul", LINEARS, 1.0, True, side.quantized > 0),)
        made = tuple(
            OperatorCount(name=kind, count=count, time_s=share * linears_ms * MS, linear=linear, quantized=low)
            for kind, count, share, linear, low in rows
        )
        return Operators.model_validate(
            {"phase": phase, "operators": made, "linears": LINEARS, "quantized_linears": side.quantized}
        )

    return Observation(
        name=name,
        prefill=time("prefill", side.prefill),
        decode=time("decode", side.decode),
        prefill_operators=operators("prefill", side.prefill[0]),
        decode_operators=operators("decode", side.decode[0]),
    )


class Case(NamedTuple):
    cause: str | None
    scheme: str
    ours: Side
    theirs: Side
    said: str
    """What the change must speak of."""
    workload: Workload
    stored: int = LINEARS
    runtime: str = "onnxruntime"
    options: tuple[str, ...] = ()
    levels: tuple[int, ...] = (4,)


def traffic(prompt: int, output: int, users: int = 1) -> Workload:
    return workload(traffic={"prompt_tokens": prompt, "output_tokens": output, "concurrency": users})


CHAT, SUMMARIZE, LONG, CROWD = traffic(512, 128), traffic(2048, 16), traffic(2048, 64, 16), traffic(64, 256, 256)
FP32 = Side((320, 60, 25), (17, 1.5, 1.0))
HALF_LEFT = (("MatMulNBits", 121, 0.1, True, True), ("MatMul", 90, 0.9, True, False))
HEAD_LEFT = (("MatMulNBits", 210, 0.4, True, True), ("MatMul", 1, 0.6, True, False))
EXPANDED = (("dequantize_4bit", 210, 0.1, True, True), ("mm", 121, 0.6, True, False), ("addmm", 90, 0.3, True, False))
QDQ = (("QLinearMatMul", 211, 0.4, True, True), ("DequantizeLinear", 400, 0.5, False, False),
       ("QuantizeLinear", 211, 0.1, False, False))  # fmt: skip
PER_TOKEN = (("MatMulIntegerToFloat", 211, 1.0, True, True), ("ReduceMax", 120, 2.0, False, False),
             ("Div", 120, 2.0, False, False))  # fmt: skip

CASES = {
    "int4 without accuracy_level": Case(
        "fallback_or_slow_kernel", "w4-g64", Side((430, 60, 25), (9.5, 1.5, 1), LINEARS), FP32, "accuracy_level 4", CHAT,
        levels=(0,),
    ),
    "weights expanded when loaded": Case(
        "fallback_or_slow_kernel", "w8-g64", Side((320, 60, 25), (17, 1.5, 1), 0), FP32, "no quantized kernel ran", CHAT,
    ),
    "weights expanded before every product": Case(
        "fallback_or_slow_kernel", "w4-g64", Side((430, 60, 25), (22, 1.5, 1), 210, EXPANDED), FP32, "fast at these sizes", CHAT,
        stored=210,
    ),
    "weight-only kernel at large M": Case(
        "fallback_or_slow_kernel", "w4-g64", Side((3500, 60, 25), (4, 1.5, 1), LINEARS), FP32, "fast at these sizes", SUMMARIZE,
    ),
    "bf16 hint under quantized decode": Case(
        "fallback_or_slow_kernel", "w4-g64", Side((130, 60, 25), (8.4, 1.0, 0.5), LINEARS),
        Side((130, 60, 25), (10, 1.0, 0.5)), "openvino+f32", CHAT, runtime="openvino", options=("bf16",), levels=(),
    ),
    "static QDQ in DequantizeLinear": Case(
        "activation_quantization", "w8a8-static", Side((420, 60, 25), (15, 1.5, 1), LINEARS, QDQ), FP32, "float", CHAT,
    ),
    "activations rounded by operators of their own": Case(
        "activation_quantization", "w8a8", Side((85, 60, 365), (4, 1.5, 17), LINEARS, PER_TOKEN), FP32, "float", CHAT,
    ),
    "lm_head left in fp32": Case(
        "layers_left_unquantized", "w4-g64", Side((320, 60, 25), (6.0, 1, 0.5), 210, HEAD_LEFT), FP32, "the 1 linear that", CHAT,
        stored=210,
    ),
    "every third layer left in fp32": Case(
        "layers_left_unquantized", "w4-g64", Side((320, 60, 25), (9.5, 1, 0.5), 121, HALF_LEFT), FP32, "the 90 linears", CHAT,
        stored=121,
    ),
    "an INT8 cache whose attention is slower": Case(
        "attention", "w8-g64-kv8", Side((320, 1400, 25), (5, 1.5, 1), LINEARS), Side((320, 180, 25), (17, 1.5, 1)),
        "cache unquantized", traffic(512, 16),
    ),
    "long prompts": Case(
        "attention", "w8a8", Side((700, 5000, 90), (5, 4, 1), LINEARS), Side((2500, 5000, 90), (17, 4, 1)),
        "faster attention kernel", traffic(8000, 16),
    ),
    "attention without its fast path in decode": Case(
        "attention", "w4-g64", Side((320, 60, 25), (3, 400, 2), LINEARS), Side((320, 60, 25), (17, 150, 2)),
        "attention kernel", LONG,
    ),
    "eager decode is bound by launches": Case(
        "launches_and_framework", "bf16", Side((320, 60, 25), (4, 1, 27), LINEARS), Side((320, 60, 25), (8, 1, 27)),
        "compiled graph", CHAT, runtime="torch", levels=(),
    ),
    "a wrapper that adds to every step": Case(
        "launches_and_framework", "w8-g64", Side((320, 60, 25), (4.5, 1.5, 20), LINEARS), FP32, "compiled graph", CHAT,
    ),
    "weight-only for long prompts and short answers": Case(
        "wrong_phase", "w4-g64", Side((1330, 300, 80), (4, 3, 1), LINEARS), Side((1300, 300, 80), (17, 3, 1)), "w8a8", SUMMARIZE,
    ),
    "weight-only for long prompts and one token": Case(
        "wrong_phase", "w4-g64", Side((1330, 300, 80), (0, 0, 0), LINEARS), Side((1300, 300, 80), (0, 0, 0)), "w8a8",
        traffic(2048, 1),
    ),
    "a quantized cache for a prefill": Case(
        "wrong_phase", "fp32-kv8", Side((1300, 200, 80), (17, 2, 1), 0), Side((1300, 200, 80), (17, 3, 1)), "w8a8", SUMMARIZE,
        stored=0, levels=(),
    ),
    "weights quantized where the cache binds": Case(
        "wrong_tensor", "w4-g64", Side((5120, 1000, 400), (10, 135, 4), LINEARS), Side((5120, 1000, 400), (20, 135, 4)),
        "KV cache", traffic(2048, 512, 16),
    ),
    "cache quantized where the weights bind": Case(
        "wrong_tensor", "fp32-kv8", Side((320, 60, 25), (17, 1.2, 1), 0), FP32, "quantize the weights", CHAT,
        stored=0, levels=(),
    ),
    "weights quantized where a crowd computes": Case(
        "wrong_tensor", "w4-g64", Side((900, 100, 25), (270, 40, 10), LINEARS), Side((900, 100, 25), (270, 40, 10)),
        "activations too", CROWD,
    ),
    "as fast as its format can make it": Case(
        None, "w8-g64", Side((320, 60, 25), (4.6, 0, 0), LINEARS), Side((320, 60, 25), (17, 0, 0)), "nothing", traffic(8, 8000),
    ),
}  # fmt: skip


def explained(case: Case, peaks: Peaks | None = PEAKS) -> Explanation:
    checkpoint = Checkpoint(
        path="planted", format={"openvino": "openvino", "torch": "transformers"}.get(case.runtime, "onnx"),  # type: ignore[arg-type]
        runtime=case.runtime, options=case.options, scheme=scheme(case.scheme), linears=LINEARS, stored_quantized=case.stored,
        accuracy_levels=case.levels,
    )  # fmt: skip
    ours, theirs = observation(case.ours, "planted"), observation(case.theirs, "none-fp32")
    return explain(checkpoint, ours, theirs, case.workload, INVENTORY, peaks)


@pytest.mark.parametrize("name", CASES)
def test_the_planted_cause_is_named(name: str) -> None:
    case = CASES[name]
    found = explained(case)
    assert found.largest == case.cause, [(c.cause, round(c.share, 3)) for c in found.causes]
    assert case.said in found.change


@pytest.mark.parametrize("name", CASES)
def test_the_named_cause_does_not_hang_on_measured_roofs(name: str) -> None:
    assert explained(CASES[name], None).largest == CASES[name].cause


@pytest.mark.parametrize("name", CASES)
def test_causes_sum_to_the_gap(name: str) -> None:
    found = explained(CASES[name])
    assert sum(cause.seconds for cause in found.causes) + found.gained_s == pytest.approx(found.gap_s, abs=1e-9)
    assert found.gained_s <= 0
    assert all(cause.seconds == pytest.approx(cause.prefill_s + cause.decode_s) for cause in found.causes)
    assert [cause.seconds for cause in found.causes] == sorted((c.seconds for c in found.causes), reverse=True)


def test_what_the_format_can_reach_is_the_roofline() -> None:
    found = explained(CASES["weight-only for long prompts and short answers"])
    assert found.hoped_factor == pytest.approx(5.9, abs=0.3)
    assert found.prefill.attainable_s == pytest.approx(found.prefill.unquantized_s, rel=0.01)
    assert found.decode.hoped_s == pytest.approx(found.decode.unquantized_s / found.hoped_factor)
    assert found.request.unquantized_s == pytest.approx((1680 + 15 * 21) * MS)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Side((0, 0, 500), (0, 0, 25), LINEARS), Side((0, 0, 400), (0, 0, 20))),
        (Side((0, 0, 500), (0, 0, 25), LINEARS), FP32),
        (Side((320, 60, 25), (17, 1.5, 1), LINEARS), Side((0, 0, 400), (0, 0, 20))),
        (Side((320, 60, 25), (0, 0, 25), LINEARS), FP32),
    ],
)
def test_where_the_profiler_tells_no_times_no_cause_is_named(ours: Side, theirs: Side) -> None:
    """As ONNX Runtime on a GPU, of one model, of both, or of a phase: nodes were counted and all time is in other."""
    found = explained(Case(None, "w4-g64", ours, theirs, "", CHAT, options=("cuda",)))
    assert found.gap_s > 0
    assert (found.largest, found.causes, found.gained_s) == (None, (), 0.0)
    assert "this runtime's profiler tells no times of operators here, so the gap cannot be taken apart" in found.verdict
    assert found.change == "none can be named without those times"
    assert (found.attainable_speedup, found.request.attainable_s, found.decode.attainable_s) == (None, None, None)
    assert Explanation.model_validate_json(found.model_dump_json(by_alias=True)) == found
    console = Console(file=io.StringIO(), width=200, record=True)
    console.print(explanation_panel(found))
    said = console.export_text()
    assert "cannot be taken apart" in said
    assert "not known" in said
    assert "launches" not in said


def test_without_a_gap_nothing_is_missed() -> None:
    case = Case(None, "w8-g64", Side((0, 0, 100), (0, 0, 5), LINEARS), Side((0, 0, 400), (0, 0, 20)), "", CHAT)
    assert "nothing is in its way" in explained(case).verdict


def test_attention_far_from_its_roof_is_slow_itself() -> None:
    """One row of 2,000 tokens: 92 MB of cache, 3 ms of reading at 30 GB/s. 60 ms of attention is not that reading."""
    slow, near = (
        Case(None, "w4-g64", Side((320, 60, 25), (4, ms, 1), LINEARS), Side((320, 60, 25), (17, ms, 1)), "", traffic(2000, 256))
        for ms in (60, 20)
    )
    found = explained(slow)
    assert found.largest == "attention"
    assert "flash attention" in found.change
    assert explained(near).largest == "wrong_tensor"
    assert explained(slow, None).largest == "wrong_tensor"  # without roofs nobody knows


def test_a_cpu_without_bf16_units_is_not_bound_by_them() -> None:
    """llama.cpp's unquantized weights are bf16. Where torch only emulates its products (at 1/25 of fp32's rate here), a
    decode step still reads: Q4_0 in plain rows that is no faster is a slow kernel, and not the wrong tensor."""
    ours, theirs = observation(Side((320, 60, 25), (14, 1.5, 1), LINEARS), "planted"), observation(FP32, "none-bf16")
    checkpoint = Checkpoint(
        path="planted", format="gguf", runtime="llama.cpp", options=("plain",), scheme=scheme("q4_0"), linears=LINEARS,
        stored_quantized=LINEARS, plain="bf16",
    )  # fmt: skip
    peaks = PEAKS.model_copy(update={"flops_per_s": PEAKS.flops_per_s | {"bf16": figure(1e10)}})
    assert explain(checkpoint, ours, theirs, traffic(32, 48), INVENTORY, peaks).largest == "fallback_or_slow_kernel"


def llama_change(cause: str, options: tuple[str, ...], kind: str = "q5_1", provider: str = "CPU", **layouts: str) -> str:
    side = Side((320, 60, 25), (4, 60, 1), LINEARS)
    made = scheme(kind) if kind in ("q4_0", "q8_0") else scheme("q8_0").model_copy(update={"name": kind})
    checkpoint = Checkpoint(
        path="planted", format="gguf", runtime="llama.cpp", options=options, scheme=made, linears=LINEARS,
        stored_quantized=LINEARS, plain="bf16", layouts=layouts,
    )  # fmt: skip
    seen = observation(side, "planted")
    rows = tuple(row.model_copy(update={"provider": provider}) for row in seen.decode_operators.operators)
    seen = seen.model_copy(update={"decode_operators": seen.decode_operators.model_copy(update={"operators": rows})})
    return change_for(cause, "decode", checkpoint, seen, "weights")  # type: ignore[arg-type]


def test_llama_cpp_s_attention_mend_is_named() -> None:
    assert "llama.cpp+fa" in llama_change("attention", ())
    assert "llama.cpp+fa" not in llama_change("attention", ("fa",))


AVX2 = {"q4_0": "CPU_REPACK", "q8_0": "CPU"}
TILES = {"q4_0": "AMX", "q8_0": "AMX"}
GCC_12 = dict.fromkeys(TILES, "its process died at q8_0_llama_cpp (signal SIGSEGV)")


@pytest.mark.parametrize(
    ("kind", "options", "provider", "layouts", "said"),
    [
        ("q5_1", (), "CPU", AVX2, "convert it to q4_0: llama.cpp has no repacked kernel for q5_1"),
        ("q5_1", (), "CPU", TILES, "convert it to q4_0 or q8_0"),
        ("q8_0", (), "CPU", AVX2, "convert it to q4_0"),  # without AMX its rows stay as they are
        ("q8_0", ("plain",), "CPU", AVX2, "convert it to q4_0"),
        ("q8_0", ("plain",), "CPU", TILES, "run it without the option plain"),
        ("q4_0", ("plain",), "CPU", AVX2, "run it without the option plain"),
        ("q4_k", ("plain",), "CPU", AVX2, "run it without the option plain"),
        ("q4_0", ("plain",), "CPU", GCC_12, "other than gcc 12"),
        ("q4_0", (), "CPU_REPACK", AVX2, "another format or runtime"),
        ("q5_1", (), "CPU", {}, "another format or runtime"),
    ],
)
def test_llama_cpp_s_layout_mend_follows_the_build(
    kind: str, options: tuple[str, ...], provider: str, layouts: dict[str, str], said: str
) -> None:
    """What was asked of the build decides: never `without plain` where that crashes, never a type it has no layout for."""
    found = llama_change("fallback_or_slow_kernel", options, kind, provider, **layouts)
    assert said in found
    assert (layouts is GCC_12) == ("SIGSEGV" in found)


def test_the_document_survives_json() -> None:
    found = explained(CASES["long prompts"])
    assert Explanation.model_validate_json(found.model_dump_json(by_alias=True)) == found


def test_every_cause_has_words_for_both_phases() -> None:
    case = CASES["int4 without accuracy_level"]
    checkpoint = explained(case).checkpoint
    ours, theirs = observation(case.ours, "a"), observation(case.theirs, "b")
    for cause in CAUSES:
        for phase in ("prefill", "decode"):
            lines = [
                change_for(cause, phase, checkpoint, ours, "kv_cache"),
                evidence_for(cause, phase, checkpoint, ours, theirs, "kv_cache"),
            ]
            assert all(line and "\n" not in line for line in lines)


def test_without_an_unquantized_model_its_linears_are_the_roofline() -> None:
    case = CASES["int4 without accuracy_level"]
    checkpoint, ours = explained(case).checkpoint, observation(case.ours, "planted")
    theirs = modelled(checkpoint, ours, INVENTORY, PEAKS, case.workload)
    assert theirs.kind == "modelled"
    assert theirs.decode.linears_s == pytest.approx(4 * (210 * 576 * 876 + 49152 * 576) / 3e10)
    assert theirs.decode.attention_s == ours.decode.attention_s
    blind = observation(Side((0, 0, 500), (0, 0, 25), LINEARS), "planted")
    with pytest.raises(BadInput, match="cannot run, and this runtime's profiler tells no times"):
        modelled(checkpoint, blind, INVENTORY, PEAKS, case.workload)
    assert explain(checkpoint, ours, theirs, case.workload, INVENTORY, PEAKS).largest == "fallback_or_slow_kernel"
