"""What holds one layer at a time: applied to six layers, a method takes no more memory than on two of the same shape.

Counted is anonymous memory (RssAnon of /proc/self/status, sampled every millisecond in the process that applies): what is only
mapped from files, as the weights are that are read, is dropped by the kernel when memory is short, and fits any machine.
Of a result, memory holds one file at a time: its size is scaled down here with the shape of the layers. OpenVINO's graph holds
the integers of all layers until it is saved: an eighth or a quarter of what they take in float32. Exports are made before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from quantadvisor.methods.registry import METHODS

from .conftest import write_llama

SIZES = {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "num_key_value_heads": 8}
LAYER_BYTES = 4 * (4 * 512 * 512 + 3 * 512 * 1408)
FEW, MANY = 2, 6

STREAMED = [
    ("none", "bf16", "torch"), ("none", "fp32", "llama.cpp"), ("rtn", "w4-g64-bf16", "vllm"), ("gptq", "w4-g64-bf16", "torch"),
    ("awq", "w4-g64-bf16", "vllm"), ("dynamic_int8", "w8a8-bf16", "vllm"), ("smoothquant", "w8a8-bf16", "vllm"),
    ("fp8", "fp8-bf16", "vllm"), ("fp8", "fp8-static-bf16", "vllm"), ("kv_fp8", "bf16-kvf8", "vllm"),
    ("gguf", "q4_0", "llama.cpp"), ("gguf_imatrix", "q4_0", "llama.cpp"),
    ("rtn", "w4-g64", "onnxruntime"), ("awq", "w4-g64", "onnxruntime"), ("smoothquant", "w8a8", "onnxruntime"),
    ("smoothquant_gptq", "w8a8", "onnxruntime"),
    ("static_int8", "w8a8-static", "onnxruntime"), ("llm_int8", "w8a8-outlier", "onnxruntime"),
    ("kbit", "nf4-b64", "onnxruntime"), ("lkd", "w4-g64", "onnxruntime"), ("rotation", "w8a8", "onnxruntime"),
    ("kv_int8", "fp32-kv8", "onnxruntime"), ("kv_int4", "fp32-kv4", "onnxruntime"),
    ("awq", "w4-g64", "openvino"), ("smoothquant", "w8a8-static", "openvino"),
]  # fmt: skip
OPENVINO = find_spec("openvino") is not None and find_spec("optimum") is not None
SAME_FRAME = {"obq"}
"""Through `layerwise.py`, as gptq; K^3 for each of N rows takes too long to be measured here."""
WHOLE = {"mixed", "qlora", "qlora_merged", "gptq_lora", "llm_qat"}
"""Gradients of the whole model, or two of it: refused where memory has no room (test_refusals.py)."""
SIMULATED = {"fpq", "turboquant", "kivi", "zeroquant", "fpq_activations"}
"""They write nothing: no runtime here could load it."""

CHILD = """
import json, sys, threading, time
from pathlib import Path

import numpy as np

from quantadvisor.methods.formats import huggingface
from quantadvisor.methods.registry import method
from quantadvisor.methods.schemes import scheme

root, cases, layer_bytes = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
huggingface.SHARD_BYTES = layer_bytes // 2
tokens = np.load(root / "tokens.npy")
peak, over = 0, threading.Event()

def watch():
    global peak
    while not over.is_set():
        text = Path("/proc/self/status").read_text()
        peak = max(peak, 1024 * int(text.split("RssAnon:")[1].split()[0]))
        time.sleep(0.001)

threading.Thread(target=watch, daemon=True).start()
for name, wanted, runtime in cases:
    found = []
    for layers in (2, 6):  # libraries are loaded by the first, and stay
        peak, out = 0, root / f"{name}-{wanted}-{runtime}-{layers}"
        base = root / f"{runtime}-{layers}" if runtime in ("onnxruntime", "openvino") else None
        more = {"train_s": 2.0} if name == "lkd" else {}
        try:
            method(name).apply(root / f"hf-{layers}", scheme(wanted), runtime, tokens, out, base=base, **more)
        except Exception as error:
            found = repr(error)
            break
        found.append(peak)
    print(json.dumps([name, wanted, runtime, found]), flush=True)
over.set()
"""


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], Any]:
    """Bytes at most on two layers and on six, by (method, scheme, runtime); one process applies them all."""
    from quantadvisor.methods.artifact import format_of

    root = tmp_path_factory.mktemp("peaks")
    for layers in (FEW, MANY):
        write_llama(root / f"hf-{layers}", num_hidden_layers=layers, **SIZES)
        for runtime in ("onnxruntime", "openvino"):
            if runtime != "openvino" or OPENVINO:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the exporters' own deprecations
                    format_of(runtime).export_base(root / f"hf-{layers}", root / f"{runtime}-{layers}")
    np.save(root / "tokens.npy", np.random.default_rng(0).integers(3, 256, (12, 32)).astype(np.int64))
    arguments = [sys.executable, "-c", CHILD, str(root), json.dumps(STREAMED), str(LAYER_BYTES)]
    # what is freed goes back to the kernel at once, else the allocator's hoard is counted too
    own = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(arguments, env=os.environ | own, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return {(name, wanted, runtime): found for name, wanted, runtime, found in lines}


@pytest.mark.slow
@pytest.mark.parametrize("case", STREAMED, ids="-".join)
def test_added_layers_take_no_memory(case: tuple[str, str, str], peaks: dict[tuple[str, str, str], Any]) -> None:
    if case[0].startswith("gguf"):
        pytest.importorskip("llama_cpp", reason="llama.cpp is not here: make runtime-llama")
    if case[2] == "openvino" and not OPENVINO:
        pytest.skip("openvino or optimum-intel is not here")
    assert isinstance(peaks[case], list), peaks[case]
    few, many = peaks[case]
    assert many - few < (MANY - FEW) * LAYER_BYTES / 2


def test_every_method_streams_or_says_why_not() -> None:
    streamed = {name for name, _, _ in STREAMED}
    assert streamed | SAME_FRAME | WHOLE | SIMULATED == set(METHODS)
    assert len(streamed) + len(SAME_FRAME) + len(WHOLE) + len(SIMULATED) == len(METHODS)
