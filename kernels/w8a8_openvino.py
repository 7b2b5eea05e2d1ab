"""OpenVINO's INT8 product: a FakeQuantize of the activations, one static range, and INT8 weights per channel.

The range here is set by hand to four standard deviations; the option is the float type of what goes in and comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from quantadvisor.documents import Device, Scheme

from . import openvino_graph
from .problem import Prepared, Problem, exact_weights, inputs, product
from .schemes import W8A8_STATIC

if TYPE_CHECKING:
    import numpy as np

scheme: Scheme = W8A8_STATIC
runtime = "openvino"
options: tuple[str, ...] = openvino_graph.OPTIONS

RANGE = 4.0


def refuse(device: Device, shape: Problem) -> str | None:
    return openvino_graph.refuse(device, shape)


def arithmetic(option: str, isa: Sequence[str]) -> str:
    return "int8"


def prepare(shape: Problem) -> Prepared:
    import numpy as np
    from openvino import opset13

    low, high = (opset13.constant(np.float32(end)) for end in (-RANGE, RANGE * 127 / 128))

    def weight(copy: int) -> Any:
        q, scale = exact_weights(shape, copy)
        whole = opset13.convert(openvino_graph.constant(q), np.float32)
        return opset13.multiply(whole, openvino_graph.constant(scale[:, None]))

    def activation(x: Any) -> Any:
        return opset13.fake_quantize(x, low, high, low, high, 256)

    return openvino_graph.prepare(shape, weight, activation)


def reference(shape: Problem) -> Callable[[], np.ndarray[Any, Any]]:
    import numpy as np

    q, scale = exact_weights(shape, shape.copies - 1)
    step = RANGE / 128
    x = np.clip(np.rint(inputs(shape.m, shape.k) / step), -128, 127) * step
    return product(x, q * scale[:, None])
