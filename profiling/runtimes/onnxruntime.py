"""ONNX Runtime, raw sessions on a GroupQueryAttention graph with one cache buffer shared by past and present.

Loads the folder of `methods/formats/onnx.py`: `model.onnx` (last logits) and `scoring.onnx` (all logits), or one of
onnxruntime-genai's builder with all logits in `model.onnx`. The cache is float32 or, where the graph says so, int8.
Attention and cache layout: keys and values [batch, kv_heads, capacity, head_dim].

Options: `cuda`, or `tensorrt` (its subgraphs, and the CUDA provider for the rest): the caches are then bound on the GPU.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import onnxruntime_cuda

NAME = "onnxruntime"
FILES = ("model.onnx", "genai_config.json")
FED = ("input_ids", "attention_mask", "past_key_values")
"""Inputs of a graph that a session brings."""

LINEARS = (
    "MatMul",
    "FusedMatMul",
    "Gemm",
    "MatMulNBits",
    "MatMulBnb4",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "QLinearMatMul",
)
QUANTIZED = ("MatMulNBits", "MatMulBnb4", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QLinearMatMul", "MatMulInteger")
BESIDE = ("_lora_A", "_lora_B", "_outlier_product")
"""Nodes whose float product is added to a quantized one, by the method: time of linears, but none of the model's linears."""
ROUNDING = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
"""Operators between the products that only round, or undo it: static QDQ was seen to spend a third of its time in them."""
OPTIMIZED = "optimized.onnx"
TOKENS_PER_PASS = 8192
"""A larger batch is prefilled row group by row group: bounds the activations, as a scheduler does."""


def refuse(path: str | None, options: tuple[str, ...], isa: tuple[str, ...]) -> str | None:
    from importlib.util import find_spec

    if find_spec("onnxruntime") is None:
        return "onnxruntime is not installed: pip install 'quantadvisor[cpu]'"
    if reason := onnxruntime_cuda.refusal(options):
        return reason
    if path is not None and (missing := [name for name in FILES if not (Path(path) / name).exists()]):
        return f"{path} holds no {missing[0]}: it reads folders as onnxruntime-genai's builder writes them"
    return None


def warm_imports() -> None:
    import numpy  # noqa: F401
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)


def on_gpu(options: tuple[str, ...]) -> bool:
    return bool(options)


def open_session(path: str, options: tuple[str, ...], threads: int) -> OnnxSession:
    return OnnxSession(Path(path), threads, options)


class OnnxSession:
    """See docs/architecture.md for the methods of a session."""

    def __init__(self, folder: Path, threads: int, options: tuple[str, ...] = ()) -> None:
        self.folder, self.threads, self.options = folder, threads, options
        self.session = self._open("model.onnx")
        if odd := [value.name for value in self.session.get_inputs() if not value.name.startswith(FED)]:
            raise ValueError(f"the graph asks for {odd[0]}, which nobody gives it: export it with onnxruntime-genai's builder")
        self.cache = Cache(self.session, json.loads((folder / "genai_config.json").read_text()), on_gpu(options))
        self.buffers: list[Any] = []
        self.binding: Any = None
        self.past = 0

    def prefill(self, tokens: Any, capacity: int) -> Any:
        import numpy as np

        self.binding, self.buffers = None, []
        self.buffers = self.cache.allocate(len(tokens), capacity)
        self.past = tokens.shape[1]
        rows = max(1, TOKENS_PER_PASS // tokens.shape[1])
        logits = [
            self._run(tokens[at : at + rows], 0, [buffer[at : at + rows] for buffer in self.buffers])
            for at in range(0, len(tokens), rows)
        ]
        return np.concatenate(logits)

    def decode(self, tokens: Any) -> Any:
        """The caches are bound at the first step and stay: to bind 60 of them anew costs a tenth of a fast step."""
        self.past += 1
        self.binding = self.binding or self._binding(self.session, self.buffers)
        return self._bound(self.session, self.binding, tokens, self.past - 1)[:, -1]

    def fill(self, batch: int, capacity: int) -> None:
        import numpy as np

        self.binding = None
        for i, held in enumerate(self.buffers):
            one = np.asarray(held)
            rows = np.empty((batch, *one.shape[1:2], capacity, *one.shape[3:]), one.dtype)
            rows[:, :, : one.shape[2]] = one[:, :, :capacity]
            self.buffers[i] = self.cache.placed(rows)

    def score(self, tokens: Any, chunk: int | None) -> Iterator[Any]:
        session = self._open("scoring.onnx" if (self.folder / "scoring.onnx").exists() else "model.onnx")
        buffers = self.cache.allocate(1, len(tokens))
        step = chunk or len(tokens)
        for at in range(0, len(tokens), step):
            yield self._bound(session, self._binding(session, buffers), tokens[None, at : at + step], at)[0]

    def operators(self, tokens: Any, batch: int | None) -> dict[str, Any]:
        import numpy as np

        with tempfile.TemporaryDirectory() as folder:
            live, self.session = self.session, self._open("model.onnx", evidence=Path(folder))
            logits = self.prefill(tokens, tokens.shape[1] + 8)
            following = logits.argmax(-1)[:, None].astype(np.int64)
            walls: dict[str, list[float]] = {"prefill": [], "decode": []}
            for _ in range(2):
                start = time.perf_counter()
                self.prefill(tokens, tokens.shape[1] + 8)
                walls["prefill"].append(time.perf_counter() - start)
            if batch:
                self.fill(batch, tokens.shape[1] + 8)
                following = np.repeat(following, batch, 0)
            for _ in range(6):
                start = time.perf_counter()
                self.decode(following)
                walls["decode"].append(time.perf_counter() - start)
            path = self.session.end_profiling()
            self.session, self.binding = live, None
            runs = runs_of_profile(json.loads(Path(path).read_text()))
            notes = [] if on_gpu(self.options) else [graph_note(Path(folder) / OPTIMIZED)]
        passes = -(-len(tokens) // max(1, TOKENS_PER_PASS // tokens.shape[1]))
        return {
            "prefill": self._noted(phase_of_runs(runs[passes : 3 * passes], 2, walls["prefill"]), notes),
            "decode": self._noted(phase_of_runs(runs[-5:], 5, walls["decode"][1:]), notes),
        }

    def close(self) -> None:
        self.binding, self.buffers = None, []

    def _noted(self, phase: dict[str, Any], notes: list[str]) -> dict[str, Any]:
        """Attention rows say which number type of cache they read."""
        import numpy as np

        phase["notes"] += notes
        name = phase["cache"] = np.dtype(self.cache.dtype).name
        for row in phase["operators"]:
            if "Attention" in row["name"]:
                row |= {"precision": f"{name} cache", "quantized": name in ("int8", "uint8")}
        return onnxruntime_cuda.noted(phase, self.session.get_providers()) if on_gpu(self.options) else phase

    def _open(self, name: str, evidence: Path | None = None) -> Any:
        """With `evidence`, a folder, what runs is profiled into it; on a CPU the optimized graph is left there too."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        if evidence:
            options.enable_profiling, options.profile_file_prefix = True, str(evidence / "profile")
        if on_gpu(self.options):
            return onnxruntime_cuda.opened(self.folder / name, options, self.options[0])
        if evidence:
            options.optimized_model_filepath = str(evidence / OPTIMIZED)
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{OPTIMIZED}.data")
        return onnxruntime.InferenceSession(str(self.folder / name), options, providers=["CPUExecutionProvider"])

    def _run(self, tokens: Any, past: int, buffers: list[Any]) -> Any:
        return self._bound(self.session, self._binding(self.session, buffers), tokens, past)[:, -1]

    def _binding(self, session: Any, buffers: list[Any]) -> Any:
        """Present is written into the buffers that past is read from."""
        from onnxruntime import OrtValue

        binding = session.io_binding()
        for (before, after), buffer in zip(self.cache.names, buffers, strict=True):
            if on_gpu(self.options):
                buffer.bind(binding, before, after)
                continue
            value = OrtValue.ortvalue_from_numpy(buffer)
            binding.bind_ortvalue_input(before, value)
            binding.bind_ortvalue_output(after, value)
        return binding

    def _bound(self, session: Any, binding: Any, tokens: Any, past: int) -> Any:
        """One forward pass on bound caches; logits [B, S or 1, V]."""
        import numpy as np

        binding.bind_cpu_input("input_ids", np.ascontiguousarray(tokens))
        binding.bind_cpu_input("attention_mask", np.ones((len(tokens), past + tokens.shape[1]), np.int64))
        binding.bind_output("logits", "cpu")
        session.run_with_iobinding(binding)
        logits = binding.get_outputs()[-1].numpy()  # outputs come in the order they were first bound
        return logits.astype(np.float32, copy=False)


class Cache:
    """Names, shape and number type of a graph's key-value cache."""

    def __init__(self, session: Any, config: dict[str, Any], gpu: bool = False) -> None:
        import numpy as np

        self.gpu = gpu
        past = [value for value in session.get_inputs() if "past_key_values" in value.name]
        self.names = [(value.name, value.name.replace("past_key_values", "present")) for value in past]
        heads, width = past[0].shape[1], past[0].shape[3]
        decoder = config["model"]["decoder"]
        self.heads = heads if isinstance(heads, int) else decoder["num_key_value_heads"]
        self.width = width if isinstance(width, int) else decoder["head_size"]
        types = {
            "tensor(float)": np.float32,
            "tensor(float16)": np.float16,
            "tensor(int8)": np.int8,
            "tensor(uint8)": np.uint8,
        }
        self.dtype = types[past[0].type]

    def allocate(self, batch: int, capacity: int) -> list[Any]:
        import numpy as np

        return [self.placed(np.zeros((batch, self.heads, capacity, self.width), self.dtype)) for _ in self.names]

    def placed(self, rows: Any) -> Any:
        """The array, where the session reads it: itself on a CPU, a copy on the GPU."""
        return onnxruntime_cuda.Buffer.of(rows) if self.gpu else rows


def runs_of_profile(events: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Kernel events of each model run of an ONNX Runtime profile, in order of time."""
    runs = sorted((e for e in events if e.get("name") == "model_run"), key=lambda e: e["ts"])
    kernels = [e for e in events if e.get("cat") == "Node" and str(e["name"]).endswith("_kernel_time")]
    return [[e for e in kernels if run["ts"] <= e["ts"] < run["ts"] + run["dur"]] for run in runs]


def graph_note(path: Path) -> str:
    """The operators that ONNX Runtime's optimizer left, and how many of each: what could run, beside what was seen to."""
    from importlib.util import find_spec

    if find_spec("onnx") is None:
        return "optimized graph: not read, the package onnx is not installed"
    import onnx

    counts = Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)
    return "optimized graph: " + ", ".join(f"{count} {name}" for name, count in counts.most_common())


def phase_of_runs(runs: list[list[dict[str, Any]]], repeats: int, walls: list[float]) -> dict[str, Any]:
    """Operators and times of one forward pass, averaged over `repeats` (a pass may be several runs)."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    parts = {"linears_s": 0.0, "attention_s": 0.0, "cache_s": 0.0, "other_s": 0.0}
    for event in (event for run in runs for event in run):
        name, provider = event["args"]["op_name"], event["args"].get("provider", "")
        seconds = onnxruntime_cuda.known_s(provider, event["dur"]) / repeats
        product = name in LINEARS or name in QUANTIZED
        beside = product and str(event["name"]).removesuffix("_kernel_time").endswith(BESIDE)
        linear, name = product and not beside, f"{name} beside a quantized one" if beside else name
        new = {"name": name, "count": 0, "provider": provider, "time_s": 0.0}
        row = rows.setdefault((name, provider), new | {"linear": linear, "quantized": name in QUANTIZED})
        row["count"] += 1
        row["time_s"] += seconds
        part = "linears_s" if product or name in ROUNDING else "attention_s" if "Attention" in name else "other_s"
        parts[part] += seconds
    forwards = max(1, len(runs))
    for row in rows.values():
        row["count"] = round(row["count"] / forwards)
    linears = [row for row in rows.values() if row["linear"]]
    return {
        "operators": sorted(rows.values(), key=lambda row: -row["time_s"]),
        "linears": sum(row["count"] for row in linears),
        "quantized_linears": sum(row["count"] for row in linears if row["quantized"]),
        "wall_s": sorted(walls)[len(walls) // 2],
        "walls_s": walls,
        "notes": rounding_notes(list(rows.values())),
        **parts,
    }


def rounding_notes(rows: list[dict[str, Any]]) -> list[str]:
    """The share of a pass's operators' time that ROUNDING takes, where any of it runs."""
    total = sum(row["time_s"] for row in rows)
    shares = {row["name"]: row["time_s"] / total for row in rows if row["name"] in ROUNDING and total}
    parts = " and ".join(f"{name} {share:.1%}" for name, share in sorted(shares.items(), key=lambda item: -item[1]))
    return [f"of the operators' time {parts}"] if parts else []
