"""Each runtime's path on the GPU, on a tiny random model: does it compute what torch does in fp32 on the CPU, and there?

Right: the mean KL divergence of its next-token distributions is at most LIMIT, with the whole context at once and with a cache
that chunks were written into, and its own evidence names something that ran on the GPU. A random model shows a wrong kernel, a
wrong cache or a silent fallback as well as a large one; it says nothing of speed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from rich.markup import escape

from quantadvisor.documents import CandidateFailed, RuntimeCheck
from quantadvisor.kernels.timing_cache import versions
from quantadvisor.methods.registry import method
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.environments import interpreter_of, refusal
from quantadvisor.profiling.runtimes.registry import runtime_file
from quantadvisor.profiling.workers import RunningWorker

PLACES = (
    ("torch", "fp32", ("cuda",)),
    ("torch", "fp32", ("cuda", "compile")),
    ("onnxruntime", "fp32", ("cuda",)),
    ("onnxruntime", "fp32", ("tensorrt",)),
    ("onnxruntime-genai", "fp32", ("cuda",)),
    ("llama.cpp", "bf16", ("cuda",)),
    ("llama.cpp", "bf16", ("cuda", "fa")),
    ("vllm", "bf16", ("cuda",)),
    ("triton", "bf16", ()),
)
"""Runtime, unquantized scheme, options: of every place of candidates on a GPU."""
LIMIT = 0.01
"""nats. bfloat16 keeps 8 bits: logits of this model move by about a hundredth, and KL by half the square of that."""
ROWS, LENGTH, CHUNK = 2, 48, 16
SIZES = {
    "vocab_size": 640, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
"""Heads of 64, which every attention kernel takes; GenAI's builder knows lm_head by a size that no other linear has."""
GPU_MARKS = ("cuda", "tensorrt")


def checks(places: tuple[tuple[str, str, tuple[str, ...]], ...] = PLACES) -> tuple[RuntimeCheck, ...]:
    """One check for each place; what cannot run here is refused with its reason."""
    with tempfile.TemporaryDirectory(prefix="quantadvisor-selfcheck-") as scratch:
        root = Path(scratch)
        folder = tiny_model(root / "model")
        windows = np.random.default_rng(0).integers(3, SIZES["vocab_size"], (ROWS, LENGTH)).astype(np.int64)
        with RunningWorker(runtime_file("torch"), folder, (), 1) as worker:
            worker.write_reference(windows, root / "reference.npy")
        return tuple(check(root, folder, windows, *place) for place in places)


def check(root: Path, folder: Path, windows: np.ndarray, name: str, scheme_name: str, options: tuple[str, ...]) -> RuntimeCheck:
    """`root` holds the reference, log-probabilities of `windows` [W, S], and takes the artifact."""
    python = interpreter_of(name)
    one = RuntimeCheck(name=name, options=options, versions=versions(name, python))
    if refused := refusal(name, python, None, options, ()) or method("none").refuse(folder, scheme(scheme_name), name):
        return one.model_copy(update={"refused": refused})
    artifact = root / "-".join((name, *options))
    try:
        method("none").apply(folder, scheme(scheme_name), name, windows, artifact)
        with RunningWorker(runtime_file(name), artifact, options, 1, python=python) as worker:
            kl = float(np.max([worker.score(windows, root / "reference.npy", chunk)[1].mean() for chunk in (None, CHUNK)]))
            phases = worker.operators(windows)
            memory_from = worker.generate(windows, 4).memory_from
    except Exception as error:  # whatever a library says: it is the finding
        said = str(error) if isinstance(error, CandidateFailed) else f"{type(error).__name__}: {error}"
        return one.model_copy(update={"reason": " ".join(said.split())[:400]})
    rows = [row for phase in phases.values() for row in phase["operators"]]
    there = {row["name"] for row in rows if any(mark in row["provider"].lower() for mark in GPU_MARKS)}
    wrong = f"KL of {kl:.2g} nats from torch in fp32, more than {LIMIT}" if not kl <= LIMIT else ""
    reason = wrong or ("" if there else "nothing of it was seen to run on the GPU")
    found = {
        "right": not reason,
        "reason": reason,
        "kl": kl if np.isfinite(kl) else None,
        "on_gpu": tuple(sorted(there)),
        "memory_from": memory_from,
    }
    return one.model_copy(update=found)


def tiny_model(folder: Path) -> Path:
    """A random Llama with a tokenizer of one word a token, as a Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.08, tie_word_embeddings=True)).float().save_pretrained(folder)
    words = Tokenizer(WordLevel({f"t{i}": i for i in range(SIZES["vocab_size"])}, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="t0", eos_token="t2", bos_token="t1").save_pretrained(folder)
    return folder


def line(found: RuntimeCheck) -> str:
    """One line for a terminal."""
    name = "+".join((found.name, *found.options))
    if found.refused is not None:
        return f"[dim]- {name}: {escape(found.refused)}[/dim]"
    if not found.right:
        return f"[red]✗[/red] {name}: {escape(found.reason)}"
    return f"[green]✓[/green] {name}: KL {found.kl:.1e} nats; {len(found.on_gpu)} kernels on the GPU; {escape(found.memory_from)}"
