"""ONNX Runtime folders: the fp32 export that everything starts from, and how one folder becomes another.

A folder holds `scoring.onnx` (logits of every position), `model.onnx` (the same graph with the last position's logits,
as a server computes them), one data file for both, `genai_config.json` and the tokenizer. Surgery reads the graph
without its tensors, maps the data file into memory and streams the new one, so memory holds one linear at a time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from quantadvisor.documents.errors import CandidateFailed

from ..refusals import check_memory
from .folders import new_folder
from .huggingface import check_finite

MODEL, SCORING, DATA = "model.onnx", "scoring.onnx", "model.onnx.data"
HIDDEN = "quantadvisor.hidden"
"""Metadata key of a graph: the tensor that lm_head reads, [batch, sequence, hidden]."""
ALIGN = 4096
"""Tensors start on a page, so that ONNX Runtime can map them instead of reading them."""

Array = NDArray[Any]
Factors = Mapping[str, tuple[Array, ...]]


def export_base(model_folder: Path, out: Path) -> None:
    """The fp32 folder of a Hugging Face folder, through the model builder of onnxruntime-genai, offline. CandidateFailed where it
    ends in an error, a tensor is not finite, or memory has no room for the model.

    The builder runs in a child process: it prints, it changes `sys.path`, and its memory goes back when it ends.
    """
    check_memory("the export to ONNX", model_folder)
    check_finite(model_folder)
    with new_folder(out) as work, tempfile.TemporaryDirectory(dir=out.parent, prefix=".builder.") as cache:
        command = [
            sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(Path(model_folder).resolve()),
            "-o", str(work.resolve()), "-p", "fp32", "-e", "cpu", "-c", cache,
        ]  # fmt: skip
        quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, cwd=cache, env=os.environ | quiet, capture_output=True, text=True)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
            raise CandidateFailed(f"the ONNX export of {model_folder} failed: {lines[-1]}")
        graph = load_graph(work, MODEL)
        mark_hidden(graph)
        save_graphs(graph, work)


def load_graph(folder: Path, name: str = SCORING) -> Any:
    """The ModelProto without its tensors."""
    import onnx

    return onnx.load(str(folder / name), load_external_data=False)


def mark_hidden(graph: Any) -> None:
    """Note in the metadata which tensor lm_head reads: later surgery may replace the MatMul that reads it."""
    head = [node for node in graph.graph.node if node.name == "/lm_head/MatMul"]
    if len(head) != 1:
        raise CandidateFailed(f"the exported graph has {len(head)} nodes named /lm_head/MatMul; one is needed")
    entry = graph.metadata_props.add()
    entry.key, entry.value = HIDDEN, head[0].input[0]


def save_graphs(graph: Any, folder: Path) -> None:
    """Write `scoring.onnx` (the graph as it is) and `model.onnx` (lm_head on the last position only)."""
    del graph.graph.value_info[:]  # ONNX Runtime infers them; stale ones would contradict the pruned graph
    (folder / SCORING).write_bytes(graph.SerializeToString())
    (folder / MODEL).write_bytes(last_position(graph).SerializeToString())


def last_position(scoring: Any) -> Any:
    """A copy of the graph with a Gather between the last norm and lm_head: [B, S, hidden] -> [B, 1, hidden]."""
    import onnx

    graph = onnx.ModelProto()
    graph.CopyFrom(scoring)
    hidden = {entry.key: entry.value for entry in graph.metadata_props}[HIDDEN]
    last, index = "/lm_head/last_position", "/lm_head/last_index"
    nodes = list(graph.graph.node)
    for node in nodes:
        for place, name in enumerate(node.input):
            if name == hidden:
                node.input[place] = last
    after = 1 + next(place for place, node in enumerate(nodes) if hidden in node.output)
    nodes.insert(after, onnx.helper.make_node("Gather", [hidden, index], [last], name=last, axis=1))
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1], np.int64), index))
    logits = next(value for value in graph.graph.output if value.name == "logits")
    logits.type.tensor_type.shape.dim[1].Clear()
    logits.type.tensor_type.shape.dim[1].dim_value = 1
    return graph


class Reader:
    """The graph of a folder and its tensors, mapped."""

    def __init__(self, folder: Path) -> None:
        self.model = load_graph(folder)
        self.old = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self._map = np.memmap(folder / DATA, np.uint8, "r") if (folder / DATA).stat().st_size else np.zeros(0, np.uint8)

    def tensor(self, name: str) -> Array:
        """A view into the mapped file where it can be."""
        import onnx

        proto = self.old[name]
        if proto.data_location != onnx.TensorProto.EXTERNAL:
            value: Array = onnx.numpy_helper.to_array(proto)
            return value
        where = {entry.key: entry.value for entry in proto.external_data}
        start = int(where.get("offset", 0))
        dtype = onnx.helper.tensor_dtype_to_np_dtype(proto.data_type)
        mapped: Array = self._map[start : start + int(where["length"])].view(dtype).reshape(tuple(proto.dims))
        return mapped


class Rewrite(Reader):
    """One folder being made from another: a context manager that holds the new data file.

    Edit `.nodes` in place, `drop` tensors and `add` new ones; what is not dropped is carried over. `factors` multiply
    carried and read tensors (name -> arrays that broadcast), which is how scales are folded into an fp32 folder.
    """

    def __init__(self, base: Path, out: Path, factors: Factors | None = None) -> None:
        self.base, self.out = base, out
        self.factors = dict(factors or {})
        super().__init__(base)
        self.nodes: list[Any] = list(self.model.graph.node)
        self.new: list[Any] = []
        self._file: BinaryIO

    def __enter__(self) -> Rewrite:
        self._folder = new_folder(self.out)
        self.work = self._folder.__enter__()
        for path in self.base.iterdir():
            if path.name not in (MODEL, SCORING, DATA):
                shutil.copyfile(path, self.work / path.name)
        self._file = open(self.work / DATA, "wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        try:
            if error is None:
                self._finish()
        except BaseException as failed:
            self._folder.__exit__(type(failed), failed, failed.__traceback__)
            raise
        finally:
            self._file.close()
        self._folder.__exit__(kind, error, trace)

    def tensor(self, name: str) -> Array:
        """A tensor of the base, scaled by its factor; a view into the mapped file where it can be."""
        value = super().tensor(name)
        for factor in self.factors.get(name, ()):
            value = value * factor
        return value

    def drop(self, name: str) -> None:
        del self.old[name]

    def add(self, name: str, value: Array) -> str:
        """A tensor of the new folder: inside the graph when small, else appended to the data file. Returns the name."""
        import onnx

        if value.nbytes < ALIGN:
            self.new.append(onnx.numpy_helper.from_array(value, name))
            return name
        self._file.write(b"\0" * (-self._file.tell() % ALIGN))
        proto = onnx.TensorProto(name=name, dims=value.shape, data_type=onnx.helper.np_dtype_to_tensor_dtype(value.dtype))
        proto.data_location = onnx.TensorProto.EXTERNAL
        for key, text in (("location", DATA), ("offset", self._file.tell()), ("length", value.nbytes)):
            entry = proto.external_data.add()
            entry.key, entry.value = key, str(text)
        self._file.write(np.ascontiguousarray(value).data)
        self.new.append(proto)
        return name

    def _finish(self) -> None:
        for name in tuple(self.old):
            self.add(name, self.tensor(name))
        graph = self.model.graph
        del graph.node[:], graph.initializer[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(self.new)
        save_graphs(self.model, self.work)
        self._file.flush()
        os.fsync(self._file.fileno())


def edit_config(folder: Path, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Overwrite keys of `genai_config.json`: {section: {key: value}}."""
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    for section, values in changes.items():
        config.setdefault(section, {}).update(values)
    path.write_text(json.dumps(config, indent=4) + "\n")


def linears(graph: Any) -> dict[str, Any]:
    """Linear name -> its MatMul node: `/model/layers.0/attn/o_proj/MatMul` is `model.layers.0.attn.o_proj`."""
    weights = {tensor.name for tensor in graph.graph.initializer}
    found = {}
    for node in graph.graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            found[node.name.strip("/").removesuffix("/MatMul").replace("/", ".")] = node
    return found
