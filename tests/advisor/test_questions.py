"""The third question: did the runtime execute what the scheme quantizes, linears and cache alike?"""

import pytest

from quantadvisor.advisor.questions import operator_ran
from quantadvisor.documents import Candidate, OperatorCount, Operators

from .documents import candidate


def ran(name: str, cache: str, quantized: int, target: str = "kv_cache", rows: tuple[OperatorCount, ...] = ()) -> Candidate:
    seen = Operators(phase="decode", operators=rows, linears=151, quantized_linears=quantized, cache=cache)
    return candidate(name, 1.0, target=target).model_copy(update={"operators": seen})


@pytest.mark.parametrize(
    ("name", "cache", "quantized", "answer"),
    [
        ("kv_int8-fp32-kv8@onnxruntime", "int8", 0, True),
        ("kv_int4-fp32-kv4@onnxruntime", "uint8", 0, True),  # two a byte
        ("kv_int8-fp32-kv8@openvino+f32", "u8", 0, True),
        ("kv_int8-fp32-kv8@openvino+f32", "f16, u8", 0, True),
        ("kv_int8-fp32-kv8@openvino+f32", "f32, f16", 0, False),
        ("kv_int8-q8_0-kv8@llama.cpp+fa", "q8_0", 151, True),
        ("kv_int8-q8_0-kv8@llama.cpp+fa", "f16", 151, False),
        ("kv_fp8-bf16-kvf8-unit@vllm", "fp8", 0, True),
        ("kv_fp8-bf16-kvf8-unit@vllm", "bfloat16", 0, False),
        ("kv_int4-bf16-kv4-head@triton", "16 bit", 0, False),
        ("turboquant-bf16-kv4-turbo@triton", "turbo4", 0, True),
        ("kv_int8-fp32-kv8@onnxruntime", "", 0, False),
    ],
)
def test_a_cache_is_judged_by_how_it_is_stored(name: str, cache: str, quantized: int, answer: bool) -> None:
    question = operator_ran(ran(name, cache, quantized))
    assert question.answer is answer
    assert (cache or "does not tell") in question.evidence


@pytest.mark.parametrize(("quantized", "cache", "answer"), [(151, "int8", True), (151, "float32", False), (100, "int8", False)])
@pytest.mark.parametrize("target", ["kv_cache", "weights"])
def test_weights_and_cache_together_must_both_have_run(target: str, quantized: int, cache: str, answer: bool) -> None:
    assert operator_ran(ran("kv_int8-w8-g64-kv8@onnxruntime", cache, quantized, target)).answer is answer


@pytest.mark.parametrize(
    ("rounding_s", "said"), [(2.0, "; prefill: QuantizeLinear and DequantizeLinear take 20% of its time"), (1.0, "")]
)
def test_operators_that_only_round_are_named_where_they_take_much_of_prefill(rounding_s: float, said: str) -> None:
    """Of decode's the session's own note tells the share, whatever it is."""
    rows = (
        OperatorCount(name="QLinearMatMul", count=9, time_s=10 - rounding_s, linear=True, quantized=True),
        OperatorCount(name="DequantizeLinear", count=9, time_s=rounding_s / 2),
        OperatorCount(name="QuantizeLinear", count=9, time_s=rounding_s / 2),
    )
    made = ran("static_int8-w8a8-static@onnxruntime", "", 151, "activations")
    assert made.operators
    prefill = Operators(phase="prefill", operators=rows, linears=151, quantized_linears=151)
    told = made.operators.model_copy(update={"notes": ("of the operators' time QuantizeLinear 3.0%",)})
    question = operator_ran(made.model_copy(update={"operators": told, "prefill_operators": prefill}))
    assert question.evidence.endswith(f"of the operators' time QuantizeLinear 3.0%{said}")


def test_words_beside_the_cache_prove_nothing() -> None:
    """llama.cpp's system information names AMX_INT8; an attention row may be marked quantized by its weights."""
    made = ran("kv_int8-q8_0-kv8@llama.cpp+fa", "f16", 151, rows=(OperatorCount(name="Attention", count=30, quantized=True),))
    assert made.operators is not None
    noted = made.operators.model_copy(update={"notes": ("AVX512 = 1 | AMX_INT8 = 1",)})
    assert operator_ran(made.model_copy(update={"operators": noted})).answer is False
