"""The oracles of the proving table: for each method the tests that hold its oracle, and what pytest says of them.

An oracle is another implementation, a closed form, or a table of the paper. Verdicts are kept by what they depend on: the
code of the methods and of their tests. One that was skipped is asked again each time, since what it lacked may be here now.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path

from methods_rows import ROOT, Known, Verdict, append, digest_of

from quantadvisor.methods.registry import METHODS

TESTS = "tests/methods/"
ORACLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "none": ("transformers", ("test_methods.py::test_torch_folders",)),
    "rtn": ("torch.quantize_per_channel", ("test_affine.py::test_groups_like_torch_per_channel",)),
    "gptq": (
        "each column's least squares solved anew; OBQ in the same order",
        ("test_gptq.py::test_like_a_solution_from_scratch", "test_obq.py::test_gptq_in_the_same_order_is_the_same"),
    ),
    "awq": (
        "the definition, tried scale by scale and share by share; transformers, before rounding",
        (
            "test_awq.py::test_the_search_finds_the_definitions_minimum",
            "test_awq.py::test_clipping_is_the_best_of_the_shares_group_by_group",
            "test_awq.py::test_folding_keeps_the_function",
        ),
    ),
    "obq": (
        "every next weight tried; the closed form",
        ("test_obq.py::test_like_trying_every_next_weight", "test_obq.py::test_one_weight_rounded_is_the_closed_form"),
    ),
    "kbit": (
        "bitsandbytes' maps, the papers' tables",
        (
            "test_codebooks.py::test_dynamic_is_bitsandbytes",
            "test_codebooks.py::test_nf4_is_the_papers_table",
            "test_codebooks.py::test_floats_are_ocp_e2m1",
            "test_codebooks.py::test_blocks_by_a_loop",
        ),
    ),
    "fpq": (
        "the paper's equations, and three rounds of its Algorithm 1",
        ("test_fpq.py::test_golden_grids", "test_fpq.py::test_the_joint_search_is_never_worse_than_three_rounds"),
    ),
    "mixed": (
        "KL as torch measures it; every choice tried",
        (
            "test_mixed.py::test_the_prediction_meets_what_torch_measures",
            "test_knapsack.py::test_whole_costs_give_what_every_combination_gives",
        ),
    ),
    "dynamic_int8": (
        "onnxruntime.quantization.quantize_dynamic",
        ("formats/test_onnx.py::test_w8a8_per_tensor_is_what_quantize_dynamic_writes",),
    ),
    "static_int8": (
        "onnxruntime's calibrators, numpy's percentile, every range tried",
        (
            "test_clipping.py::test_entropy_like_onnxruntime",
            "test_clipping.py::test_minmax_and_percentile_golden",
            "test_clipping.py::test_mse_by_trying_every_range",
            "test_static_int8.py::test_ranges_are_the_extremes_of_what_the_linears_read",
        ),
    ),
    "smoothquant": (
        "the paper's worked example; transformers, before rounding",
        ("test_smoothquant.py::test_golden_of_the_paper", "test_smoothquant.py::test_folding_keeps_the_function"),
    ),
    "smoothquant_gptq": (
        "SmoothQuant's own folder, code by code, under a diagonal Hessian",
        ("test_smoothquant_gptq.py::test_under_a_diagonal_hessian_the_codes_are_smoothquants",),
    ),
    "gguf": ("the gguf package", ("test_gguf.py::test_what_is_simulated_is_what_the_gguf_package_rounds",)),
    "gguf_imatrix": (
        "llama.cpp's quantizer",
        ("test_gguf_imatrix.py::test_llama_cpp_weighs_inputs_in_the_file_as_we_simulate_it",),
    ),
    "kv_int8": ("the grid, as the runtime reads it", ("test_kv_int8.py::test_the_runtime_rounds_as_the_grid_says",)),
    "kv_int4": ("the grid, as the runtime reads it", ("test_kv_int4.py::test_the_runtime_rounds_as_the_grid_says",)),
    "turboquant": (
        "codebooks by quadrature; the paper's distortions; unbiased products",
        (
            "test_turboquant.py::test_codebooks_by_quadrature",
            "test_turboquant.py::test_distortion_is_the_papers_for_any_vector",
            "test_turboquant.py::test_inner_products_are_unbiased_in_the_product_form",
        ),
    ),
    "kivi": ("torch.quantize_per_channel", ("test_kivi.py::test_keys_per_channel_values_per_token",)),
    "kv_fp8": ("ml_dtypes", ("test_kv_fp8.py::test_scaled_casts_like_ml_dtypes",)),
    "llm_int8": (
        "bitsandbytes' codes; the sum of both products, as ONNX Runtime computes it",
        ("test_llm_int8.py::test_golden_of_bitsandbytes", "test_llm_int8.py::test_the_artifact_is_the_sum_of_two_products"),
    ),
    "zeroquant": ("the grids of affine.py", ("test_zeroquant.py::test_groups_of_weights_and_tokens_of_activations",)),
    "fp8": ("ml_dtypes", ("test_fp8.py::test_granularities_like_ml_dtypes",)),
    "fpq_activations": (
        "the paper's equation of the shifts; every format and bound tried",
        ("test_fpq_activations.py::test_shifts_are_the_papers", "test_fpq_activations.py::test_the_search_finds_the_least_error"),
    ),
    "lkd": ("the layer's own output, alone", ("test_lkd.py::test_each_layer_comes_nearer_to_itself_alone",)),
    "llm_qat": (
        "transformers' greedy generate and its distribution; the grids of affine.py; plain rounding",
        (
            "test_llm_qat.py::test_texts_start_greedily_as_generate_does",
            "test_llm_qat.py::test_what_follows_is_drawn_from_the_model",
            "test_llm_qat.py::test_grids",
            "test_llm_qat.py::test_below_plain_rounding",
        ),
    ),
    "qlora": (
        "bitsandbytes' NF4, PEFT's merge",
        (
            "test_qlora.py::test_the_base_is_bitsandbytes_nf4_with_double_quantization",
            "test_qlora.py::test_merged_as_peft_merges",
        ),
    ),
    "qlora_merged": (
        "PEFT's merge, rounded",
        ("test_qlora_merged.py::test_what_is_trained_is_what_the_merged_weights_compute",),
    ),
    "gptq_lora": (
        "PEFT beside the integers' weights",
        ("test_gptq_lora.py::test_the_artifact_keeps_adapters_beside_gptqs_integers",),
    ),
    "rotation": (
        "scipy.linalg.hadamard; transformers, before rounding",
        ("test_rotation.py::test_hadamard_like_scipy", "test_rotation.py::test_the_function_is_kept"),
    ),
}
"""method -> (the oracle, the tests that hold it)"""


AGREES, SKIPPED = "agrees", "skipped here: "


def fill(known: Known, kept: Path, redo: bool = False) -> None:
    """Verdicts on the code as it is, into `known` and the file. `redo`: those that are known are asked for again."""
    code = code_digest()
    asked = {name: ORACLES[name] for name in METHODS if name in ORACLES and (redo or is_open(known.verdicts.get(name), code))}
    for name, verdict in verdicts(asked).items() if asked else ():
        record = Verdict(name=name, test=tests_of(name), code=code, verdict=verdict)
        known.add(record)
        append(kept, record)


def is_open(known: Verdict | None, code: str) -> bool:
    return known is None or known.code != code or known.test != tests_of(known.name) or known.verdict.startswith(SKIPPED)


def tests_of(name: str) -> str:
    return " ".join(ORACLES[name][1])


def code_digest() -> str:
    """Of methods/ and of its tests."""
    return digest_of([*(ROOT / "methods").rglob("*.py"), *(ROOT / "tests" / "methods").rglob("*.py")])


def verdicts(named: Mapping[str, tuple[str, tuple[str, ...]]]) -> dict[str, str]:
    """method -> agrees, disagrees, or skipped: what pytest says of the tests that hold the oracles, run once."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
            "-o",
            "junit_family=xunit1",
        ]
        subprocess.run(
            [*command, *dict.fromkeys(TESTS + test for _, tests in named.values() for test in tests)],
            cwd=ROOT,
            check=False,
            capture_output=True,
        )
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    ran: dict[str, list[ElementTree.Element]] = {}
    for case in cases:
        ran.setdefault(f"{case.get('file')}::{(case.get('name') or '').split('[')[0]}", []).append(case)
    return {name: verdict([ran.get(TESTS + test, []) for test in tests]) for name, (_, tests) in named.items()}


def verdict(tests: Sequence[Sequence[ElementTree.Element]]) -> str:
    """Of the cases of each test: one that disagrees, did not run or was skipped speaks for all."""
    cases = [case for each in tests for case in each]
    if any(case.find("failure") is not None or case.find("error") is not None for case in cases):
        return "**disagrees**"
    if not all(tests):
        return "**did not run**"
    for each in tests:
        if all(case.find("skipped") is not None for case in each):
            return SKIPPED + ((each[0].find("skipped").get("message") or "").split("\n")[0])  # type: ignore[union-attr]
    return AGREES
