"""ONNX Runtime's static INT8 in QDQ form: QuantizeLinear, QLinearMatMul and DequantizeLinear around every product.

As `quantize_static` writes it for MatMul: input and output have one UINT8 range each, here set by hand to four standard
deviations, and weights are INT8 per channel. No candidate runs it: it is timed as a trap. Option `qdq`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from quantadvisor.documents import Device, Scheme

from . import onnx_graph
from .problem import Prepared, Problem, exact_weights, inputs, product
from .schemes import W8A8_STATIC

if TYPE_CHECKING:
    import numpy as np

scheme: Scheme = W8A8_STATIC
runtime = "onnxruntime"
options: tuple[str, ...] = ("qdq",)

RANGE = 4.0
STEP = RANGE / 128


def refuse(device: Device, shape: Problem) -> str | None:
    return None


def arithmetic(option: str, isa: Sequence[str]) -> str:
    return "int8"


def prepare(shape: Problem) -> Prepared:
    return onnx_graph.prepare(shape, nodes_of)


def nodes_of(shape: Problem, copy: int) -> tuple[list[Any], dict[str, np.ndarray[Any, Any]]]:
    """x → q → x' · w' → q → y, all in floats as written: ONNX Runtime makes one QLinearMatMul of the middle."""
    import numpy as np
    from onnx import helper

    q, scale = exact_weights(shape, copy, transposed=True)
    constants = {f"w{copy}": q, f"s{copy}": scale, f"z{copy}": np.zeros(shape.n, np.int8)}
    constants |= {"step": np.array(STEP, np.float32), "zero": np.array(128, np.uint8)}

    def rounded(given: str, name: str, to: str) -> list[Any]:
        return [
            helper.make_node("QuantizeLinear", [given, "step", "zero"], [name]),
            helper.make_node("DequantizeLinear", [name, "step", "zero"], [to]),
        ]

    return [
        *rounded("x", f"xq{copy}", f"xr{copy}"),
        helper.make_node("DequantizeLinear", [f"w{copy}", f"s{copy}", f"z{copy}"], [f"wr{copy}"], axis=1),
        helper.make_node("MatMul", [f"xr{copy}", f"wr{copy}"], [f"yf{copy}"]),
        *rounded(f"yf{copy}", f"yq{copy}", f"y{copy}"),
    ], constants


def reference(shape: Problem) -> Callable[[], np.ndarray[Any, Any]]:
    """With x and y rounded as above."""
    import numpy as np

    def rounded(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        whole: np.ndarray[Any, Any] = np.clip(np.rint(values / STEP), -128, 127) * STEP
        return whole

    q, scale = exact_weights(shape, shape.copies - 1, transposed=True)
    exact = product(rounded(inputs(shape.m, shape.k)), q.T * scale[:, None])
    return lambda: rounded(exact())
