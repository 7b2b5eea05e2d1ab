"""An INT8 or INT4 key-value cache in ONNX Runtime: GroupQueryAttention with one fixed scale per channel.

Scales are bounds / 127 (INT4: / 7) over the keys (after the rotary embedding) and values of real prefills, one per layer,
head and channel; codes are signed. The cache enters and leaves the graph as int8, or as uint8 of half the width with two
codes in a byte; attention reads it without a float copy.

A value's bound is max|v|. A key's is the largest norm of its rotary pair, sqrt(k_i^2 + k_j^2), which no position changes:
max|k| over short samples is too small for the slow pairs, which have hardly turned there, and clips them at long contexts
(measured: SmolLM2-135M, KL 0.0005 at 128 tokens and 3.9 at 2,040 with max|k| from samples of 128).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantadvisor.documents.errors import CandidateFailed

from ..kept import Arrays, Kept
from ..observe import gather_samples
from ..training import Say, silent
from .folders import link_or_copy, new_folder
from .onnx_base import DATA, MODEL, SCORING, edit_config, load_graph, save_graphs

Bounds = dict[str, NDArray[np.float32]]
"""`past_key_values.<layer>.key|value` -> [kv_heads * head_size]"""

ATTENTION = "GroupQueryAttention"
K_SCALE = 12
"""Index of GroupQueryAttention's input k_scale; v_scale follows."""


def calibrate_cache(base: Path, tokens: NDArray[np.int64], say: Say = silent, kept: Kept | None = None) -> Bounds:
    """Bounds per channel over tokens: [samples, length]; each sample is one prefill of the fp32 folder, after which `say` is
    told how far it is. `kept`: what was found so far, and what an interrupted run had found."""
    import onnxruntime as ort

    nodes = load_graph(base).graph.node
    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not any(node.op_type == "MatMulNBits" for node in nodes):  # packed, it rounds activations too
        options.add_session_config_entry("session.disable_prepacking", "1")  # float weights stay mapped, none is copied
    session = ort.InferenceSession(str(base / MODEL), options, providers=["CPUExecutionProvider"])
    empty = empty_cache(session, base)
    presents = {name: name.replace("past_key_values", "present") for name in empty}
    zeros = {name: np.zeros(cache.shape[1] * cache.shape[3], np.float32) for name, cache in empty.items()}
    turned = rotary(nodes, _head_size(base))

    def widen(bound: Arrays, sample: NDArray[np.int64]) -> Arrays:
        feeds, wider = {"input_ids": sample[None], "attention_mask": np.ones((1, len(sample)), np.int64), **empty}, Arrays()
        for name, cache in zip(empty, session.run(list(presents.values()), feeds), strict=True):
            sizes = pair_norms(cache[0], *turned) if name.endswith(".key") else np.abs(cache[0])
            wider[name] = np.maximum(bound[name], sizes.max(axis=1).reshape(-1))
        return wider

    bound = gather_samples(tokens, zeros, widen, {} if kept is None else kept, say)
    return {name: np.where(bound[name] > 0, bound[name], 1).astype(np.float32) for name in empty}


def empty_cache(session: Any, folder: Path) -> dict[str, NDArray[np.float32]]:
    """What a session reads that has read nothing yet, by input: [1, kv_heads, 0, head_size]."""
    past = [value for value in session.get_inputs() if value.name.startswith("past_key_values.")]
    return {value.name: np.zeros((1, value.shape[1], 0, _head_size(folder)), np.float32) for value in past}


def rotary(nodes: Iterable[Any], head_size: int) -> tuple[int, bool]:
    """(channels of a head that attention among `nodes` turns, whether pairs are neighbours); 0 where it turns none."""
    for node in nodes:
        if node.op_type == ATTENTION:
            found = {attribute.name: attribute.i for attribute in node.attribute}
            turned = found.get("rotary_embedding_dim") or head_size
            return (turned if found.get("do_rotary") else 0), bool(found.get("rotary_interleaved"))
    return 0, False


def pair_norms(keys: NDArray[np.float32], turned: int, neighbours: bool) -> NDArray[np.float32]:
    """[..., head_size]: sqrt(k_i^2 + k_j^2) for both channels of a rotary pair, |k| for channels that are not turned."""
    sizes = np.abs(keys)
    head = sizes[..., :turned]
    first, second = (head[..., ::2], head[..., 1::2]) if neighbours else (head[..., : turned // 2], head[..., turned // 2 :])
    norms = np.hypot(first, second)
    first[...] = second[...] = norms
    return sizes


def quantize_cache(base: Path, out: Path, bounds: Mapping[str, NDArray[np.float32]], bits: int = 8) -> None:
    """The folder `base`, whose weights may already be integers, with an 8- or 4-bit cache. Its data file is linked."""
    import onnx

    graph = load_graph(base)
    nodes = [node for node in graph.graph.node if node.op_type == ATTENTION]
    if not nodes:
        raise CandidateFailed(f"{base}: no {ATTENTION} node; the INT8 cache needs one per layer")
    for node in nodes:
        names = []
        for place, side in ((3, "k"), (4, "v")):
            name = f"{node.name.strip('/').replace('/', '.').removesuffix('.' + ATTENTION)}.{side}_scale"
            scale = bounds[node.input[place]] / np.float32(2 ** (bits - 1) - 1)
            graph.graph.initializer.append(onnx.numpy_helper.from_array(scale, name))
            names.append(name)
        _extend(node, names, bits)
    caches = {name for node in nodes for name in (*node.input[3:5], *node.output[1:3])}
    for value in (*graph.graph.input, *graph.graph.output):
        if value.name in caches:
            value.type.tensor_type.elem_type = onnx.TensorProto.INT8 if bits == 8 else onnx.TensorProto.UINT8
            value.type.tensor_type.shape.dim[3].dim_value = _head_size(base) * bits // 8
    with new_folder(out) as work:
        for path in base.iterdir():
            if path.name not in (MODEL, SCORING):
                (link_or_copy if path.name == DATA else _copy)(path, work / path.name)
        save_graphs(graph, work)
        edit_config(work, {"search": {"past_present_share_buffer": False}})


def _extend(node: Any, names: list[str], bits: int) -> None:
    """Give one GroupQueryAttention its scales (inputs 12 and 13) and the attributes that make it read integers."""
    import onnx

    inputs = [*node.input, *[""] * (K_SCALE - len(node.input))]
    del node.input[:]
    node.input.extend([*inputs[:K_SCALE], *names, *inputs[K_SCALE + 2 :]])
    for key, value in (("k_quant_type", "PER_CHANNEL"), ("v_quant_type", "PER_CHANNEL"), ("kv_cache_bit_width", bits)):
        node.attribute.append(onnx.helper.make_attribute(key, value))


def _head_size(folder: Path) -> int:
    import json

    return int(json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]["head_size"])


def _copy(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())
