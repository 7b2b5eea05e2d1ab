"""Runtimes on a GPU that is not there, loaded by the real worker: times by planted physics, logits nearly the reference's.

A copy named torch.py, vllm.py or triton.py is that runtime. A pass sleeps what its linears take on a GPU of READ_BYTES_PER_S
and FLOPS_PER_S, whose kernels are SLOWER than those roofs, and what its runtime adds. torch without the option `cuda` is the
real one, on the CPU. Logits are the reference's, but for INT4, whose are far off; 8-bit weights in groups end in an error.
"""

import json
import os
import sys
import time
from pathlib import Path

NAME = Path(__file__).stem
PLACE = "5"
VOCABULARY = 128
READ_BYTES_PER_S = 6e6
FLOPS_PER_S = {"bf16": 0.10e9, "int8": 0.15e9, "fp8": 0.20e9}
SLOWER = 1.3
FIXED_S = {"torch": 0.015, "vllm": 0.004, "triton": 0.006}
"""Of any pass, beside its linears."""
WEIGHTS = {"bfloat16": (2.0, "bf16"), "float16": (2.0, "bf16"), "int-quantized": (1.0, "int8"), "float-quantized": (1.0, "fp8"),
           "pack-quantized": (0.53, "bf16")}  # fmt: skip
"""Bytes of a weight with its scales, and what multiplies."""


def product_s(kind, rows, n, k):
    """Seconds of y[rows, n] = x[rows, k] @ w[n, k].T: reading weights and activations, or arithmetic."""
    size, number = WEIGHTS[kind]
    reading = (size * n * k + 2 * rows * (n + k)) / READ_BYTES_PER_S
    return SLOWER * max(reading, 2 * rows * n * k / FLOPS_PER_S[number])


def real_torch():
    """As the worker that we are in loads a runtime."""
    worker = sys.modules["__main__"]
    load = getattr(worker, "load_file", None) or worker.load_runtime
    return load(os.environ["QA_REAL_TORCH"])


def refuse(path, options, isa):
    return None if NAME == "triton" or "cuda" in options else f"{NAME} has no CPU build here"


def warm_imports():
    import numpy  # noqa: F401


def open_session(path, options, threads):
    if NAME == "torch" and "cuda" not in options:
        return real_torch().open_session(path, options, threads)
    if os.environ.get("CUDA_VISIBLE_DEVICES") != PLACE or os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        raise RuntimeError(f"sees CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')}, not {PLACE}")
    return VirtualSession(path)


class VirtualSession:
    def __init__(self, path):
        config = json.loads((Path(path) / "config.json").read_text())
        settings = config.get("quantization_config") or {}
        self.kind = settings.get("format") or config.get("dtype") or config["torch_dtype"]
        if "'num_bits': 8" in str(settings) and self.kind == "pack-quantized":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        hidden, inner, self.layers = (config[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
        cached = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
        attention = [(hidden, hidden), (cached, hidden), (cached, hidden), (hidden, hidden)]
        self.shapes = [*attention, (inner, hidden), (inner, hidden), (hidden, inner)]
        self.hidden = hidden
        self.scored = 0

    def linears_s(self, rows, head_rows):
        layer = sum(product_s(self.kind, rows, n, k) for n, k in self.shapes)
        return self.layers * layer + product_s("bfloat16", head_rows, VOCABULARY, self.hidden)

    def prefill(self, tokens, capacity):
        time.sleep(self.linears_s(tokens.size, len(tokens)) + FIXED_S[NAME])
        return self.logits(len(tokens))

    def decode(self, tokens):
        time.sleep(self.linears_s(len(tokens), len(tokens)) + FIXED_S[NAME])
        return self.logits(len(tokens))

    def logits(self, rows):
        import numpy as np

        return np.tile(np.arange(VOCABULARY, dtype=np.float32), (rows, 1))

    def fill(self, batch, capacity):
        pass

    def score(self, tokens, chunk):
        """The reference, window after window."""
        import numpy as np

        folder = Path(os.environ["QUANTADVISOR_CACHE"]) / "derived"
        reference = np.load(next(folder.glob("*/reference-*-0-2048.npy")), mmap_mode="r")
        rows = reference[self.scored : self.scored + len(tokens)].astype(np.float32)
        self.scored += len(tokens)
        yield 50 * rows if self.kind == "pack-quantized" else rows

    def operators(self, tokens, batch):
        rows = len(tokens)
        phases = {}
        for phase, linears in (("prefill", self.linears_s(tokens.size, rows)), ("decode", self.linears_s(rows, rows))):
            parts = {"linears_s": linears, "attention_s": 0.0, "cache_s": 0.0, "other_s": FIXED_S[NAME]}
            counts = {"operators": [], "linears": 14, "quantized_linears": 0 if "float1" in self.kind else 14}
            phases[phase] = {**counts, "wall_s": linears + FIXED_S[NAME], "notes": ["planted"], **parts}
        return phases

    def close(self):
        pass
