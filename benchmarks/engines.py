"""Who should do the work: our writers against the kept libraries that do the same, from a folder of the model to a folder of the
artifact: seconds, the most memory, and mean KL through the runtime that loads both.

    python benchmarks/engines.py [--rounds 3] [--samples 32] [rtn-w4-g64-bf16@vllm …]

Same grids, same calibration tokens, in turns, each in a process of its own whose imports are not counted; what llm-compressor
needs in memory is loaded within the time, since ours reads it within its own. GPTQ and AWQ stand in against_llmcompressor.py.
A library that is three times as slow, or worse at the same work, is the oracle and not the engine. llmcompressor and
compressed-tensors are wanted in this environment, vLLM in its own.
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
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from quantadvisor.advisor.builtin_model import NAME, resolve
from quantadvisor.advisor.candidates import session_options
from quantadvisor.advisor.context import CALIBRATION_LENGTH, WINDOW, cache_folder
from quantadvisor.advisor.diagnose import options_of, split
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


def llm_compressor(bits: int, inputs: bool, smooth: bool = False) -> Write:
    """INT4 in groups of 64 or INT8 per channel, `inputs` rounded to INT8 per token."""

    def write(model_folder: Path, tokens: np.ndarray, out: Path) -> None:
        from datasets import Dataset
        from llmcompressor import oneshot
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
        from llmcompressor.pipelines.cache import IntermediatesCache
        from transformers import AutoModelForCausalLM

        IntermediatesCache.pin_memory = lambda self, *_, **__: None  # 0.14.0 pins memory for a GPU, and fails where there is none
        grouped = {"strategy": "group", "group_size": 64, "symmetric": False}
        weights = {"num_bits": bits, "type": "int", "dynamic": False} | (
            grouped if bits == 4 else {"strategy": "channel", "symmetric": True}
        )
        per_token = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        group = {"targets": ["Linear"], "weights": weights} | ({"input_activations": per_token} if inputs else {})
        recipe: list[Any] = [QuantizationModifier(config_groups={"group_0": group}, ignore=["lm_head"])]
        if smooth:
            recipe.insert(0, SmoothQuantModifier(smoothing_strength=0.8))
        data = Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": np.ones_like(tokens).tolist()})
        model = AutoModelForCausalLM.from_pretrained(model_folder, dtype="bfloat16")
        more = {"dataset": data, "num_calibration_samples": len(tokens), "max_seq_length": tokens.shape[1]} if smooth else {}
        oneshot(model=model, recipe=recipe, output_dir=str(out), processor=str(model_folder), **more)

    return write


RIVALS: dict[str, tuple[str, Write]] = {
    "rtn-w4-g64-bf16@vllm": ("llm-compressor", llm_compressor(4, inputs=False)),
    "dynamic_int8-w8a8-bf16@vllm": ("llm-compressor", llm_compressor(8, inputs=True)),
    "smoothquant-w8a8-bf16@vllm": ("llm-compressor", llm_compressor(8, inputs=True, smooth=True)),
}

IMPORTED = {
    OURS: ("torch", "transformers"),
    "llm-compressor": ("torch", "transformers", "llmcompressor", "datasets"),
}
"""What a side's work imports, before the clock starts."""


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
        prepare(scratch, asked.samples, asked.tokens)
        for name in asked.names or list(RIVALS):
            print(compare(name, asked.rounds, scratch), flush=True)


def prepare(scratch: Path, samples: int, tokens: int) -> None:
    """What both sides read: the model, calibration tokens, windows, and the fp32 model's log-probabilities."""
    import torch
    from transformers import AutoModelForCausalLM

    folder, _ = resolve(NAME, cache_folder(), lambda _: None)
    (scratch / "model").symlink_to(folder)
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
    if side == OURS:
        made.apply(model, scheme(scheme_name), runtime, tokens, out)
    else:
        theirs(model, tokens, out)
    return {"seconds": time.monotonic() - start, "bytes": float(status_bytes("VmHWM") - held)}


if __name__ == "__main__":
    main()
