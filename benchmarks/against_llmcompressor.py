"""GPTQ and AWQ against llm-compressor on the embedded model: mean KL and seconds, in turns in one run.

    python benchmarks/against_llmcompressor.py [--methods gptq awq] [--ours default equal] [--rounds 2] [--samples 64]

INT4, asymmetric, groups of 64, lm_head left alone; the same calibration tokens; GPTQ in act-order with groups in place and
damping 0.01 on both sides. "default" is what `advisor run` uses: it searches ranges (GPTQ: 14 shrunk ones; AWQ: 10 clips),
which llm-compressor does not. "equal" takes min-max ranges as llm-compressor does: the same settings. Seconds are of
quantizing alone, on the wall and of all threads ("cpu", which a busy machine disturbs less): ours reads the weights from
disk within them, theirs has the model in memory before. Both are scored by one code, in fp32, against the fp32 model.
Each round calibrates on samples of its own, so that a ratio is of all rounds and not of one draw of them.
Wanted: at most 1.02 times the KL, in a third of the time. It needs llmcompressor and compressed-tensors, in an environment
of their own beside ours.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from quantadvisor.advisor.builtin_model import NAME, resolve
from quantadvisor.advisor.context import CALIBRATION_LENGTH, WINDOW, cache_folder
from quantadvisor.profiling.text import calibration_tokens, evaluation_tokens

GROUP, SCHEME = 64, "w4-g64"
THEIRS = "llm-compressor"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["gptq", "awq"], choices=["gptq", "awq"])
    parser.add_argument("--ours", nargs="+", default=["default", "equal"], choices=["default", "equal"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--layers", type=int, help="of the first layers alone: does it run, in minutes; its KL is no model's")
    parser.add_argument("--child", nargs=4, metavar=("SIDE", "METHOD", "ROUND", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(child(*asked.child[:3], Path(asked.child[3]))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch), asked.samples, asked.rounds, asked.tokens, asked.layers)
        for method in asked.methods:
            compare(method, asked.ours, asked.rounds, Path(scratch))


def prepare(scratch: Path, samples: int, rounds: int, tokens: int, layers: int | None) -> None:
    """What both sides read: the model, tokens of each round's calibration, windows, and the fp32 model's log-probabilities."""
    import torch
    from transformers import AutoModelForCausalLM

    folder, _ = resolve(NAME, cache_folder(), lambda _: None)
    windows = evaluation_tokens(folder, tokens)[0].reshape(-1, WINDOW)
    drawn = calibration_tokens(folder, samples * rounds, CALIBRATION_LENGTH)[0]
    for number in range(rounds):
        np.save(scratch / f"calibration-{number}.npy", drawn[number::rounds])
    shutil.copytree(folder, scratch / "model")
    if layers:
        config = json.loads((folder / "config.json").read_text())
        (scratch / "model" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    model = AutoModelForCausalLM.from_pretrained(scratch / "model", dtype=torch.float32).eval()
    with torch.no_grad():
        parts = [torch.log_softmax(model(torch.from_numpy(w[None])).logits[0], -1).numpy() for w in windows]
    np.save(scratch / "windows.npy", windows)
    np.save(scratch / "reference.npy", np.concatenate(parts).astype(np.float16))


def compare(method: str, settings: list[str], rounds: int, scratch: Path) -> None:
    """Each side once a round, in turning order; prints every round, and for every setting the ratios of medians."""
    sides = (*settings, THEIRS)
    seen: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            done = subprocess.run(
                [sys.executable, __file__, "--child", side, method, str(number), str(scratch)], capture_output=True, text=True
            )
            if done.returncode:
                said = done.stderr.strip() or f"ended with {done.returncode}"
                raise SystemExit(f"{side} {method}: {said.splitlines()[-1]}")
            found = json.loads(done.stdout.strip().splitlines()[-1])
            seen[side].append(found)
            print(f"{method} {side:15} KL {found['kl']:.4f}  top-1 {found['top1']:.3f}  {found['seconds']:.1f} s"
                  f" ({found['cpu']:.1f} cpu)", flush=True)  # fmt: skip
    for side in settings:
        kl, seconds, cpu = (median(seen[side], key) / median(seen[THEIRS], key) for key in ("kl", "seconds", "cpu"))
        each = ", ".join(f"{ours['kl'] / theirs['kl']:.3f}" for ours, theirs in zip(seen[side], seen[THEIRS], strict=True))
        held = "holds" if kl <= 1.02 and 1 / seconds >= 3 else "does not hold"
        print(f"{method}, {side}: KL {kl:.3f} times theirs ({each}), {1 / seconds:.1f} times as fast ({1 / cpu:.1f} by cpu; "
              f"wanted: at most 1.02, at least 3): {held}")  # fmt: skip


def median(found: list[dict[str, float]], key: str) -> float:
    return float(np.median([each[key] for each in found]))


def child(side: str, method: str, number: str, scratch: Path) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM

    from quantadvisor.advisor.risk import score
    from quantadvisor.methods.fake import Fake, forward

    folder, tokens = scratch / "model", np.load(scratch / f"calibration-{number}.npy")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    wall, cpu = (theirs if side == THEIRS else partial(ours, side))(method, folder, model, tokens)
    reference = np.load(scratch / "reference.npy", mmap_mode="r")
    with torch.no_grad():
        rows = score(lambda window: forward(Fake(model), window), np.load(scratch / "windows.npy"), reference)
    return {"kl": float(rows[1].mean()), "top1": float(rows[2].mean()), "seconds": wall, "cpu": cpu}


Clock = tuple[float, float]
"""Seconds on the wall, and of all threads."""


def since(start: Clock = (0.0, 0.0)) -> Clock:
    return time.monotonic() - start[0], time.process_time() - start[1]


def ours(setting: str, method: str, folder: Path, model: Any, tokens: np.ndarray) -> Clock:
    import torch

    from quantadvisor.methods import awq, gptq, layerwise
    from quantadvisor.methods.schemes import scheme

    known = scheme(SCHEME)
    shrink, clips = {"default": (gptq.SHRINK, awq.CLIPS), "equal": ((1.0,), (1.0,))}[setting]
    start = since()
    if method == "gptq":
        found = layerwise.rounded(folder, known, tokens, partial(gptq.solve, shrink=shrink))
    else:
        found = awq.rounded(folder, known, tokens, clips)
    spent = since(start)
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, w in found.items():
            modules[name].weight.copy_(torch.from_numpy(w))
    return spent


def theirs(method: str, folder: Path, model: Any, tokens: np.ndarray) -> Clock:
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache

    IntermediatesCache.pin_memory = lambda self, *_, **__: None  # 0.14.0 pins memory for a GPU, and fails where there is none

    weights = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": GROUP, "dynamic": False}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    recipes = {
        "gptq": lambda: [GPTQModifier(config_groups=groups, ignore=["lm_head"], dampening_frac=0.01, actorder="static")],
        "awq": lambda: [AWQModifier(n_grid=20), QuantizationModifier(config_groups=groups, ignore=["lm_head"])],
    }
    data = Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": np.ones_like(tokens).tolist()})
    start = since()
    oneshot(model=model, dataset=data, recipe=recipes[method](), num_calibration_samples=len(tokens),
            max_seq_length=tokens.shape[1], processor=str(folder))  # fmt: skip
    return since(start)


if __name__ == "__main__":
    main()
