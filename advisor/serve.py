"""The artifact in the output folder, its hashes, and the commands that serve it, each executed once."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from quantadvisor.documents import Artifact, Candidate, CandidateFailed, Serve
from quantadvisor.kernels import triton_modules
from quantadvisor.kernels.processes import run
from quantadvisor.methods.formats.folders import link_or_copy
from quantadvisor.methods.formats.huggingface import settings_of
from quantadvisor.profiling.environments import interpreter_of, refusal
from quantadvisor.profiling.runtimes import vllm
from quantadvisor.profiling.served import Launch, OwnServer, free_port
from quantadvisor.profiling.server import RunningServer
from quantadvisor.profiling.text import text_encoder
from quantadvisor.profiling.workers import RunningWorker

from .candidates import session_options
from .gate_inspect import incoherent
from .model_cache import sha256_of

PROMPT = "The capital of France is"
TOKENS = 12
"""At most, of its continuation."""
SAME_WORDS = 2
"""That begin as the measured worker's do: later ones may differ where two tokens are about as likely."""
LEAST_PIECES = 6
"""A continuation of fewer words and signs is not called incoherent."""
PORT = 8000
"""Of the command as it is shown; it is tried on a free one."""
START_LIMIT_S, COMMAND_LIMIT_S = 300.0, 180.0

COMMANDS = {
    "onnxruntime-genai": (
        "import onnxruntime_genai as og; c = og.Config({path!r}){options}; m = og.Model(c); t = og.Tokenizer(m); "
        "p = og.GeneratorParams(m); "
        "p.set_search_options(max_length=24, do_sample=False); g = og.Generator(m, p); g.append_tokens(t.encode({prompt!r})); "
        "[g.generate_next_token() for _ in iter(g.is_done, True)]; print(t.decode(g.get_sequence(0)))"
    ),
    "openvino-genai": (
        "import openvino_genai as og; p = og.LLMPipeline({path!r}, 'CPU'{options}); "
        "print({prompt!r} + str(p.generate({prompt!r}, max_new_tokens=12, apply_chat_template=False)))"
    ),
    "llama.cpp": (
        "from llama_cpp import Llama; m = Llama({path!r} + '/model.gguf', n_ctx=512, verbose=False{options}); "
        "print({prompt!r} + m({prompt!r}, max_tokens=12, temperature=0)['choices'][0]['text'])"
    ),
    "triton": "-m quantadvisor.profiling.triton_complete {path} {prompt!r}{options}",
    "torch": (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; t = T.from_pretrained({path!r}); "
        "m = M.from_pretrained({path!r}, dtype='auto'{options}); x = t({prompt!r}, return_tensors='pt').to(m.device); "
        "print(t.decode(m.generate(**x, max_new_tokens=12, do_sample=False)[0]))"
    ),
}
SAID: dict[str, dict[str, str]] = {
    "onnxruntime-genai": {"cuda": "; c.clear_providers(); c.append_provider('cuda')"},
    "openvino-genai": {
        "f32": ", INFERENCE_PRECISION_HINT='f32'",
        "bf16": ", INFERENCE_PRECISION_HINT='bf16'",
        "kvf16": ", KV_CACHE_PRECISION='f16'",
        "kvu8": ", KV_CACHE_PRECISION='u8'",
    },
    "llama.cpp": {
        "fa": ", flash_attn=True",
        "kvq8": ", type_k=8, type_v=8",
        "kvq4": ", type_k=2, type_v=2",
        "cuda": ", n_gpu_layers=-1",
    },
    "torch": {"cuda": ", device_map='cuda'"},
    "triton": {cache: f" --cache {cache}" for cache in ("kvint8", "kvint4", "kvfp8", "kvturbo")},
}
"""What a command says for each option of a candidate (llama.cpp's numbers are ggml's types: 8 is q8_0, 2 is q4_0)."""
FORMATS = {"onnx": "ONNX (GroupQueryAttention)", "openvino": "OpenVINO IR", "gguf": "GGUF"}
SERVERS = {"onnx": ("onnxruntime-genai",), "openvino": ("openvino-genai",), "gguf": ("llama.cpp",)}
HUGGING_FACE = {
    "": ("safetensors", ("torch", "vllm")),
    "gptq": ("GPTQ", ("torch", "vllm")),
    "awq": ("AWQ", ("torch", "vllm")),
    "bitsandbytes": ("bitsandbytes", ("torch",)),
    "fp8": ("FP8", ("torch", "vllm")),
    "compressed-tensors": ("compressed-tensors", ("vllm", "torch")),
}
"""quant_method of a Hugging Face folder -> (its format, who loads it beside the runtime that was chosen, and triton where that
has a kernel for it)."""


def continued(folder: Path, worker: RunningWorker) -> str:
    """The worker's own greedy continuation of the prompt; "" where the model's folder has no tokenizer to ask it by."""
    if not (folder / "tokenizer.json").is_file():
        return ""
    prefix, encode, decode = text_encoder(folder)
    prompt = [*prefix, *encode(PROMPT)]
    made = worker.generate(np.asarray([prompt], np.int64), TOKENS).generated[0]
    return decode([*prompt, *made]).removeprefix(decode(prompt))


def wrong_with(said: str, expected: str) -> str | None:
    """Why a continuation is not what the artifact says: nothing, one or two words over and over, or another beginning than the
    measured worker's (`expected`; "" where that is not known). None where it may be."""
    pieces = re.findall(r"\w+|[^\w\s]", said)
    if not pieces:
        return "it said nothing"
    if incoherent(pieces, LEAST_PIECES) or re.fullmatch(r"(\S{1,12}?)\1{3,}", said.strip()):
        return f"it is incoherent: {said.strip()[:80]!r}"
    pairs = list(zip(said.split(), expected.split(), strict=False))[:SAME_WORDS]
    if all(mine.startswith(theirs) or theirs.startswith(mine) for mine, theirs in pairs):
        return None
    return f"it said {said.strip()[:40]!r} where the worker that was measured says {expected.strip()[:40]!r}"


def place_artifact(
    source: Path,
    out: Path,
    kind: str,
    choice: Candidate,
    python: str,
    pool: int,
    threads: int,
    expected: str,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Artifact:
    """Put the artifact at DIR/artifact (whole or not at all) and try its serve commands with the runtime's interpreter
    `python`; another runtime that reads the same folder has its own. `pool`: bytes of vLLM's cache; `expected`: what
    `continued` gave; `environment`: what shows them the device."""
    target, scratch = out / "artifact", out / ".artifact.tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(
        source, scratch, copy_function=lambda a, b: link_or_copy(Path(a), Path(b)), ignore=shutil.ignore_patterns("built.json")
    )
    shutil.rmtree(target, ignore_errors=True)
    scratch.rename(target)
    hashes = {str(p.relative_to(target)): sha256_of(p) for p in sorted(target.rglob("*")) if p.is_file()}
    serve = []
    called, servers = loaders_of(kind, target, choice.runtime)
    for server in servers:
        own = interpreter_of(server) if kind not in FORMATS and server != choice.runtime else python
        if server == "vllm":
            serve.append(try_vllm(target, choice, own, pool, threads, expected, environment))
        else:
            serve.append(try_serve(server, target, choice, own, expected, environment))
    return Artifact(path="artifact", format=called, sha256=hashes, serve=tuple(serve))


def loaders_of(kind: str, folder: Path, runtime: str) -> tuple[str, tuple[str, ...]]:
    """(format of the artifact in words, the runtimes that load it, the chosen one first)."""
    if kind in FORMATS:
        return FORMATS[kind], SERVERS[kind]
    settings = settings_of(folder)
    stored = settings.get("quant_method", "")
    called, servers = HUGGING_FACE.get(stored, (stored, ()))
    kernels = () if triton_modules.refusal(settings) else ("triton",)
    return called, tuple(dict.fromkeys((runtime, *servers, *kernels)))


def options_for(server: str, choice: Candidate) -> tuple[str, ...]:
    """What the candidate was measured with, where the server is of its runtime; another runtime has options of its own, and of
    these the GPU alone."""
    if server.removesuffix("-genai") != choice.runtime.removesuffix("-genai"):
        return tuple(option for option in choice.options if server in ("vllm", "torch") and vllm.on_gpu((option,)))
    return session_options(choice.runtime, choice.options, choice.scheme)


def shown_python(python: str) -> str:
    return "python" if python == sys.executable else shlex.quote(python)


def try_vllm(
    folder: Path,
    choice: Candidate,
    python: str,
    pool: int,
    threads: int,
    expected: str,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Serve:
    """vLLM's server, started once on a free port and asked to continue the prompt."""
    options = (*options_for("vllm", choice), f"{vllm.POOL}{pool}")
    words, _ = vllm.server(folder.name, options, PORT, folder.name, threads)
    command = f"{shown_python(python)} {shlex.join(words)}"
    if choice.runtime != "vllm" and (reason := refusal("vllm", python, None, options[:-1], ())):
        return Serve(runtime="vllm", command=command, verified=False, reason=reason)
    port = free_port()
    arguments, variables = vllm.server(str(folder), options, port, folder.name, threads)
    try:
        launch = Launch(arguments, variables | dict(environment), port, folder.name)
        with OwnServer(python, launch, threads, START_LIMIT_S) as server:
            asked = RunningServer(server.url, 1, folder.name, seed=0, side="")
            asked.ready()
            said = "".join(asked.greedy(PROMPT, TOKENS))
    except CandidateFailed as error:
        return Serve(runtime="vllm", command=command, verified=False, reason=str(error))
    reason = wrong_with(said, expected)
    return Serve(runtime="vllm", command=command, verified=reason is None, reason=reason)


def command_of(server: str, folder: Path, choice: Candidate, python: str) -> str:
    said = "".join(SAID.get(server, {}).get(option, "") for option in options_for(server, choice))
    code = COMMANDS[server].format(path=folder.name, prompt=PROMPT, options=said)
    called = code if code.startswith("-m ") else f'-c "{code}"'  # COMMANDS hold nothing that a shell reads in double quotes
    return f"{shown_python(python)} {called}"


def try_serve(
    server: str,
    folder: Path,
    choice: Candidate,
    python: str,
    expected: str,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Serve:
    """Run the command once in a shell, in the output folder: verified where it exits with 0 and continues the prompt as it
    should."""
    command = command_of(server, folder, choice, python)
    line = shlex.quote(python) + command.removeprefix(shown_python(python))
    if unsaid := [option for option in options_for(server, choice) if option not in SAID.get(server, {})]:
        reason = f"the command cannot say {unsaid[0]}, which the candidate was measured with"
        return Serve(runtime=server, command=command, verified=False, reason=reason)
    try:
        done = run(["/bin/sh", "-c", line], os.environ | {"HF_HUB_OFFLINE": "1", **environment}, COMMAND_LIMIT_S, folder.parent)
    except CandidateFailed as error:
        return Serve(runtime=server, command=command, verified=False, reason=str(error))
    if done.code != 0:
        reason = (done.errors.strip().splitlines() or ["no message"])[-1][:200]
        return Serve(runtime=server, command=command, verified=False, reason=f"exit code {done.code}: {reason}")
    _, prompted, said = done.out.rpartition(PROMPT)
    wrong = wrong_with(said, expected) if prompted else f"it does not continue the prompt: {said.strip()[-80:]!r}"
    return Serve(runtime=server, command=command, verified=wrong is None, reason=wrong)
