"""llama.cpp through llama-cpp-python's low-level interface: one GGUF file, one sequence of the cache per row.

Loads a folder with `model.gguf`, or a `.gguf` file. Options: `fa` (flash attention; off without it: at long contexts
either may be the faster), `kvq8` or `kvq4` (a cache of Q8_0 or Q4_0 blocks, which needs `fa`; float16 without), `plain`
(no repacked weights: some builds crash in their AMX path, and this avoids it), `cuda` (all layers and the cache on the first
GPU; never run on one). Without `cuda` everything stays on the CPU.

The package is built from its source for this CPU (`make runtime-llama`). Prefill takes one row after the other, as its
server does with requests of that length; a decode step takes all rows at once.
"""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from . import nvidia

NAME = "llama.cpp"

OPTIONS = ("fa", "kvq8", "kvq4", "plain", nvidia.CUDA)
CUDA_BUILD = (
    "CMAKE_ARGS='-DGGML_CUDA=ON -DGGML_NATIVE=ON' pip install --force-reinstall --no-binary llama-cpp-python llama-cpp-python"
)
OFFLOADS = "import llama_cpp; print('offloads', llama_cpp.llama_supports_gpu_offload())"
OFFLOADS_S = 45.0
"""For that answer; less than another environment has for a whole refusal."""
RUNTIME_LIBRARY = b"libcudart.so."
BUILD = "make runtime-llama, or CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python"
ONE_GPU = 0
"""LLAMA_SPLIT_MODE_NONE: the whole model on `main_gpu`."""
F16, Q4_0, Q8_0 = 1, 2, 8
"""Numbers of ggml types."""
BATCH = 2048
"""Tokens of one llama_decode; it cuts them into micro-batches of MICRO."""
MICRO = 512
STEPS = 5


def refuse(path: str | None, options: tuple[str, ...], isa: tuple[str, ...]) -> str | None:
    import platform
    from importlib.util import find_spec

    if find_spec("llama_cpp") is None:
        return f"llama-cpp-python is not installed: {CUDA_BUILD if nvidia.CUDA in options else BUILD}"
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return "on Apple silicon llama.cpp would use Metal, which is not measured here"
    if unknown := [option for option in options if option not in OPTIONS]:
        return f"llama.cpp has no option {unknown[0]!r}; it has {', '.join(OPTIONS)}"
    if {"kvq8", "kvq4"} & set(options) and "fa" not in options:
        return "a quantized cache needs flash attention: add the option fa"
    if nvidia.CUDA in options and (reason := no_offload()):
        return reason
    if path is not None and not gguf_file(path).is_file():
        return f"{path} holds no model.gguf"
    return None


def on_gpu(options: tuple[str, ...]) -> bool:
    return nvidia.CUDA in options


@cache
def no_offload() -> str | None:
    """Why this build cannot compute on a GPU. Its own word (llama_supports_gpu_offload) is asked in a process apart, since a
    build for CUDA cannot even be imported without a driver."""
    folder = nvidia.package_folder("llama_cpp")
    libraries = [*folder.rglob("*ggml-cuda*")] if folder else []
    if not libraries:
        return f"llama.cpp is built without CUDA: {CUDA_BUILD}"
    if reason := nvidia.refusal("llama.cpp", cuda_linked(libraries[0]), CUDA_BUILD):
        return reason
    asked = [sys.executable, "-P", "-c", OFFLOADS]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=OFFLOADS_S)
    except subprocess.TimeoutExpired:
        return f"llama.cpp does not say within {OFFLOADS_S:g} s whether it can offload to a GPU (llama_supports_gpu_offload)"
    if "offloads True" in said.stdout:
        return None
    lines = [line for line in said.stderr.splitlines() if line.strip()]
    return "llama.cpp finds no GPU to offload to (llama_supports_gpu_offload)" + (f": {lines[-1][:200]}" if lines else "")


def cuda_linked(library: Path) -> str:
    """The major version of the CUDA runtime that a library is linked with; "0", which suits every driver, where it tells none."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
        at = held.find(RUNTIME_LIBRARY)
        end = at + len(RUNTIME_LIBRARY)
        version = held[end : end + 2].decode(errors="replace") if at >= 0 else ""
    return "".join(digit for digit in version if digit.isdigit()) or "0"


def gguf_file(path: str) -> Path:
    return Path(path) if path.endswith(".gguf") else Path(path) / "model.gguf"


def warm_imports() -> None:
    import llama_cpp
    import numpy  # noqa: F401

    llama_cpp.llama_backend_init()


def open_session(path: str, options: tuple[str, ...], threads: int) -> LlamaSession:
    return LlamaSession(path, options, threads)


class LlamaSession:
    """See docs/architecture.md for the methods of a session."""

    def __init__(self, path: str, options: tuple[str, ...], threads: int) -> None:
        import llama_cpp

        self.api, self.options, self.threads = llama_cpp, options, threads
        self.said: list[str] = []
        self.keep = llama_cpp.llama_log_callback(lambda _level, text, _data: self.said.append(text.decode(errors="replace")))
        llama_cpp.llama_log_set(self.keep, ctypes.c_void_p(0))
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = -1 if on_gpu(options) else 0
        if on_gpu(options):
            params.split_mode, params.main_gpu = ONE_GPU, 0
        params.use_extra_bufts = "plain" not in options
        self.model = llama_cpp.llama_model_load_from_file(str(gguf_file(path)).encode(), params)
        if not self.model:
            raise ValueError(f"llama.cpp cannot load {path}: {self._last_words()}")
        if on_gpu(options) and not any("CUDA" in line for line in self._buffers()):
            raise RuntimeError(f"llama.cpp put no weights on the GPU: {'; '.join(self._buffers()) or self._last_words()}")
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self.context: Any = None
        self.opened: tuple[object, ...] = ()
        self.length = self.rows = 0
        self.first: Any = None
        self.watch: Watch | None = None

    def prefill(self, tokens: Any, capacity: int) -> Any:
        import numpy as np

        self._open(len(tokens), capacity)
        self.length, self.first = tokens.shape[1], tokens[0]
        return np.concatenate([self._feed(row, index) for index, row in enumerate(tokens)])

    def decode(self, tokens: Any) -> Any:
        rows = range(self.rows)
        self._submit(tokens[:, 0], [self.length] * self.rows, rows, [True] * self.rows)
        self.length += 1
        return self._logits(self.rows)

    def fill(self, batch: int, capacity: int) -> None:
        """Row 0 is prefilled again in a context of as many rows, and copied into each: rows share no memory there."""
        self._open(batch, capacity)
        self._feed(self.first, 0)
        memory = self.api.llama_get_memory(self.context)
        for row in range(1, batch):
            self.api.llama_memory_seq_cp(memory, 0, row, -1, -1)

    def score(self, tokens: Any, chunk: int | None) -> Iterator[Any]:
        step = min(chunk or len(tokens), BATCH)
        self._open(1, len(tokens), outputs=step)
        for at in range(0, len(tokens), step):
            part = tokens[at : at + step]
            self._submit(part, range(at, at + len(part)), [0] * len(part), [True] * len(part))
            yield self._logits(len(part))

    def operators(self, tokens: Any, batch: int | None) -> dict[str, Any]:
        """Wall times of plain passes, then the same passes with every node of the graph observed by itself."""
        watch = Watch(self.api)
        walls = self._passes(tokens, batch, lambda: None)
        self.watch = watch
        nodes: list[list[Node]] = []
        self._passes(tokens, batch, lambda: nodes.append(watch.take()))
        self.watch = None
        cache = "q8_0" if "kvq8" in self.options else "q4_0" if "kvq4" in self.options else "f16"
        notes = [f"cache stored in {cache}", *self._buffers()]
        notes.append(self.api.llama_print_system_info().decode())
        seen = {name: phase(nodes[i], len(walls[i]), walls[i], notes) for i, name in enumerate(("prefill", "decode"))}
        return {name: one | {"cache": cache} for name, one in seen.items()}

    def _passes(self, tokens: Any, batch: int | None, after: Callable[[], None]) -> list[list[float]]:
        """Wall times of a prefill and of STEPS decode steps, which a first one goes before; `after` is called after each kind."""
        capacity = tokens.shape[1] + STEPS + 1
        start = time.perf_counter()
        following = self.prefill(tokens, capacity).argmax(-1)[:, None]
        prefill_s = time.perf_counter() - start
        after()
        if batch:
            self.fill(batch, capacity)
            following = following[:1].repeat(batch, 0)
        self.decode(following)
        if self.watch:
            self.watch.take()
        steps = [timed(lambda: self.decode(following)) for _ in range(STEPS)]
        after()
        return [[prefill_s], steps]

    def close(self) -> None:
        if self.context:
            self.api.llama_free(self.context)
        self.context = None

    def _open(self, rows: int, capacity: int, outputs: int | None = None) -> None:
        """An empty context of `rows` sequences, `capacity` tokens each; logits of at most `outputs` tokens a pass. One of the
        same sizes is emptied, as a server does between requests."""
        each = -(-capacity // 256) * 256
        opened = rows, each, outputs, self.watch
        if self.context and self.opened == opened:
            self.api.llama_memory_clear(self.api.llama_get_memory(self.context), False)
            self.length = self.length if outputs is None else 0
            return
        self.close()
        params = self.api.llama_context_default_params()
        params.n_ctx = rows * each
        params.n_seq_max = rows
        params.kv_unified = False
        params.n_batch, params.n_ubatch = BATCH, MICRO
        params.n_outputs_max = max(outputs or rows, rows)
        params.n_outputs_max_per_seq = outputs or 1
        params.n_threads = params.n_threads_batch = self.threads
        params.op_offload = on_gpu(self.options)  # else a build with CUDA takes large products there, weights and all
        params.flash_attn_type = int("fa" in self.options)
        params.type_k = params.type_v = Q8_0 if "kvq8" in self.options else Q4_0 if "kvq4" in self.options else F16
        if self.watch:
            params.cb_eval = self.watch.callback
        self.context = self.api.llama_init_from_model(self.model, params)
        if not self.context:
            raise ValueError(f"llama.cpp makes no context of {rows} x {capacity} tokens: {self._last_words()}")
        self.opened = opened
        self.rows, self.length = rows, self.length if outputs is None else 0

    def _feed(self, tokens: Any, row: int) -> Any:
        """One row's prompt into an empty sequence; logits of its last position [1, V]."""
        for at in range(0, len(tokens), BATCH):
            part = tokens[at : at + BATCH]
            last = at + len(part) == len(tokens)
            flags = [False] * (len(part) - 1) + [last]
            self._submit(part, range(at, at + len(part)), [row] * len(part), flags)
        return self._logits(1)

    def _submit(self, tokens: Any, positions: Any, rows: Any, wanted: Any) -> None:
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (token, position, row, flag) in enumerate(zip(tokens.tolist(), positions, rows, wanted, strict=True)):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, flag
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
        if self.watch:
            self.watch.start()
        if (code := self.api.llama_decode(self.context, batch)) != 0:
            raise RuntimeError(f"llama_decode gave {code}: {self._last_words()}")
        self.api.llama_synchronize(self.context)

    def _logits(self, rows: int) -> Any:
        """[rows, V], a copy."""
        import numpy as np

        return np.ctypeslib.as_array(self.api.llama_get_logits(self.context), shape=(rows, self.vocab)).copy()

    def _buffers(self) -> list[str]:
        """What llama.cpp logs of its buffers: of the weights, and on a GPU of the cache and the graph too."""
        marks = ("buffer size", "offloaded") if on_gpu(self.options) else ("model buffer size",)
        return sorted({line.strip() for line in "".join(self.said).splitlines() if any(mark in line for mark in marks)})

    def _last_words(self) -> str:
        return " ".join("".join(self.said[-4:]).split())[-200:] or "it says nothing"


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class Tensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h, as far as its name."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


class Node(NamedTuple):
    """One node of the graph as it ran: operator, the name, type and buffer of its first input, seconds; `quantized`: is that type
    one of blocks with scales, by ggml's own word (an index is not)?"""

    operator: str
    source: str
    number: str
    buffer: str
    seconds: float
    quantized: bool


class Watch:
    """The scheduler's eval callback: it computes the graph node by node and tells us after each."""

    def __init__(self, api: Any) -> None:
        from llama_cpp import _ggml

        self.lib = _ggml.libggml
        for name, argument in (("ggml_op_desc", ctypes.c_void_p), ("ggml_type_name", ctypes.c_int),
                               ("ggml_backend_buffer_name", ctypes.c_void_p)):  # fmt: skip
            function = getattr(self.lib, name)
            function.restype, function.argtypes = ctypes.c_char_p, [argument]
        self.lib.ggml_is_quantized.restype, self.lib.ggml_is_quantized.argtypes = ctypes.c_bool, [ctypes.c_int]
        self.nodes: list[Node] = []
        self.last = 0.0
        self.callback = api.ggml_backend_sched_eval_callback(self._see)

    def start(self) -> None:
        self.last = time.perf_counter()

    def take(self) -> list[Node]:
        """The nodes since the last call."""
        nodes, self.nodes = self.nodes, []
        return nodes

    def _see(self, address: int, ask: bool, _: Any) -> bool:
        if ask:
            return True
        seconds = time.perf_counter() - self.last
        tensor = Tensor.from_address(address)
        source = Tensor.from_address(tensor.src[0]) if tensor.src[0] else None
        buffer = self.lib.ggml_backend_buffer_name(source.buffer) if source and source.buffer else b""
        self.nodes.append(
            Node(
                operator=self.lib.ggml_op_desc(address).decode(),
                source=source.name.decode(errors="replace") if source else "",
                number=self.lib.ggml_type_name(source.type).decode() if source else "",
                buffer=buffer.decode(),
                seconds=seconds,
                quantized=bool(source and self.lib.ggml_is_quantized(source.type)),
            )
        )
        self.last = time.perf_counter()
        return True


def phase(nodes: list[Node], passes: int, walls: list[float], notes: list[str]) -> dict[str, Any]:
    """Parts of a pass: shares of the observed nodes, times the wall of the plain passes (observing costs time itself)."""
    wall = sorted(walls)[len(walls) // 2]
    scale = wall / (sum(node.seconds for node in nodes) or 1.0)
    parts = {"linears_s": 0.0, "attention_s": 0.0, "cache_s": 0.0, "other_s": 0.0}
    rows: dict[tuple[str, str, str, bool], list[float]] = {}
    for node in nodes:
        parts[part_of(node)] += node.seconds * scale
        rows.setdefault((node.operator, node.buffer, node.number, node.quantized), []).append(node.seconds * scale)
    linear = [node for node in nodes if part_of(node) == "linears_s"]
    return {
        "operators": [
            {
                "name": operator,
                "count": round(len(times) / passes),
                "provider": buffer or "CPU",
                "precision": number,
                "time_s": sum(times),
                "linear": any(n.operator == operator and n.number == number and n.buffer == buffer for n in linear),
                "quantized": quantized,
            }
            for (operator, buffer, number, quantized), times in sorted(rows.items(), key=lambda item: -sum(item[1]))
        ],
        "linears": round(len(linear) / passes),
        "quantized_linears": round(sum(node.quantized for node in linear) / passes),
        "wall_s": wall,
        "walls_s": walls,
        "notes": [*notes, "parts: shares of nodes computed one by one, scaled to the plain wall time"],
        **parts,
    }


def part_of(node: Node) -> str:
    if node.operator == "MUL_MAT" and node.source.endswith(".weight"):
        return "linears_s"
    if node.operator in ("MUL_MAT", "SOFT_MAX", "FLASH_ATTN_EXT"):
        return "attention_s"
    return "cache_s" if node.operator in ("SET_ROWS", "CPY") else "other_s"
