"""The page of the proving table, docs/methods.md, from its rows. Pure text; computes nothing but comparisons.

`ORACLES` names for each method the test that holds its oracle: another implementation, a closed form, or a table of the
paper. What the page says of them is what pytest says.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path

from methods_encoder import section
from methods_rows import Known, Row, Speed

from quantadvisor.documents import Device, Figure, Interval
from quantadvisor.methods.registry import METHODS
from quantadvisor.profiling.text import TextSource

ROOT = Path(__file__).resolve().parent.parent
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
    "gguf": ("the gguf package", "test_gguf.py::test_what_is_simulated_is_what_the_gguf_package_rounds"),
    "gguf_imatrix": (
        "llama.cpp's quantizer",
        "test_gguf_imatrix.py::test_llama_cpp_weighs_inputs_in_the_file_as_we_simulate_it",
    ),
    "kv_int8": ("the grid, read in chunks", "formats/test_onnx.py::test_int8_cache"),
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
    "rotation": ("scipy.linalg.hadamard", "test_rotation.py::test_hadamard_like_scipy"),
}
"""method -> (the oracle, the test that holds it)"""

EXPECTED = (
    ("GPTQ below RTN at 4 bits", "gptq-w4-g64", "rtn-w4-g64"),
    ("AWQ below RTN at 4 bits", "awq-w4-g64", "rtn-w4-g64"),
    ("GPTQ below RTN at 3 bits", "gptq-w3-g64", "rtn-w3-g64"),
    ("AWQ below RTN at 3 bits", "awq-w3-g64", "rtn-w3-g64"),
    ("pre-shifted FPQ below min-max floats at W4A4", "fpq_activations-w4a4-fp", "fpq_activations-w4a4-fp-minmax"),
    ("LLM.int8() below per-tensor W8A8", "llm_int8-w8a8-outlier", "dynamic_int8-w8a8-tensor"),
    ("SmoothQuant below per-tensor W8A8", "smoothquant-w8a8-tensor", "dynamic_int8-w8a8-tensor"),
    ("quantiles below integers at 4 bits", "kbit-quantile4-b64", "kbit-int4-b64"),
    ("floats below integers at 4 bits", "kbit-e2m1-b64", "kbit-int4-b64"),
    ("blocks of 64 below blocks of 1024", "kbit-nf4-b64", "kbit-nf4-b1024"),
    ("the proxy helps at 3 bits", "kbit-int3-b64-p2", "kbit-int3-b64"),
)
"""(what the literature lets one expect on average, the better row, the worse row)"""


def page(known: Known, device: Device, text: TextSource, tokens: int, wanted: int) -> str:
    """Markdown. Grouped by the tensor that a method shrinks, in each group by bytes."""
    rows = list(known.rows.values())
    speeds = speeds_of_one_machine(known, device.fingerprint)
    parts = [head(rows, speeds, text, tokens, wanted)]
    for target, title in TITLES.items():
        chosen = [row for row in rows if row.target == target and row.quality]
        if chosen:
            parts.append(f"## {title}\n\n" + table(chosen, speeds))
    parts.append("## An encoder: all-MiniLM-L6-v2, simulated\n\n" + section(list(known.encoder.values())))
    parts.append("## Expected order, and what was seen\n\n" + expected(known.rows))
    if missing := [row for row in rows if row.kind in ("refused", "failed")]:
        parts.append(
            "## Refused or failed\n\n" + "\n".join(f"- `{row.name}` {row.kind}: {cell(row.reason)}" for row in missing) + "\n"
        )
    parts.append("## Oracles\n\n" + oracles(verdicts({name: ORACLES[name] for name in METHODS if name in ORACLES})))
    return "\n".join(parts)


def head(rows: Sequence[Row], speeds: Mapping[str, Speed], text: TextSource, tokens: int, wanted: int) -> str:
    kinds = Counter(row.kind for row in rows)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    machines = sorted({row.machine for row in rows if row.machine})
    timed = next(iter(speeds.values())).machine if speeds else None
    return (
        "# Every method, measured\n\n"
        f"Written by `make methods` on {date.today().isoformat()}: {len(rows)} of {wanted} rows ({counted or 'none yet'}),"
        f" {len(speeds)} of {sum(map(can_be_timed, rows))} timed. SmolLM2-135M ({rows[0].model if rows else '-'}); quality"
        f" against its fp32 logits on {tokens:,} tokens of {text.name} ({text.licence}), intervals 95 %. Rows were made on"
        f" {'; '.join(machines) or '-'}. Speeds: {timed or 'none yet'}.\n\n"
        "How to read it. Choose by bytes and by KL, the mean distance of the next token's distribution from the fp32 model's:"
        " below 0.01 nats nobody sees it, at 0.1 about one token in ten differs, from 0.5 the model is another one. *top-1* is"
        " how often the most likely token stays the same.\n\n"
        "*measured*: the artifact was built and ran in the runtime named; *int* counts the linears that ran as quantized"
        " operators. *decode* and *prefill* are the unquantized model's time in the same runtime over this one's (above 1:"
        " faster), 128 tokens in and 32 out, in turns, on an idle machine. *simulated*: fake quantization in fp32, since no"
        " runtime here has the kernel; bytes are arithmetic, there is nothing to time, and searches calibrate on 16 samples"
        " instead of 64. *apply*: CPU seconds of all threads together and peak memory, without the export that all rows of"
        " a runtime share. Rotations and scales that AWQ or SmoothQuant move gain a part of what they gain here because the"
        " embedded model's channels were rescaled at random.\n"
    )


def can_be_timed(row: Row) -> bool:
    return row.kind == "measured" and row.target != "none"


def speeds_of_one_machine(known: Known, fingerprint: str) -> dict[str, Speed]:
    """By name, of the rows as they are: of this machine, or of that which timed most where this one timed none."""
    by_device: dict[str, dict[str, Speed]] = {}
    for (name, device), speed in known.speeds.items():
        row = known.rows.get(name)
        if row is not None and row.place == speed.place:
            by_device.setdefault(device, {})[name] = speed
    return by_device.get(fingerprint) or max(by_device.values(), key=len, default={})


TITLES = {"none": "Unquantized", "weights": "Weights", "activations": "Weights and activations", "kv_cache": "KV cache"}
COLUMNS = ("method-scheme", "class", "runtime", "MB", "of plain", "KL, nats", "perplexity", "top-1", "apply CPU s", "apply GB",
           "decode", "prefill", "int")  # fmt: skip


def table(rows: Iterable[Row], speeds: Mapping[str, Speed]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * 3 + "---:|" * (len(COLUMNS) - 3)]
    return "\n".join([*lines, *(line(row, speeds.get(row.name)) for row in rows)]) + "\n"


def line(row: Row, speed: Speed | None) -> str:
    q = row.quality
    assert q is not None
    passkey = "" if q.passkey_found is None else (", passkey found" if q.passkey_found else ", **passkey lost**")
    share = f"{row.bytes / row.plain_bytes:.2f}" if row.bytes and row.plain_bytes else ""
    cells = (
        f"`{row.name}`",
        row.kind,
        row.place or "",
        f"{row.bytes / 1e6:.0f}" if row.bytes else "",
        share,
        f"{interval(q.kl)}{passkey}",
        f"{q.perplexity:.2f}",
        f"{q.top1.mean:.3f}",
        f"{row.apply_cpu_s:.0f}" if row.apply_cpu_s is not None else "",
        f"{row.apply_peak_bytes / 1e9:.1f}" if row.apply_peak_bytes is not None else "",
        *times(row, speed),
        f"{row.quantized_linears}/{row.linears}" if row.linears else "",
    )
    return "| " + " | ".join(map(cell, cells)) + " |"


def times(row: Row, speed: Speed | None) -> tuple[str, str]:
    """Decode and prefill."""
    if not can_be_timed(row):
        return "", ""
    if speed is None:
        return "not timed yet", "not timed yet"
    if speed.reason:
        return f"failed: {speed.reason}", ""
    return ratio(speed.decode), ratio(speed.prefill)


def cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|")


def interval(kl: Interval) -> str:
    return f"{kl.mean:.4f} [{kl.low:.4f}, {kl.high:.4f}]"


def ratio(found: Figure | None) -> str:
    return f"{found.median:.2f}x [{found.low:.2f}, {found.high:.2f}]" if found else ""


def expected(rows: Mapping[str, Row]) -> str:
    """One line for each order; where a row is not there, that is said."""
    lines = []
    for what, better, worse in EXPECTED:
        low, high = (rows[name].quality if name in rows else None for name in (better, worse))
        if low is None or high is None:
            lines.append(f"- {what}: not measured")
            continue
        held = "holds" if low.kl.mean < high.kl.mean else "**does not hold**"
        apart = "" if low.kl.high < high.kl.low or high.kl.high < low.kl.low else ", the intervals overlap"
        lines.append(f"- {what}: {held}{apart} ({low.kl.mean:.4f} against {high.kl.mean:.4f})")
    return "\n".join(lines) + "\n"


def oracles(found: Mapping[str, str]) -> str:
    lines = ["| method | oracle | test | verdict |", "|---|---|---|---|"]
    for name in METHODS:
        what, test = ORACLES.get(name, ("none is named", ""))
        lines.append(f"| {name} | {what} | `{TESTS + test if test else ''}` | {found.get(name, 'none')} |")
    return "\n".join(lines) + "\n"


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
        return "skipped here: " + cell((cases[0].find("skipped").get("message") or "").split("\n")[0])  # type: ignore[union-attr]
    return "agrees"
