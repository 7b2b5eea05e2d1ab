"""Slow paths in planted timings: what is said of them, and what is not."""

import pytest

from quantadvisor.advisor.candidates import CATALOGUE
from quantadvisor.advisor.predict import Probes, kernel_family
from quantadvisor.advisor.slow_paths import PHASES, TRAP_PLACES, slow_path, untimed
from quantadvisor.advisor.survey import PROBED
from quantadvisor.documents import Inventory, KernelTiming, LinearShape
from quantadvisor.kernels.registry import OFFERED, PROBES, TRAPS
from quantadvisor.methods.schemes import scheme

from .documents import figure

LAYER = LinearShape(name="q_proj", n=64, k=64, count=2)
HEAD = LinearShape(name="lm_head", n=128, k=64, count=1, lm_head=True)
INVENTORY = Inventory(
    architecture="LlamaForCausalLM", layers=2, hidden=64, vocabulary=128, heads=2, kv_heads=2, head_dim=32,
    max_context_tokens=4096, tied_embeddings=True, linears=(LAYER, HEAD),
    embedding_parameters=8192, linear_parameters=8192, other_parameters=128, kv_values_per_token=256,
)  # fmt: skip
FEW, MANY = (m for _, m in PHASES)


def timed(place: str, name: str, few_s: float, many_s: float, n: int = 64) -> list[KernelTiming]:
    """A kernel's curve through both M; `place`: runtime+option."""
    runtime, _, option = place.partition("+")
    made = {"probe": "x", "scheme": scheme(name), "runtime": runtime, "option": option, "n": n, "k": 64}
    return [KernelTiming.model_validate(made | {"m": m, "time_s": figure(s)}) for m, s in ((FEW, few_s), (MANY, many_s))]


def probes(*curves: list[KernelTiming]) -> Probes:
    return Probes([one for curve in curves for one in curve], INVENTORY, 0.5)


def said(place: str, name: str, *curves: list[KernelTiming]) -> str | None:
    runtime, *options = place.split("+")
    return slow_path(scheme(name), runtime, options, probes(*curves))


def test_where_nothing_runs_in_fp32_slow_is_slower_than_bf16() -> None:
    found = said("vllm", "w8a8-bf16", timed("vllm", "bf16", 1e-3, 0.1), timed("vllm", "w8a8-bf16", 2e-3, 0.05))
    assert found is not None and found.startswith(
        f"decode (M = {FEW}): linears take 2.00x the time of unquantized ones, no other"
    )
    assert "prefill" not in found


def test_slower_is_than_the_fastest_float_type_of_the_runtime() -> None:
    w4 = timed("torch+int4pack", "w4-g64-bf16", 5e-4, 0.4)
    for fp32_s, bf16_s in ((0.5, 0.1), (0.1, 0.5)):
        floats = timed("torch", "fp32", 1e-3, fp32_s), timed("torch", "bf16", 1e-3, bf16_s)
        found = said("torch", "w4-g64-bf16", *floats, w4)
        assert found is not None and "take 4.00x" in found and "decode" not in found


def test_no_faster_is_said_plainly() -> None:
    plain = timed("onnxruntime", "fp32", 2e-3, 0.1)
    for many_s, words in ((0.102, "no faster than unquantized ones (1.02x their time)"), (0.097, "(0.97x their time)")):
        assert words in str(said("onnxruntime", "w4-g64", plain, timed("onnxruntime", "w4-g64", 1e-3, many_s)))
    assert said("onnxruntime", "w4-g64", plain, timed("onnxruntime", "w4-g64", 1e-3, 0.09)) is None


def test_another_runtime_avoids_it() -> None:
    curves = (
        timed("onnxruntime", "fp32", 2e-3, 0.1),
        timed("onnxruntime", "w4-g64", 1e-3, 0.14),
        timed("openvino+bf16", "w4-g64", 1e-3, 0.05),
    )
    found = said("onnxruntime", "w4-g64", *curves)
    assert found == f"prefill (M = {MANY}): linears take 1.40x the time of unquantized ones, openvino+bf16 is 2.80x faster"


def test_two_options_of_a_kernel_are_compared_with_each_other() -> None:
    """OpenVINO: f32 wins quantized decode, bf16 prefill. Neither is slower than its own unquantized kernel."""
    curves = (
        timed("openvino+f32", "fp32", 9e-3, 0.9), timed("openvino+bf16", "fp32", 9e-3, 0.9),
        timed("openvino+f32", "w4-g64", 1e-3, 0.3), timed("openvino+bf16", "w4-g64", 2e-3, 0.1),
    )  # fmt: skip
    assert said("openvino+f32", "w4-g64", *curves) == f"prefill (M = {MANY}): the option bf16 is 3.00x faster"
    assert said("openvino+bf16", "w4-g64", *curves) == f"decode (M = {FEW}): the option f32 is 2.00x faster"
    assert said("openvino+f32", "fp32", *curves) is None, "unquantized, and bf16 rounds it"
    near = timed("openvino+f32", "w4-g64", 1e-3, 0.1), timed("openvino+bf16", "w4-g64", 1.1e-3, 0.09)
    assert said("openvino+bf16", "w4-g64", *near) is None, "less apart than their timings may be"


def test_a_trap_is_told_from_the_option_that_avoids_it_without_the_head() -> None:
    """ONNX Runtime's INT4 without accuracy_level: only the default option's candidates have an fp32 head."""
    curves = (
        timed("onnxruntime", "fp32", 2e-3, 0.1), timed("onnxruntime", "fp32", 1.0, 1.0, n=HEAD.n),
        timed("onnxruntime", "w4-g64", 1e-3, 0.08), timed("onnxruntime+acc0", "w4-g64", 1.8e-3, 0.06),
        timed("onnxruntime+acc0", "w4-g64", 1e-3, 1e-3, n=HEAD.n),
    )  # fmt: skip
    assert said("onnxruntime+acc0", "w4-g64", *curves) == f"decode (M = {FEW}): onnxruntime without acc0 is 1.80x faster"
    assert said("onnxruntime", "w4-g64", *curves) is None, "no trap is what avoids another, though it is faster at many rows"


def test_what_only_rounds_is_named_with_its_share_where_that_is_much() -> None:
    """Of both linears' time together, though all of it is faster than unquantized."""
    plain, fast = timed("onnxruntime", "fp32", 2e-3, 0.3), timed("onnxruntime+qdq", "w8a8-static", 1e-3, 0.1)
    for share, named in ((0.33, True), (0.1, False)):
        few, many = fast
        words = said("onnxruntime+qdq", "w8a8-static", plain, [few, many.model_copy(update={"rounding_share": share})])
        expected = f"prefill (M = {MANY}): QuantizeLinear and DequantizeLinear take 33% of its time"
        assert words == (expected if named else None)


def test_of_what_was_not_timed_nothing_is_said() -> None:
    assert said("onnxruntime", "w4-g64", timed("onnxruntime", "fp32", 2e-3, 0.1)) is None


@pytest.mark.parametrize(
    ("place", "name", "judged"),
    [
        ("onnxruntime", "w8a8-tensor", True),
        ("onnxruntime", "w8a8", False),
        ("onnxruntime-genai", "w8a8", False),
        ("onnxruntime", "w8a8-static", False),
        ("onnxruntime", "w8a8-outlier", False),
        ("openvino+f32", "w8a8-static-mse", True),
        ("vllm", "w8a8-bf16", True),
        ("vllm", "w8a8-outlier-fp16", False),
    ],
)
def test_no_scheme_is_judged_by_another_operator_s_time(place: str, name: str, judged: bool) -> None:
    """ONNX Runtime's INT8 product with one range per call, OpenVINO's with a fixed one, vLLM's per token: all of one class."""
    plain = (("onnxruntime", "fp32"), ("openvino+f32", "fp32"), ("vllm", "bf16"))
    int8 = (("onnxruntime", "w8a8-tensor"), ("openvino+f32", "w8a8-static"), ("vllm", "w8a8-bf16"))
    curves = [timed(*one, s, 2 * s) for s, group in ((1e-3, plain), (1.0, int8)) for one in group]
    runtime, *options = place.split("+")
    unknown = "its linears were not timed in decode and prefill"
    assert untimed(scheme(name), runtime, options, probes(*curves)) == (None if judged else unknown)
    assert (said(place, name, *curves) is not None) == judged


def test_kernels_of_fewer_bits_say_how_their_operator_rounds() -> None:
    """Its 7 bits go through the operator of w8a8-tensor: candidates of w7a8 round per token."""
    made = [one.model_copy(update={"scheme": PROBES["w7a8_onnxruntime"].scheme}) for one in timed("onnxruntime", "w7a8", 1, 2)]
    assert untimed(scheme("w7a8"), "onnxruntime", (), probes(made)) is not None
    assert probes(made).linears_s(scheme("w7a8"), "onnxruntime", (), FEW, None) == 2, "predictions take it all the same"


def test_gptq_s_int4_on_torch_is_the_trap_that_it_runs() -> None:
    """GPTQModel's linears call the product that `int4pack` times (docs/checkpoints.md); on a GPU they call others."""
    curves = timed("torch", "bf16", 1e-3, 0.1), timed("torch+int4pack", "w4-g64-bf16", 5e-4, 0.9)
    for name in ("w4-g64-bf16", "w4-g32-bf16"):
        found = said("torch", name, *curves)
        assert found == said("torch+int4pack", name, *curves) and "linears take 9.00x the time" in str(found)
        assert untimed(scheme(name), "torch", (), probes(*curves)) is None
        assert untimed(scheme(name), "torch", ("cuda",), probes(*curves)) is not None


def test_no_prediction_takes_a_trap_s_time_and_no_run_times_one() -> None:
    places = {
        kernel_family(runtime, options) for entry in CATALOGUE for runtime, *options in (one.split("+") for one in entry.runtimes)
    }
    assert not places & TRAP_PLACES
    assert set(TRAPS) <= set(PROBES)
    assert not set(TRAPS) & {*PROBED, *OFFERED}


@pytest.mark.parametrize("crashes", [True, False])
def test_what_crashes_at_other_sizes_avoids_nothing(crashes: bool) -> None:
    """llama.cpp's tiles of AMX: a single row is not multiplied by them, and is fast; a prompt ends the process."""
    fast = timed("llama.cpp", "q8_0", 1e-3, 0.05)
    if crashes:
        died = {"time_s": None, "refused": "its process died at q8_0_llama_cpp (signal SIGSEGV)"}
        fast[1] = fast[1].model_copy(update=died)
    found = said(
        "llama.cpp+plain", "q8_0", timed("llama.cpp", "bf16", 3e-3, 0.3), timed("llama.cpp+plain", "q8_0", 2e-3, 0.2), fast
    )
    assert (
        found is None
        if crashes
        else found == "decode (M = 1): llama.cpp without plain is 2.00x faster; prefill (M = 1024): "
        "llama.cpp without plain is 4.00x faster"
    )
