"""One-node ONNX models for the kernels of ONNX Runtime: building them, and sessions that do not disturb others.

Idle intra-op threads of a session spin and slow every other session of the process up to 3x, so spinning is off here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

OPSET = 21
IR_VERSION = 10


def model_of(
    nodes: Sequence[Any],
    inputs: Mapping[str, tuple[int, Sequence[int | str]]],
    outputs: Mapping[str, tuple[int, Sequence[int | str]]],
    constants: Mapping[str, np.ndarray[Any, Any]],
) -> bytes:
    """A serialised model of `nodes`; inputs and outputs as name → (TensorProto type, shape)."""
    from onnx import helper, numpy_helper

    def values(named: Mapping[str, tuple[int, Sequence[int | str]]]) -> list[Any]:
        return [helper.make_tensor_value_info(name, kind, list(shape)) for name, (kind, shape) in named.items()]

    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(list(nodes), "probe", values(inputs), values(outputs), initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    return bytes(model.SerializeToString())


def session_of(model: bytes, threads: int, config: Mapping[str, str] | None = None) -> Any:
    """A CPU session with `threads` intra-op threads that do not spin while idle."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    for key, value in {"session.intra_op.allow_spinning": "0", **(config or {})}.items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def square_product(number: str, size: int, threads: int) -> tuple[Callable[[], object], str]:
    """A product of two `size` x `size` matrices, the second constant: MatMul (fp32) or MatMulInteger (u8 x s8)."""
    import numpy as np
    from onnx import TensorProto, helper

    rng = np.random.default_rng(0)
    shape = (size, size)
    if number == "fp32":
        x, w = (rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
        operator, kinds = "MatMul", (TensorProto.FLOAT, TensorProto.FLOAT)
    elif number == "int8":
        x, w = rng.integers(0, 255, shape, dtype=np.uint8), rng.integers(-127, 127, shape, dtype=np.int8)
        operator, kinds = "MatMulInteger", (TensorProto.UINT8, TensorProto.INT32)
    else:
        raise NotImplementedError(f"ONNX Runtime's CPU provider has no {number} MatMul")
    node = helper.make_node(operator, ["x", "w"], ["y"])
    session = session_of(model_of([node], {"x": (kinds[0], shape)}, {"y": (kinds[1], shape)}, {"w": w}), threads)
    feed = {"x": x}
    return lambda: session.run(None, feed), f"onnxruntime {operator}"
