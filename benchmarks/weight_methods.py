"""What rounding weights costs the embedded model, method by method: mean KL by fake quantization, and seconds to round.

    python benchmarks/weight_methods.py [--tokens 2048] [--samples 64] [rtn-w4-g64 gptq-w4-g64 …]

Each line: method-scheme, mean KL in nats a token with its 95 % interval, top-1 agreement, seconds (rounding and scoring).
lm_head and the embedding stay in fp32 here. The evaluation text shares no passage with the calibration text.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from quantadvisor.advisor.builtin_model import NAME, resolve
from quantadvisor.advisor.context import CALIBRATION_LENGTH, WINDOW, cache_folder
from quantadvisor.advisor.risk import Job, simulate
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.quality import quality_of
from quantadvisor.profiling.text import calibration_tokens, evaluation_tokens

DEFAULT = (
    "rtn-w4-g64", "gptq-w4-g64", "awq-w4-g64", "rtn-w3-g64", "gptq-w3-g64", "awq-w3-g64", "kbit-nf4-b64", "kbit-e2m1-b64",
    "kbit-quantile4-b64", "kbit-dynamic4-b64", "kbit-int4-b64", "kbit-nf4-b1024", "kbit-int3-b64", "kbit-int3-b64-p2", "fpq-wfp4",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=DEFAULT)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--samples", type=int, default=64)
    asked = parser.parse_args()
    folder, _ = resolve(NAME, cache_folder(), print)
    windows = evaluation_tokens(folder, asked.tokens)[0].reshape(-1, WINDOW)
    with tempfile.TemporaryDirectory() as scratch:
        reference, calibration = Path(scratch) / "reference.npy", Path(scratch) / "calibration.npy"
        np.save(calibration, calibration_tokens(folder, 128, CALIBRATION_LENGTH)[0])
        np.save(reference, reference_of(folder, windows))
        for name in asked.names:
            start = time.monotonic()
            made = scheme(name.split("-", 1)[1])
            rows = simulate(Job(folder, {name: made}, calibration, asked.samples), windows, reference)[name]
            found = quality_of(rows, "built in", simulated=True)
            interval = f"{found.kl.mean:.4f} [{found.kl.low:.4f}, {found.kl.high:.4f}]"
            print(f"{name:24} KL {interval}  top-1 {found.top1.mean:.3f}  {time.monotonic() - start:.0f} s", flush=True)


def reference_of(folder: Path, windows: np.ndarray) -> np.ndarray:
    """float16 [tokens, V]: log-probabilities of the fp32 model."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        parts = [torch.log_softmax(model(torch.from_numpy(w[None])).logits[0], -1).numpy() for w in windows]
    return np.concatenate(parts).astype(np.float16)


if __name__ == "__main__":
    main()
