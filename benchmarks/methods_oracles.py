"""The oracles of the proving table: for each method the test that holds its oracle, and what pytest says of it.

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
ORACLES: dict[str, tuple[str, str]] = {
    "none": ("transformers", "test_methods.py::test_torch_folders"),
    "rtn": ("torch.quantize_per_channel", "test_affine.py::test_groups_like_torch_per_channel"),
    "gptq": ("each column's least squares solved anew", "test_gptq.py::test_like_a_solution_from_scratch"),
    "awq": ("the definition, tried scale by scale", "test_awq.py::test_the_search_finds_the_definitions_minimum"),
    "obq": ("every next weight tried", "test_obq.py::test_like_trying_every_next_weight"),
    "kbit": ("bitsandbytes' maps", "test_codebooks.py::test_dynamic_is_bitsandbytes"),
    "fpq": ("the paper's equations and Algorithm 1", "test_fpq.py::test_golden_grids"),
    "mixed": ("KL as torch measures it", "test_mixed.py::test_the_prediction_meets_what_torch_measures"),
    "dynamic_int8": (
        "onnxruntime.quantization.quantize_dynamic",
        "formats/test_onnx.py::test_w8a8_per_tensor_is_what_quantize_dynamic_writes",
    ),
    "static_int8": ("onnxruntime's calibrators", "test_clipping.py::test_entropy_like_onnxruntime"),
    "smoothquant": ("the paper's worked example", "test_smoothquant.py::test_golden_of_the_paper"),
    "smoothquant_gptq": (
        "SmoothQuant's own folder, code by code, under a diagonal Hessian",
        "test_smoothquant_gptq.py::test_under_a_diagonal_hessian_the_codes_are_smoothquants",
    ),
    "gguf": ("the gguf package", "test_gguf.py::test_what_is_simulated_is_what_the_gguf_package_rounds"),
    "gguf_imatrix": (
        "llama.cpp's quantizer",
        "test_gguf_imatrix.py::test_llama_cpp_weighs_inputs_in_the_file_as_we_simulate_it",
    ),
    "kv_int8": ("the grid, as the runtime reads it", "test_kv_int8.py::test_the_runtime_rounds_as_the_grid_says"),
    "kv_int4": ("the grid, as the runtime reads it", "test_kv_int4.py::test_the_runtime_rounds_as_the_grid_says"),
    "turboquant": ("codebooks by quadrature, the paper's distortions", "test_turboquant.py::test_codebooks_by_quadrature"),
    "kivi": ("torch.quantize_per_channel", "test_kivi.py::test_keys_per_channel_values_per_token"),
    "kv_fp8": ("ml_dtypes", "test_kv_fp8.py::test_scaled_casts_like_ml_dtypes"),
    "llm_int8": ("bitsandbytes' codes", "test_llm_int8.py::test_golden_of_bitsandbytes"),
    "zeroquant": ("the grids of affine.py", "test_zeroquant.py::test_groups_of_weights_and_tokens_of_activations"),
    "fp8": ("ml_dtypes", "test_fp8.py::test_granularities_like_ml_dtypes"),
    "fpq_activations": ("the paper's equation of the shifts", "test_fpq_activations.py::test_shifts_are_the_papers"),
    "lkd": ("the layer's own output, alone", "test_lkd.py::test_each_layer_comes_nearer_to_itself_alone"),
    "llm_qat": ("transformers' greedy generate", "test_llm_qat.py::test_texts_start_greedily_as_generate_does"),
    "qlora": ("PEFT's merge", "test_qlora.py::test_merged_as_peft_merges"),
    "qlora_merged": ("PEFT's merge, rounded", "test_qlora_merged.py::test_what_is_trained_is_what_the_merged_weights_compute"),
    "gptq_lora": (
        "PEFT beside the integers' weights",
        "test_gptq_lora.py::test_the_artifact_keeps_adapters_beside_gptqs_integers",
    ),
    "rotation": ("scipy.linalg.hadamard", "test_rotation.py::test_hadamard_like_scipy"),
}
"""method -> (the oracle, the test that holds it)"""


AGREES, SKIPPED = "agrees", "skipped here: "


def fill(known: Known, kept: Path, redo: bool = False) -> None:
    """Verdicts on the code as it is, into `known` and the file. `redo`: those that are known are asked for again."""
    code = code_digest()
    asked = {name: ORACLES[name] for name in METHODS if name in ORACLES and (redo or is_open(known.verdicts.get(name), code))}
    for name, verdict in verdicts(asked).items() if asked else ():
        record = Verdict(name=name, test=ORACLES[name][1], code=code, verdict=verdict)
        known.add(record)
        append(kept, record)


def is_open(known: Verdict | None, code: str) -> bool:
    return known is None or known.code != code or known.test != ORACLES[known.name][1] or known.verdict.startswith(SKIPPED)


def code_digest() -> str:
    """Of methods/ and of its tests."""
    return digest_of([*(ROOT / "methods").rglob("*.py"), *(ROOT / "tests" / "methods").rglob("*.py")])


def verdicts(named: Mapping[str, tuple[str, str]]) -> dict[str, str]:
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
        subprocess.run([*command, *(TESTS + test for _, test in named.values())], cwd=ROOT, check=False, capture_output=True)
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    found = {}
    for name, (_, test) in named.items():
        file, function = test.split("::")
        mine = [c for c in cases if c.get("file") == TESTS + file and (c.get("name") or "").split("[")[0] == function]
        found[name] = verdict(mine)
    return found


def verdict(cases: Sequence[ElementTree.Element]) -> str:
    if not cases:
        return "**did not run**"
    if any(case.find("failure") is not None or case.find("error") is not None for case in cases):
        return "**disagrees**"
    if all(case.find("skipped") is not None for case in cases):
        return SKIPPED + ((cases[0].find("skipped").get("message") or "").split("\n")[0])  # type: ignore[union-attr]
    return AGREES
