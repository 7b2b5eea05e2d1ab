"""The artifact in the output folder, its hashes, and the commands that serve it, each executed once."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from quantadvisor.documents import Artifact, Candidate, Serve
from quantadvisor.methods.formats.folders import link_or_copy
from quantadvisor.profiling.environments import interpreter_of

from .candidates import session_options
from .model_cache import sha256_of

PROMPT = "The capital of France is"

COMMANDS = {
    "onnxruntime-genai": (
        "import onnxruntime_genai as og; m = og.Model({path!r}); t = og.Tokenizer(m); p = og.GeneratorParams(m); "
        "p.set_search_options(max_length=24, do_sample=False); g = og.Generator(m, p); g.append_tokens(t.encode({prompt!r})); "
        "[g.generate_next_token() for _ in iter(g.is_done, True)]; print(t.decode(g.get_sequence(0)))"
    ),
    "openvino-genai": (
        "import openvino_genai as og; p = og.LLMPipeline({path!r}, 'CPU', INFERENCE_PRECISION_HINT={hint!r}); "
        "print({prompt!r} + str(p.generate({prompt!r}, max_new_tokens=12, apply_chat_template=False)))"
    ),
    "llama.cpp": (
        "from llama_cpp import Llama; m = Llama({path!r} + '/model.gguf', n_ctx=512, verbose=False); "
        "print({prompt!r} + m({prompt!r}, max_tokens=12, temperature=0)['choices'][0]['text'])"
    ),
    "vllm": (
        "from vllm import LLM, SamplingParams as P; "
        "m = LLM({path!r}, max_model_len=512, enforce_eager=True, gpu_memory_utilization=0.5); "
        "print({prompt!r} + m.generate({prompt!r}, P(max_tokens=12, temperature=0))[0].outputs[0].text)"
    ),
    "triton": "-m quantadvisor.profiling.triton_complete {path} {prompt!r}{cache}",
    "torch": (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; t = T.from_pretrained({path!r}); "
        "m = M.from_pretrained({path!r}, dtype='auto'); x = t({prompt!r}, return_tensors='pt'); "
        "print(t.decode(m.generate(**x, max_new_tokens=12, do_sample=False)[0]))"
    ),
}
FORMATS = {
    "onnx": "ONNX (GroupQueryAttention)",
    "openvino": "OpenVINO IR",
    "torch": "safetensors",
    "gguf": "GGUF",
    "compressed": "compressed-tensors",
}
SERVERS = {
    "onnx": ("onnxruntime-genai",),
    "openvino": ("openvino-genai",),
    "torch": ("torch",),
    "gguf": ("llama.cpp",),
    "compressed": ("vllm", "triton"),
}


def place_artifact(source: Path, out: Path, kind: str, choice: Candidate, python: str) -> Artifact:
    """Put the artifact at DIR/artifact (whole or not at all) and try its serve commands with the runtime's interpreter
    `python`; another runtime that reads the same folder has its own."""
    target, scratch = out / "artifact", out / ".artifact.tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(
        source, scratch, copy_function=lambda a, b: link_or_copy(Path(a), Path(b)), ignore=shutil.ignore_patterns("built.json")
    )
    shutil.rmtree(target, ignore_errors=True)
    scratch.rename(target)
    hashes = {str(p.relative_to(target)): sha256_of(p) for p in sorted(target.rglob("*")) if p.is_file()}
    shared = kind == "compressed"
    serve = tuple(
        try_serve(server, target, choice, interpreter_of(server) if shared and server != choice.runtime else python)
        for server in SERVERS[kind]
    )
    return Artifact(path="artifact", format=FORMATS[kind], sha256=hashes, serve=serve)


def try_serve(server: str, folder: Path, choice: Candidate, python: str) -> Serve:
    """Run the command once in a shell, in the output folder: verified where it exits with 0 and continues the prompt."""
    hint = "bf16" if "bf16" in choice.options else "f32"
    options = session_options(choice.runtime, choice.options, choice.scheme)
    cache = "".join(f" --cache {option}" for option in options if choice.runtime == server == "triton")
    code = COMMANDS[server].format(path=folder.name, prompt=PROMPT, hint=hint, cache=cache)
    shown = "python" if python == sys.executable else shlex.quote(python)
    called = code if code.startswith("-m ") else f'-c "{code}"'  # COMMANDS hold nothing that a shell reads in double quotes
    command = f"{shown} {called}"
    line = shlex.quote(python) + command.removeprefix(shown)
    try:
        done = subprocess.run(
            line, shell=True, cwd=folder.parent, capture_output=True, text=True, timeout=180, check=False,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Serve(runtime=server, command=command, verified=False, reason="no completion within 180 s")
    lines = done.stdout.strip().splitlines()
    said = lines[-1] if lines else ""
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
        return Serve(runtime=server, command=command, verified=False, reason=f"exit code {done.returncode}: {reason}")
    coherent = PROMPT in done.stdout and len(done.stdout.strip()) > len(PROMPT) + 3
    return Serve(runtime=server, command=command, verified=coherent, reason=None if coherent else f"it said {said[:80]!r}")
