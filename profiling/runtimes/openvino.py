"""OpenVINO on the CPU: one compiled stateful graph, whose key-value cache lives in its variables.

Loads the folder of `methods/formats/openvino.py`: `openvino_model.xml` (last logits) and `openvino_scoring.xml` (all
logits, same `.bin`). Options: `f32` or `bf16`, the precision of computation (INFERENCE_PRECISION_HINT, default f32);
`kvu8`, `kvf16` or `kvf32`, the precision of the cache (KV_CACHE_PRECISION, default that of computation). OpenVINO's own
defaults depend on the hardware and on `rt_info` in the file (a u8 cache where that says nothing), so all are set here.

What is stored is not always what is asked (`kvf16` under `bf16` is kept as bfloat16): `operators` reads it back from
the compiled graph. A cache [batch, kv_heads, tokens, head_dim] grows by doubling: `capacity` cannot be reserved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

NAME = "openvino"

PRECISIONS = {"f32": "f32", "bf16": "bf16"}
CACHES = {"kvu8": "u8", "kvf16": "f16", "kvf32": "f32"}
FUSED_LINEARS = {"LLMMLP": 3, "QKVProjection": 3}
"""Linears in one fused node: gate, up and down; query, key and value."""
QUANTIZED = ("i8", "u8", "i4", "u4", "nf4", "f8e4m3", "f8e5m2", "f4e2m1")
EFFECTIVE = (
    "INFERENCE_PRECISION_HINT",
    "KV_CACHE_PRECISION",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE",
    "INFERENCE_NUM_THREADS",
    "NUM_STREAMS",
)


def refuse(path: str | None, options: tuple[str, ...], isa: tuple[str, ...]) -> str | None:
    from importlib.util import find_spec

    if find_spec("openvino") is None:
        return "openvino is not installed: pip install 'quantadvisor[openvino]'"
    try:
        precision, cache = parse(options)
    except ValueError as error:
        return str(error)
    if precision == "bf16" and not {"amx_bf16", "avx512_bf16"} & set(isa):
        return "bf16 needs a CPU with amx_bf16 or avx512_bf16, which this one lacks"
    if precision == "bf16" and cache == "f32":
        return "under bf16 OpenVINO stores the cache in bfloat16, whatever is asked: kvf32 would be untrue"
    missing = [name for name in ("openvino_model.xml", "openvino_model.bin") if path and not (Path(path) / name).exists()]
    return f"{path} holds no {missing[0]}" if missing else None


def parse(options: tuple[str, ...]) -> tuple[str, str]:
    """(precision of computation, precision of the cache) in OpenVINO's words."""
    unknown = [option for option in options if option not in PRECISIONS and option not in CACHES]
    if unknown:
        known = ", ".join((*PRECISIONS, *CACHES))
        raise ValueError(f"openvino has no option {unknown[0]!r}; it has {known}")
    precisions = [PRECISIONS[option] for option in options if option in PRECISIONS] or ["f32"]
    caches = [CACHES[option] for option in options if option in CACHES] or precisions[:1]
    if len(precisions) > 1 or len(caches) > 1:
        raise ValueError(f"openvino takes one precision and one cache precision, not {'+'.join(options)}")
    return precisions[0], caches[0]


def warm_imports() -> None:
    import sys

    import numpy  # noqa: F401

    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # we report nothing to the vendor
    import openvino

    openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")  # loads the CPU plugin


def open_session(path: str, options: tuple[str, ...], threads: int) -> OpenvinoSession:
    return OpenvinoSession(Path(path), parse(options), threads)


class OpenvinoSession:
    """See docs/architecture.md for the methods of a session."""

    def __init__(self, folder: Path, precisions: tuple[str, str], threads: int) -> None:
        self.folder, self.precisions, self.threads = folder, precisions, threads
        self.decoder = Decoder(self._compile("openvino_model.xml"))
        self.scorer: Decoder | None = None

    def prefill(self, tokens: Any, capacity: int) -> Any:
        self.scorer = None
        return self.decoder.start(tokens)

    def decode(self, tokens: Any) -> Any:
        return self.append(tokens)

    def append(self, tokens: Any) -> Any:
        """The next tokens [B, n] of every row's prompt; logits of the last position [B, V]."""
        return self.decoder.run(tokens)[:, -1].copy()

    def fill(self, batch: int, capacity: int) -> None:
        """Every row gets its own memory: a variable copies what it is given into its own precision and layout."""
        if not self.decoder.past:
            raise ValueError("fill copies the cache of a prefilled row: prefill one first")
        if batch > 1:
            self.decoder.replicate(batch)

    def score(self, tokens: Any, chunk: int | None) -> Iterator[Any]:
        name = "openvino_scoring.xml" if (self.folder / "openvino_scoring.xml").exists() else "openvino_model.xml"
        self.scorer = self.scorer or Decoder(self._compile(name))
        scorer, step = self.scorer, chunk or len(tokens)
        scorer.reset()
        for at in range(0, len(tokens), step):
            yield scorer.run(tokens[None, at : at + step])[0].copy()

    def operators(self, tokens: Any, batch: int | None) -> dict[str, Any]:
        import numpy as np

        decoder = Decoder(self._compile("openvino_model.xml", PERF_COUNT=True))
        following = decoder.start(tokens).argmax(-1)[:, None].astype(np.int64)
        prefill = decoder.observe(lambda: decoder.start(tokens), 2)
        if batch:
            decoder.replicate(batch)
            following = np.repeat(following[:1], batch, 0)
        decoder.run(following)  # the cache grows here
        decode = decoder.observe(lambda: decoder.run(following), 6)
        nodes, cache = graph_nodes(decoder.compiled), stored_cache(decoder.compiled)
        notes = graph_notes(decoder.compiled, cache)
        seen = {"prefill": phase(nodes, prefill, notes), "decode": phase(nodes, decode, notes)}
        return {name: one | {"cache": cache} for name, one in seen.items()}

    def close(self) -> None:
        self.scorer = self.decoder = None  # type: ignore[assignment]

    def _compile(self, name: str, **more: Any) -> Any:
        import openvino

        precision, cache = self.precisions
        properties = {
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": precision,
            "KV_CACHE_PRECISION": cache,
        }
        core = openvino.Core()
        model = core.read_model(self.folder / name, self.folder / "openvino_model.bin")
        return core.compile_model(model, "CPU", properties | more)


Totals = dict[str, tuple[str, str, float]]
"""{node: (type, kernel, seconds)}"""


class Observed(NamedTuple):
    """What the profiler had counted before and after the passes whose wall times are `walls`, seconds."""

    before: Totals
    after: Totals
    walls: list[float]


class Decoder:
    """A compiled graph with one request, the number of tokens in its cache, and its count of passes."""

    def __init__(self, compiled: Any) -> None:
        self.compiled, self.past, self.passes = compiled, 0, 0
        self.names = {name for port in compiled.inputs for name in port.get_names()}
        self.request = compiled.create_infer_request()
        self.copied: dict[Any, Any] = {}

    def reset(self) -> None:
        self.request.reset_state()
        self.past, self.copied = 0, {}

    def start(self, tokens: Any) -> Any:
        """Tokens [B, S] into an empty cache; logits of the last position [B, V]."""
        self.reset()
        return self.run(tokens)[:, -1].copy()

    def run(self, tokens: Any) -> Any:
        """Appends tokens [B, S]; a view of the logits [B, S or 1, V], valid until the next pass."""
        import numpy as np

        batch, total = len(tokens), self.past + tokens.shape[1]
        inputs = {
            "input_ids": np.ascontiguousarray(tokens, np.int64),
            "attention_mask": np.ones((batch, total), np.int64),
            "position_ids": np.tile(np.arange(self.past, total, dtype=np.int64), (batch, 1)),
            "beam_idx": np.arange(batch, dtype=np.int32),
        }
        inputs = {name: value for name, value in inputs.items() if name in self.names}
        self.request.start_async(inputs, share_inputs=True)
        self.request.wait()
        self.past, self.passes = total, self.passes + 1
        return self.request.get_tensor("logits").data

    def replicate(self, batch: int) -> None:
        """Sets every variable to `batch` copies of its single row [1, kv_heads, tokens, head_dim].

        Variables give and take float32, whatever they store. The buffers live on: variables keep a pointer to them.
        """
        import numpy as np
        import openvino

        self.copied = {}
        for variable in self.request.query_state():
            row = variable.state.data
            if row.shape[0] != 1:
                raise NotImplementedError(f"the state {variable.name} has {row.shape[0]} rows, not one")
            shape = (batch, *row.shape[1:])
            buffer = self.copied.setdefault((shape, row.dtype), np.empty(shape, row.dtype))
            buffer[:] = row
            variable.state = openvino.Tensor(buffer, shared_memory=True)

    def totals(self) -> Totals:
        """Seconds since compilation: OpenVINO gives the mean over all passes so far."""
        return {
            node.node_name: (node.node_type, node.exec_type, node.real_time.total_seconds() * self.passes)
            for node in self.request.get_profiling_info()
        }

    def observe(self, run: Callable[[], Any], passes: int) -> Observed:
        before, walls = self.totals(), []
        for _ in range(passes):
            start = time.perf_counter()
            run()
            walls.append(time.perf_counter() - start)
        return Observed(before, self.totals(), walls)


def text_of(information: Any, key: str) -> str:
    return str(information[key].astype(str)) if key in information else ""


def graph_nodes(compiled: Any) -> dict[str, dict[str, Any]]:
    """{node: {type, weights, activations, linears}} of the graph that runs, `weights` "" where the node has none."""
    nodes = {}
    for node in compiled.get_runtime_model().get_ops():
        kind = text_of(node.get_rt_info(), "layerType")
        sources = [port.get_source_output().get_node() for port in node.inputs()]
        constant = [text_of(source.get_rt_info(), "layerType") == "Const" for source in sources]
        fused = FUSED_LINEARS.get(kind, 0)
        linear = bool(fused) or (kind in ("FullyConnected", "MatMul") and len(constant) > 1 and constant[1])
        nodes[node.get_friendly_name()] = {
            "type": kind,
            "weights": node.input(1).get_element_type().get_type_name() if linear else "",
            "activations": node.input(0).get_element_type().get_type_name() if linear else "",
            "linears": fused or int(linear),
        }
    return nodes


def stored_cache(compiled: Any) -> str:
    """The precision that the cache is really stored in, by the nodes that keep it; "" where none tells."""
    stored = {
        text_of(node.get_rt_info(), "kv_cache_precision")
        for node in compiled.get_runtime_model().get_ops()
        if "kv_cache_precision" in node.get_rt_info()
    }
    return ", ".join(sorted(stored))


def graph_notes(compiled: Any, cache: str) -> list[str]:
    """Effective properties, and how the cache is stored."""
    notes = []
    for key in EFFECTIVE:
        value = compiled.get_property(key)
        notes.append(f"{key}={value.get_type_name() if hasattr(value, 'get_type_name') else value}")
    notes.append(f"cache stored in {cache or 'an unknown precision'}")
    notes.append("attention nodes append to the cache themselves: cache_s holds only what runs outside them")
    return notes


def part_of(kind: str) -> str:
    if "Attention" in kind:
        return "attention_s"
    return "cache_s" if kind.startswith(("Memory", "ReadValue", "Assign")) else "other_s"


def phase(nodes: dict[str, dict[str, Any]], seen: Observed, notes: list[str]) -> dict[str, Any]:
    """Operators and times of one forward pass."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    parts = {"linears_s": 0.0, "attention_s": 0.0, "cache_s": 0.0, "other_s": 0.0}
    linears = quantized = 0
    for name, (kind, kernel, total) in seen.after.items():
        node = nodes.get(name, {"type": kind, "weights": "", "activations": "", "linears": 0})
        seconds = max(0.0, total - seen.before[name][2]) / len(seen.walls)
        precision = f"{node['weights']} weights, {node['activations']} in" if node["linears"] else ""
        new = {"name": kind, "count": 0, "provider": kernel, "precision": precision, "time_s": 0.0}
        flags = {"linear": node["linears"] > 0, "quantized": node["weights"] in QUANTIZED}
        row = rows.setdefault((kind, kernel, precision), new | flags)
        row["count"] += 1
        row["time_s"] += seconds
        linears += node["linears"]
        quantized += node["linears"] * flags["quantized"]
        parts["linears_s" if flags["linear"] else part_of(node["type"] or kind)] += seconds
    return {
        "operators": sorted((row for row in rows.values() if row["time_s"] or row["linear"]), key=lambda r: -r["time_s"]),
        "linears": linears,
        "quantized_linears": quantized,
        "wall_s": sorted(seen.walls)[len(seen.walls) // 2],
        "walls_s": seen.walls,
        "notes": notes,
        **parts,
    }
