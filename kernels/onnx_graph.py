"""Small ONNX models for the kernels of ONNX Runtime: a few nodes per weight, weights handed over without a copy.

The sessions of a probe's process share one pool of threads, whose idle threads may spin as they do in a real server. Pools
of their own that spin slow each other up to 3x where several sessions live in one process: `spin=False` is for them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantadvisor.documents.profile import only_rounds

from .problem import Bound, Prepared, Problem, inputs

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

OPSET = 21
IR_VERSION = 10
Nodes = Callable[[Problem, int], tuple[list[Any], dict[str, "Array"]]]
"""shape, copy → the nodes, which read `x` and write `y{copy}`, and their constants by name."""


def model_of(
    nodes: Sequence[Any],
    inputs: Mapping[str, tuple[int, Sequence[int | str]]],
    outputs: Mapping[str, tuple[int, Sequence[int | str]]],
    constants: Mapping[str, Array],
) -> bytes:
    """A serialised model of `nodes`; inputs and outputs as name → (TensorProto type, shape); constants by reference."""
    from onnx import helper

    def values(named: Mapping[str, tuple[int, Sequence[int | str]]]) -> list[Any]:
        return [helper.make_tensor_value_info(name, kind, list(shape)) for name, (kind, shape) in named.items()]

    initializers = [_referenced(name, array) for name, array in constants.items()]
    graph = helper.make_graph(list(nodes), "probe", values(inputs), values(outputs), initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    return bytes(model.SerializeToString())


def _referenced(name: str, array: Array) -> Any:
    """An initializer whose data come from memory when the session is made, so that 2 GiB of protobuf is no limit."""
    from onnx import TensorProto, helper

    tensor = TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="memory")
    return tensor


_pool: int | None = None
"""Threads of the pool that all sessions of this process share; None: each session has its own."""


def share_pool(threads: int) -> None:
    """From now on the sessions of this process compute in one pool of `threads`, which cannot be undone: for one that holds many
    sessions and takes turns."""
    global _pool
    if _pool is None:
        import onnxruntime

        onnxruntime.set_global_thread_pool_sizes(threads, 1)
        _pool = threads


def session_of(
    model: bytes,
    constants: Mapping[str, Array],
    threads: int,
    *,
    spin: bool = True,
    profile: str | None = None,
) -> Any:
    """A CPU session with `threads` intra-op threads, its own or the process's; `constants` must outlive it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if _pool is not None:
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    if constants:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in constants.values()]
        options.add_external_initializers(list(constants), values)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def prepare(shape: Problem, nodes_of: Nodes) -> Prepared:
    """A session, M free, whose run goes through `shape.copies` products of the same x, each with a weight of its own."""
    import onnxruntime

    model, constants = _copies(shape, nodes_of, shape.copies)
    session = session_of(model, constants, shape.threads)
    last = [f"y{shape.copies - 1}"]

    def bind(x: Array) -> Bound:
        feed = {"x": onnxruntime.OrtValue.ortvalue_from_numpy(x)}
        given: list[Any] = [constants]  # which the session reads

        def call() -> None:
            given[1:] = session.run_with_ort_values(last, feed)

        return Bound(call=call, output=lambda: given[1].numpy())

    return Prepared(
        bind=bind,
        operator=lambda: executed(shape, nodes_of),
        rounding_share=lambda m: rounding_share(replace(shape, m=m), nodes_of),
    )


def _copies(shape: Problem, nodes_of: Nodes, copies: int) -> tuple[bytes, dict[str, Array]]:
    from onnx import TensorProto

    nodes, constants, outputs = [], {}, {}
    for copy in range(copies):
        made, values = nodes_of(shape, copy)
        nodes += made
        constants.update(values)
        outputs[f"y{copy}"] = (TensorProto.FLOAT, ("m", shape.n))
    return model_of(nodes, {"x": (TensorProto.FLOAT, ("m", shape.k))}, outputs, constants), constants


def executed(shape: Problem, nodes_of: Nodes) -> str:
    """Operators that one run of one copy executes, from ONNX Runtime's own profile; of a head, 2,048 rows will do."""
    return "+".join(dict.fromkeys(name for name, _ in profiled(replace(shape, m=1, n=min(shape.n, 2048)), nodes_of)))


def rounding_share(shape: Problem, nodes_of: Nodes) -> float | None:
    """Of a warm run's kernels, the time of QuantizeLinear and DequantizeLinear, 0..1; None where neither runs."""
    ran = profiled(shape, nodes_of, runs=2)
    ran = ran[len(ran) // 2 :]
    rounding = [seconds for name, seconds in ran if only_rounds(name)]
    return sum(rounding) / sum(seconds for _, seconds in ran) if rounding else None


def profiled(shape: Problem, nodes_of: Nodes, runs: int = 1) -> list[tuple[str, float]]:
    """(operator, seconds) of each node of one copy, in the order in which they ran."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        model, constants = _copies(shape, nodes_of, 1)
        session = session_of(model, constants, shape.threads, profile=str(Path(folder) / "profile"))
        for _ in range(runs):
            session.run(None, {"x": inputs(shape.m, shape.k)})
        events = json.loads(Path(session.end_profiling()).read_text())
    return [
        (event["args"]["op_name"], event["dur"] / 1e6)
        for event in events
        if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time")
    ]


def nbits_nodes(bits: int, accuracy_level: int = 4) -> Nodes:
    """MatMulNBits in groups of 64, by default with INT8 arithmetic (accuracy_level 4); at 4 bits with a zero point per group."""
    import numpy as np
    from onnx import helper

    from .problem import GROUP, group_scales, groups, integer_weights

    def nodes_of(shape: Problem, copy: int) -> tuple[list[Any], dict[str, Array]]:
        q = integer_weights(shape, bits, copy)
        packed = q if bits == 8 else q[:, :, 0::2] | (q[:, :, 1::2] << 4)
        values = [packed, group_scales(shape, bits, copy)]
        if bits == 4:
            values.append(np.full((shape.n, -(-groups(shape.k) // 2)), 0x88, dtype=np.uint8))
        names = [f"{letter}{copy}" for letter in "wsz"[: len(values)]]
        attributes = {"K": shape.k, "N": shape.n, "bits": bits, "block_size": GROUP, "accuracy_level": accuracy_level}
        node = helper.make_node("MatMulNBits", ["x", *names], [f"y{copy}"], domain="com.microsoft", **attributes)
        return [node], dict(zip(names, values, strict=True))

    return nodes_of


def dynamic_nodes(stored: Callable[[Problem, int], Sequence[Array]]) -> Nodes:
    """DynamicQuantizeMatMul over what is `stored` of a copy: codes [K, N], scales [N] and, where they have any, zeros [N]."""
    from onnx import helper

    def nodes_of(shape: Problem, copy: int) -> tuple[list[Any], dict[str, Array]]:
        values = stored(shape, copy)
        names = [f"{letter}{copy}" for letter in "wsz"[: len(values)]]
        node = helper.make_node("DynamicQuantizeMatMul", ["x", *names], [f"y{copy}"], domain="com.microsoft")
        return [node], dict(zip(names, values, strict=True))

    return nodes_of


def square_product(number: str, size: int, threads: int) -> tuple[Callable[[], object], str]:
    """A product of two `size` x `size` matrices, the second constant: MatMul (fp32) or MatMulInteger (u8 x s8)."""
    import numpy as np
    from onnx import TensorProto, helper

    rng = np.random.default_rng(0)
    shape = (size, size)
    w: Array
    x: Array
    if number == "fp32":
        x, w = (rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
        operator, kinds = "MatMul", (TensorProto.FLOAT, TensorProto.FLOAT)
    elif number == "int8":
        x, w = rng.integers(0, 255, shape, dtype=np.uint8), rng.integers(-127, 127, shape, dtype=np.int8)
        operator, kinds = "MatMulInteger", (TensorProto.UINT8, TensorProto.INT32)
    else:
        raise NotImplementedError(f"ONNX Runtime's CPU provider has no {number} MatMul")
    node = helper.make_node(operator, ["x", "w"], ["y"])
    constants = {"w": w}
    model = model_of([node], {"x": (kinds[0], shape)}, {"y": (kinds[1], shape)}, constants)
    session = session_of(model, constants, threads, spin=False)
    feed = {"x": x}
    return lambda: constants and session.run(None, feed), f"onnxruntime {operator}"
