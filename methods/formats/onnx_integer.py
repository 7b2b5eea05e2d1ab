"""Static W8A8 for NPUs: integers on both sides of every operator, as `onnxruntime.quantization` writes them in QDQ form.

    codes ── Dequantize ── MatMul ── Quantize ── codes ── Dequantize ── Sigmoid ── Quantize ── codes ── …

`onnx_qdq.py` rounds what linears read. Here what they, the SiLU between them, the norms and the embedding write is rounded too,
one fixed uint8 range a tensor; weights are int8 about 0, one scale per output channel, lm_head's shared with the embedding. ONNX
Runtime's own tool places it all, with its options for Qualcomm's NPUs (`get_qnn_qdq_config`), from ranges that we measure. ONNX
Runtime then makes QLinearMatMul, QLinearSigmoid and QLinearMul of it: a compiler may take the same graph.

Sixteen bits for two kinds of tensors, as NPUs offer them: the residual stream, where a few massive activations would leave the
rest no levels of 256, and the weights of norms. GroupQueryAttention is left as one float operator between integers, with a float
cache: neither the tool nor ONNX Runtime has an integer one: an NPU's compiler must take it apart.

It costs: on SmolLM2-135M (1,024 tokens, ranges from 32 samples) the KL is 1.2 with SmoothQuant and 1.8 without, where 0.05 and
0.75 are left when only what linears read is rounded. Most of it is what down_proj writes, massive activations among it: with that
in 16 bit, which no integer product of ONNX Runtime writes, it was 0.3 (512 tokens). With the residual stream in 8 it is 9.5.

The tool holds the model in memory whole, in float32 and in integers.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantadvisor.kernels.saturation import saturates

from ..kept import Arrays, Kept
from ..observe import gather_samples
from ..training import Say, silent
from .onnx_base import HIDDEN, SCORING, Factors, Rewrite, load_graph
from .onnx_cache import empty_cache

Ranges = Mapping[str, tuple[np.float32, np.float32]]
"""tensor -> its least and its largest value"""
NORMS = {"SimplifiedLayerNormalization": 1, "SkipSimplifiedLayerNormalization": 2}
"""Norms, and which of their inputs is the weight."""
RESIDUAL = {"Gather": 0, "SkipSimplifiedLayerNormalization": 3}
"""Operators that write the residual stream, and at which output."""
ROUNDED = ("MatMul", "Add", "Mul", "Sigmoid", "Gather", "Transpose", *NORMS)
"""Operators that get integers on both sides, where they have floats."""


def quantize_integer_w8a8(base: Path, out: Path, tokens: NDArray[np.int64], factors: Factors | None = None,
                          say: Say = silent, kept: Kept | None = None) -> None:  # fmt: skip
    """`tokens` int64 [samples, length]: the ranges are the extremes that each tensor reaches in their prefills, after each of
    which `say` is told how far it is. `factors` are multiplied in first. Weights take 7 bits where this CPU's sums of 8
    saturate. `kept`: the ranges so far, and what an interrupted run had found."""
    import onnx

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".integer.") as scratch:
        plain, made = Path(scratch) / "plain", Path(scratch) / "made.onnx"
        with Rewrite(base, plain, factors):
            pass
        typed(plain)
        write_qdq(plain / SCORING, made, tensor_ranges(plain, tokens, say, kept))
        quantized = onnx.load(made)
    with Rewrite(base, out) as edit:
        edit.old.clear()
        edit.nodes[:] = quantized.graph.node
        for tensor in quantized.graph.initializer:
            edit.add(tensor.name, onnx.numpy_helper.to_array(tensor))
        hidden = next(entry for entry in edit.model.metadata_props if entry.key == HIDDEN)
        hidden.value = next(node.output[0] for node in edit.nodes if hidden.value in node.input)  # its codes


def typed(folder: Path) -> None:
    """Write into a folder's graph which type every tensor has: ONNX's own inference stops at ONNX Runtime's operators."""
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    graph = SymbolicShapeInference.infer_shapes(load_graph(folder), auto_merge=True)
    (folder / SCORING).write_bytes(graph.SerializeToString())


def tensor_ranges(folder: Path, tokens: NDArray[np.int64], say: Say = silent, kept: Kept | None = None) -> Ranges:
    """The least and the largest value of every float tensor beside the operators of ROUNDED, zero among them; each sample is
    one prefill."""
    import onnx
    import onnxruntime as ort

    graph = load_graph(folder)
    beside = {name for node in graph.graph.node if node.op_type in ROUNDED for name in (*node.input, *node.output)}
    names = list(dict.fromkeys(
        value.name for value in (*graph.graph.value_info, *graph.graph.output)
        if value.name in beside and value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    ))  # fmt: skip
    del graph.graph.output[:]
    for kind in ("ReduceMin", "ReduceMax"):
        for name in names:
            graph.graph.node.append(onnx.helper.make_node(kind, [name], [f"{kind} {name}"], keepdims=0))
            graph.graph.output.append(onnx.helper.make_tensor_value_info(f"{kind} {name}", onnx.TensorProto.FLOAT, []))
    (folder / "seen.onnx").write_bytes(graph.SerializeToString())
    session = ort.InferenceSession(str(folder / "seen.onnx"), providers=["CPUExecutionProvider"])
    empty, zeros = empty_cache(session, folder), np.zeros(len(names), np.float32)

    def widen(bounds: Arrays, sample: NDArray[np.int64]) -> Arrays:
        fed = {"input_ids": sample[None], "attention_mask": np.ones((1, len(sample)), np.int64), **empty}
        low, high = np.array(session.run(None, fed), np.float32).reshape(2, -1)
        return {"low": np.minimum(bounds["low"], low), "high": np.maximum(bounds["high"], high)}

    found = gather_samples(tokens, {"low": zeros, "high": zeros}, widen, {} if kept is None else kept, say)
    return {name: (low, high) for name, low, high in zip(names, found["low"], found["high"], strict=True)}


def write_qdq(source: Path, made: Path, ranges: Ranges) -> None:
    """The graph of file `source` as ONNX Runtime's tool quantizes it, into the file `made`."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

    graph = onnx.load(str(source), load_external_data=False)
    wide = {name: [{"quant_type": QuantType.QUInt16}] for name in sixteen_bits(graph)}
    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    found = made.with_suffix(".json")
    save_tensors_data(TensorsData(CalibrationMethod.MinMax, dict(ranges)), found)
    with silent_tool():
        config = get_qnn_qdq_config(graph, None, init_overrides=wide, add_qtype_converts=False, **kinds)
        quantize_static(
            source, made, op_types_to_quantize=list(ROUNDED), per_channel=True, reduce_range=saturates(),
            calibration_cache_path=found, use_external_data_format=True, extra_options=config.extra_options, **kinds,
        )  # fmt: skip


def sixteen_bits(graph: Any) -> Iterator[str]:
    """Tensors of the residual stream, and the weights of norms."""
    integers = {value.name for value in graph.graph.value_info if value.type.tensor_type.elem_type != 1}
    for node in graph.graph.node:
        written = node.output[RESIDUAL[node.op_type] :] if node.op_type in RESIDUAL else ()
        yield from (name for name in written if name not in integers)
        if node.op_type in NORMS:
            yield node.input[NORMS[node.op_type]]


@contextmanager
def silent_tool() -> Iterator[None]:
    """It advises a pre-processing that stops at ONNX Runtime's operators, and warns of every optional output."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
