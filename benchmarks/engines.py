"""Who should do the work: our writers against the kept libraries that do the same, from a folder of the model to a folder of the
artifact: seconds, the most memory, and mean KL through the runtime that loads both.

    python benchmarks/engines.py [--rounds 3] [--samples 32] [rtn-w4-g64-bf16@vllm …]

Same grids, same calibration tokens, in turns, each in a process of its own whose imports are not counted; what llm-compressor
needs in memory is loaded within the time, since ours reads it within its own. GPTQ and AWQ stand in against_llmcompressor.py.
ONNX Runtime's and OpenVINO's artifacts both sides make of one fp32 export. A library that is three times as slow, or worse at
the same work, is the oracle and not the engine. llmcompressor and compressed-tensors are wanted in this environment, vLLM in
its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from quantadvisor.advisor.builtin_model import NAME, resolve
from quantadvisor.advisor.candidates import session_options
from quantadvisor.advisor.context import CALIBRATION_LENGTH, WINDOW, cache_folder
from quantadvisor.advisor.diagnose import options_of, split
from quantadvisor.methods.artifact import format_of
from quantadvisor.methods.registry import method
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.environments import interpreter_of
from quantadvisor.profiling.memory import reset_peak, status_bytes
from quantadvisor.profiling.runtimes.registry import runtime_file
from quantadvisor.profiling.text import calibration_tokens, evaluation_tokens
from quantadvisor.profiling.workers import RunningWorker

OURS = "ours"
Write = Callable[[Path, np.ndarray, Path], None]
"""(model folder, int64 [samples, length], folder to write)"""


def llm_compressor(scheme: str, smooth: bool = False, search: bool = False) -> Write:
    """A preset of compressed-tensors, or "W4A16_ASYM" in groups of 64; `search`: weights by GPTQ."""

    def write(model_folder: Path, tokens: np.ndarray, out: Path) -> None:
        from compressed_tensors.quantization import preset_name_to_scheme
        from datasets import Dataset
        from llmcompressor import oneshot
        from llmcompressor.modifiers.gptq import GPTQModifier
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
        from llmcompressor.pipelines.cache import IntermediatesCache
        from transformers import AutoModelForCausalLM

        IntermediatesCache.pin_memory = lambda self, *_, **__: None  # 0.14.0 pins memory for a GPU, and fails where there is none
        group = preset_name_to_scheme(scheme, ["Linear"])
        if scheme.startswith("W4"):
            group.weights = group.weights.model_copy(update={"group_size": 64})
        modifier = partial(GPTQModifier, dampening_frac=0.01) if search else QuantizationModifier
        recipe: list[Any] = [modifier(config_groups={"group_0": group}, ignore=["lm_head"])]
        if smooth:
            recipe.insert(0, SmoothQuantModifier(smoothing_strength=0.8))
        data = Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": np.ones_like(tokens).tolist()})
        model = AutoModelForCausalLM.from_pretrained(model_folder, dtype="bfloat16")
        more = {"dataset": data, "num_calibration_samples": len(tokens), "max_seq_length": tokens.shape[1]} if smooth else {}
        oneshot(model=model, recipe=recipe, output_dir=str(out), processor=str(model_folder), **more)

    return write


def bitsandbytes(model_folder: Path, tokens: np.ndarray, out: Path) -> None:
    """NF4 in blocks of 64, through transformers."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    kind = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16, quantization_config=kind, device_map="cpu")
    model.save_pretrained(out)


def onnx_folder(change: Callable[[str, np.ndarray, str], None]) -> Write:
    """`change` writes the new graph of the old one's path; the folder around it stays."""

    def write(base: Path, tokens: np.ndarray, out: Path) -> None:
        out.mkdir()
        for path in base.iterdir():
            if path.name not in ("model.onnx", "scoring.onnx", "model.onnx.data"):
                (out / path.name).symlink_to(path.resolve())
        change(str(base / "scoring.onnx"), tokens, str(out / "scoring.onnx"))
        (out / "model.onnx").symlink_to("scoring.onnx")

    return write


def matmul_nbits(source: str, tokens: np.ndarray, target: str) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    made = MatMulNBitsQuantizer(onnx.load(source), block_size=64, is_symmetric=False, accuracy_level=4)
    made.process()
    made.model.save_model_to_file(target, use_external_data_format=True)


def quantize_dynamic(source: str, tokens: np.ndarray, target: str) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source, target, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8,
        use_external_data_format=True, extra_options={"MatMulConstBOnly": True, "DefaultTensorType": 1},
    )  # fmt: skip


def nncf(base: Path, tokens: np.ndarray, out: Path) -> None:
    """INT4 in groups of 64, asymmetric; lm_head and the embeddings in 8 bits."""
    import shutil

    import nncf
    import openvino

    model = openvino.Core().read_model(base / "openvino_scoring.xml", base / "openvino_model.bin")
    made = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT4_ASYM, group_size=64, ratio=1.0)
    shutil.copytree(base, out, ignore=shutil.ignore_patterns("openvino_*"))
    openvino.save_model(made, out / "openvino_model.xml", compress_to_fp16=False)
    shutil.copy(out / "openvino_model.xml", out / "openvino_scoring.xml")


RIVALS: dict[str, tuple[str, Write]] = {
    "rtn-w4-g64-bf16@vllm": ("llm-compressor", llm_compressor("W4A16_ASYM")),
    "dynamic_int8-w8a8-bf16@vllm": ("llm-compressor", llm_compressor("W8A8")),
    "smoothquant-w8a8-bf16@vllm": ("llm-compressor", llm_compressor("W8A8", smooth=True)),
    "smoothquant_gptq-w8a8-bf16@vllm": ("llm-compressor", llm_compressor("W8A8", smooth=True, search=True)),
    "fp8-fp8-bf16@vllm": ("llm-compressor", llm_compressor("FP8_DYNAMIC")),
    "kbit-nf4-b64-bf16@torch": ("bitsandbytes", bitsandbytes),
    "rtn-w4-g64@onnxruntime": ("onnxruntime", onnx_folder(matmul_nbits)),
    "dynamic_int8-w8a8-tensor@onnxruntime": ("onnxruntime", onnx_folder(quantize_dynamic)),
    "rtn-w4-g64@openvino": ("nncf", nncf),
}

IMPORTED = {
    OURS: ("torch", "transformers"),
    "llm-compressor": ("torch", "transformers", "llmcompressor", "datasets"),
    "bitsandbytes": ("torch", "transformers", "bitsandbytes"),
    "onnxruntime": ("onnx", "onnxruntime.quantization"),
    "nncf": ("nncf", "openvino"),
}
"""What a side's work imports, before the clock starts."""
GRAPHS = ("onnxruntime", "openvino")
"""Runtimes whose artifacts both sides make of the same fp32 export."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="CANDIDATE", help=", ".join(RIVALS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--child", nargs=4, metavar=("SIDE", "NAME", "SCRATCH", "OUT"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(child(asked.child[0], asked.child[1], Path(asked.child[2]), Path(asked.child[3]))))
        return
    if unknown := set(asked.names) - set(RIVALS):
        parser.error(f"{min(unknown)} is set beside no library; known are {', '.join(RIVALS)}")
    print(
        "| candidate | library | KL, ours / theirs | seconds | GB over the imports | times as fast |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        names = asked.names or list(RIVALS)
        prepare(scratch, asked.samples, asked.tokens, {split(name)[0].split("+")[0] for name in names})
        for name in names:
            print(compare(name, asked.rounds, scratch), flush=True)


def prepare(scratch: Path, samples: int, tokens: int, runtimes: set[str]) -> None:
    """What both sides read: the model, its fp32 exports, calibration tokens, windows, the fp32 model's log-probabilities."""
    import torch
    from transformers import AutoModelForCausalLM

    folder, _ = resolve(NAME, cache_folder(), lambda _: None)
    (scratch / "model").symlink_to(folder)
    for runtime in runtimes & set(GRAPHS):
        format_of(runtime).export_base(folder, scratch / runtime)
    np.save(scratch / "calibration.npy", calibration_tokens(folder, samples, CALIBRATION_LENGTH)[0])
    windows = evaluation_tokens(folder, tokens)[0].reshape(-1, WINDOW)
    np.save(scratch / "windows.npy", windows)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        parts = [torch.log_softmax(model(torch.from_numpy(w[None])).logits[0], -1).numpy() for w in windows]
    np.save(scratch / "reference.npy", np.concatenate(parts).astype(np.float16))


def compare(name: str, rounds: int, scratch: Path) -> str:
    """A row: each side once a round, in turning order, and scored once; a side that ends in an error is said so."""
    library, _ = RIVALS[name]
    seen: dict[str, list[dict[str, float]]] = {OURS: [], library: []}
    kl: dict[str, float] = {}
    for number in range(rounds):
        for side in (OURS, library) if number % 2 == 0 else (library, OURS):
            with tempfile.TemporaryDirectory(dir=scratch) as place:
                out = Path(place) / "made"
                command = [sys.executable, __file__, "--child", side, name, str(scratch), str(out)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    said = (done.stderr.strip() or f"ended with {done.returncode}").splitlines()[-1]
                    return f"| {name} | {library} | {side} failed: {said} | | | |"
                seen[side].append(json.loads(done.stdout.strip().splitlines()[-1]))
                kl.setdefault(side, score(name, out, scratch))
    ours, theirs = ({key: statistics.median(one[key] for one in seen[side]) for key in ("seconds", "bytes")} for side in seen)
    factors = [b["seconds"] / a["seconds"] for a, b in zip(seen[OURS], seen[library], strict=True)]
    return (
        f"| {name} | {library} | {kl[OURS]:.4f} / {kl[library]:.4f} | {ours['seconds']:.1f} / {theirs['seconds']:.1f} "
        f"| {ours['bytes'] / 1e9:.2f} / {theirs['bytes'] / 1e9:.2f} "
        f"| {statistics.median(factors):.1f} [{min(factors):.1f}, {max(factors):.1f}] |"
    )


def score(name: str, folder: Path, scratch: Path) -> float:
    runtime, scheme_name = split(name)
    options = session_options(runtime, options_of(name), scheme(scheme_name))
    with RunningWorker(runtime_file(runtime), folder, options, 2, python=interpreter_of(runtime)) as worker:
        rows = worker.score(np.load(scratch / "windows.npy"), scratch / "reference.npy", None)
    return float(rows[1].mean())


def child(side: str, name: str, scratch: Path, out: Path) -> dict[str, float]:
    runtime, scheme_name = split(name)
    tokens = np.load(scratch / "calibration.npy")
    library, theirs = RIVALS[name]
    made = method(name.split("-")[0])
    for module in IMPORTED[OURS if side == OURS else library]:
        import_module(module)
    reset_peak()
    held, start, model = status_bytes("VmRSS"), time.monotonic(), (scratch / "model").resolve()
    base = scratch / runtime if runtime in GRAPHS else None
    if side == OURS:
        made.apply(model, scheme(scheme_name), runtime, tokens, out, base=base)
    else:
        theirs(base or model, tokens, out)
    return {"seconds": time.monotonic() - start, "bytes": float(status_bytes("VmHWM") - held)}


if __name__ == "__main__":
    main()
