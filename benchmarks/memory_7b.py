"""What methods take in memory on layers of 7B shape: two layers of random weights, measured; 32 layers by arithmetic.

    python benchmarks/memory_7b.py [--work FOLDER] [CASE ...]      a case is method-scheme@runtime; none: all of CASES

Shape: hidden 4096, intermediate 11008, 32 heads, vocabulary 32000, lm_head of its own: two layers are 2.7 GB in float32, the
32 of a Llama of 7B are 27.0 GB. Every case runs in a process of its own. Told are the most anonymous memory that it had
(RssAnon), which no kernel can drop, and the most resident memory (VmHWM), in which what is mapped from files counts too; both
with the libraries. Children that an exporter starts are not counted: exporters of ONNX and OpenVINO hold the whole model.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CASES = (
    "none-bf16@torch", "rtn-w4-g64-bf16@vllm", "dynamic_int8-w8a8-bf16@vllm", "fp8-fp8-bf16@vllm", "smoothquant-w8a8-bf16@vllm",
    "awq-w4-g64-bf16@vllm", "gptq-w4-g64-bf16@torch", "none-fp32@llama.cpp", "gguf-q4_k@llama.cpp", "gguf_imatrix-q4_k@llama.cpp",
)  # fmt: skip
SHAPE = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
}
LAYERS, ALL_LAYERS = 2, 32
SAMPLES, LENGTH = 128, 128
"""The advisor's calibration."""
GIB = 1 << 30


class Measured(NamedTuple):
    anonymous_bytes: int
    resident_bytes: int
    seconds: float
    layer_bytes: int
    """Of a layer in the artifact."""
    other_bytes: int
    largest_bytes: int
    """Of the largest file of safetensors, which was held whole; 0 where there is none."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("/tmp/memory_7b"))
    parser.add_argument("cases", nargs="*", default=CASES)
    arguments = parser.parse_args()
    folder = arguments.work / "hf"
    if not folder.exists():
        in_child(build, folder)
    print(header())
    for case in arguments.cases:
        print(row(case, measured(case, folder, arguments.work)), flush=True)
    print(arithmetic())


def build(folder: Path) -> None:
    """Two layers in float32, N(0, 0.02) with seed 0, norms of ones; a file at a time."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from quantadvisor.methods.formats.huggingface import write_tensors

    config = LlamaConfig(**SHAPE, num_hidden_layers=LAYERS, tie_word_embeddings=False, architectures=["LlamaForCausalLM"])
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in AutoModelForCausalLM.from_config(config).state_dict().items()}
    draw = torch.Generator().manual_seed(0)

    def drawn() -> Iterator[tuple[str, Any]]:
        for name, shape in shapes.items():
            yield name, torch.ones(shape) if len(shape) == 1 else torch.empty(shape).normal_(0, 0.02, generator=draw)

    partial = folder.with_name("hf.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_tensors(partial, drawn())
    config.dtype = "float32"
    config.save_pretrained(partial)
    partial.rename(folder)


def measured(case: str, folder: Path, work: Path) -> Measured:
    out = work / case
    shutil.rmtree(out, ignore_errors=True)
    started = time.monotonic()
    anonymous, resident = in_child(apply, case, folder, out)
    seconds = time.monotonic() - started
    sizes = dict(stored(out))
    layers = sum(size for name, size in sizes.items() if "layers." in name or name.startswith("blk."))
    largest = max((path.stat().st_size for path in out.glob("*.safetensors")), default=0)
    shutil.rmtree(out)
    return Measured(anonymous, resident, seconds, layers // LAYERS, sum(sizes.values()) - layers, largest)


def stored(folder: Path) -> Iterator[tuple[str, int]]:
    """(name, bytes) of every tensor of an artifact."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            described = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, one in described.items():
            if name != "__metadata__":
                start, end = one["data_offsets"]
                yield name, end - start
    for path in folder.glob("*.gguf"):
        import gguf

        for tensor in gguf.GGUFReader(path).tensors:
            yield tensor.name, int(tensor.n_bytes)


def apply(case: str, folder: Path, out: Path) -> None:
    """In the child."""
    from quantadvisor.methods.registry import method
    from quantadvisor.methods.schemes import scheme

    name, runtime = case.split("@")
    name, wanted = name.split("-", 1)
    tokens = np.random.default_rng(0).integers(3, SHAPE["vocab_size"], (SAMPLES, LENGTH)).astype(np.int64)
    method(name).apply(folder, scheme(wanted), runtime, tokens, out)


def in_child(function: Any, *arguments: Any) -> tuple[int, int]:
    """(most anonymous, most resident bytes) of a process that calls it, looked at a hundred times a second."""
    child = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    child.start()
    anonymous = resident = 0
    while child.is_alive():
        try:
            fields = dict(line.split(":", 1) for line in Path(f"/proc/{child.pid}/status").read_text().splitlines())
        except OSError:
            break
        if "RssAnon" in fields:
            anonymous = max(anonymous, 1024 * int(fields["RssAnon"].split()[0]))
            resident = max(resident, 1024 * int(fields["VmHWM"].split()[0]))
        child.join(0.01)
    child.join()
    if child.exitcode:
        raise SystemExit(f"{function.__name__}{arguments} ended with {child.exitcode}")
    return anonymous, resident


def parameters(layers: int) -> tuple[int, int]:
    """(of so many layers, of the embedding table and lm_head)"""
    hidden, inner = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    return layers * (4 * hidden**2 + 3 * hidden * inner + 2 * hidden), 2 * SHAPE["vocab_size"] * hidden + hidden


def header() -> str:
    two = ("two layers: anonymous, GB", "resident, GB", "s", "artifact, GB")
    titles = ("candidate", *two, "32 layers: anonymous at most, GB", "artifact, GB")
    return "| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|"


def row(case: str, found: Measured) -> str:
    """Of 32 layers: a layer is dropped before the next is read, so memory is that of two, and of a file of the result as much
    more as two layers did not fill."""
    from quantadvisor.methods.formats.huggingface import SHARD_BYTES

    unfilled = max(0, SHARD_BYTES - found.largest_bytes) if found.largest_bytes else 0
    small, large = (found.other_bytes + found.layer_bytes * layers for layers in (LAYERS, ALL_LAYERS))
    anonymous, resident, small, most, large = (
        f"{size / 1e9:.1f}"
        for size in (found.anonymous_bytes, found.resident_bytes, small, found.anonymous_bytes + unfilled, large)
    )
    return f"| {case} | {anonymous} | {resident} | {found.seconds:.0f} | {small} | {most} | {large} |"


def arithmetic() -> str:
    layers, table = parameters(ALL_LAYERS)
    count, whole, one = layers + table, 4 * (layers + table) / 1e9, 4 * parameters(1)[0] / 1e9
    hidden = 4 * SAMPLES * LENGTH * SHAPE["hidden_size"] / 1e9
    return f"""
32 layers have {count / 1e9:.2f} G parameters: {whole:.1f} GB in float32, more than 24 GiB ({24 * GIB / 1e9:.1f} GB). A layer is
{one:.2f} GB, the table and lm_head {4 * table / 1e9:.2f} GB, the hidden states of {SAMPLES} x {LENGTH} tokens {hidden:.2f} GB.
What a method holds does not grow with the layers (tests/methods/test_peak_memory.py); seconds do, by less than 16 times.
Artifacts of onnxruntime and openvino start from an export that holds the whole float32 model, {whole:.1f} GB and its graph on
top: out of reach in 24 GiB unless the export is given, made on a larger machine (`base`)."""


if __name__ == "__main__":
    main()
