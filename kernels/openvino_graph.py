"""Small OpenVINO models for the kernels of its CPU plugin: one MatMul per weight, constants shared without a copy.

Compressed weights are the subgraph that NNCF writes: (u4 or u8 − zero point) x float16 scale per group, reshaped.
The plugin quantizes activations to INT8 in groups of 32 on its own there (`DYNAMIC_QUANTIZATION_GROUP_SIZE`), except
where the bf16 hint meets AMX, which it then multiplies with; the tests see it in the error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from quantadvisor.documents import Device

from .problem import GROUP, Bound, Prepared, Problem, group_scales, integer_weights

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

OPTIONS = ("f32", "bf16")
Weight = Callable[[int], Any]
"""copy → the node of w: [N, K]."""


def prepare(shape: Problem, weight: Weight, activation: Callable[[Any], Any] = lambda x: x) -> Prepared:
    """A compiled model, M free, whose inference goes through `shape.copies` products of the same x."""
    import numpy as np
    import openvino
    from openvino import opset13

    x = opset13.parameter([-1, shape.k], np.float32, name="x")
    products = [opset13.matmul(activation(x), weight(copy), False, True) for copy in range(shape.copies)]
    model = openvino.Model([opset13.result(product) for product in products], [x])
    compiled = openvino.Core().compile_model(model, "CPU", configuration(shape))

    def bind(data: Array) -> Bound:
        request = compiled.create_infer_request()
        request.set_input_tensor(openvino.Tensor(data, shared_memory=True))

        def call() -> object:
            request.start_async()
            request.wait()
            return data, weight  # the request and the constants read their memory

        return Bound(call=call, output=lambda: np.array(request.get_output_tensor(shape.copies - 1).data))

    return Prepared(bind=bind, operator=lambda: executed(compiled))


def configuration(shape: Problem) -> Mapping[str, str | int]:
    return {
        "INFERENCE_PRECISION_HINT": shape.option or "f32",
        "INFERENCE_NUM_THREADS": shape.threads,
        "NUM_STREAMS": 1,
    }


def executed(compiled: Any) -> str:
    """The primitive of the products, with the type that their weights have."""
    found = []
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        layer, primitive, precision = (info[key].astype(str) for key in ("layerType", "primitiveType", "runtimePrecision"))
        if layer in ("FullyConnected", "MatMul"):
            found.append(f"{layer} {primitive} {precision}")
    return "+".join(dict.fromkeys(found))


def constant(array: Array) -> Any:
    from openvino import opset13

    return opset13.constant(array, shared_memory=True)


def compressed_weight(shape: Problem, bits: int) -> Weight:
    """w as grouped integers: u4 (low half first), zero point per group, or u8 and one; float16 scales."""
    import numpy as np
    import openvino
    from openvino import opset13

    sizes = [shape.n, shape.k // GROUP, GROUP]
    zero = 1 << (bits - 1)
    kept: list[Array] = []  # a constant made from a tensor reads its memory and does not own it

    def integers(q: Array, shape_q: Sequence[int]) -> Any:
        if bits == 8:
            return constant(q.reshape(-1)[: math.prod(shape_q)].reshape(shape_q))
        flat = q.reshape(-1)
        packed = flat[0::2] | (flat[1::2] << 4)
        kept.append(packed)
        return opset13.constant(openvino.Tensor(packed, openvino.Shape(shape_q), openvino.Type.u4))

    def weight(copy: int) -> Any:
        stored = integers(integer_weights(shape, bits, copy), sizes)
        points = [shape.n, sizes[1], 1] if bits == 4 else [1, 1, 1]
        point = integers(np.full(math.prod(points) + math.prod(points) % 2, zero, dtype=np.uint8), points)
        centred = opset13.subtract(opset13.convert(stored, np.float16), opset13.convert(point, np.float16))
        scales = group_scales(shape, bits, copy).astype(np.float16)[:, :, None]
        whole = opset13.reshape(opset13.multiply(centred, constant(scales)), np.array([shape.n, shape.k]), False)
        return opset13.convert(whole, np.float32)

    return weight


def refuse(device: Device, shape: Problem) -> str | None:
    """Asked for bfloat16, the plugin runs its f32 kernels where the CPU has no instructions for it."""
    if shape.option == "bf16" and not {"amx_bf16", "avx512_bf16"} & set(device.isa):
        return "bf16 needs a CPU with amx_bf16 or avx512_bf16, which this one lacks: the f32 kernel would run"
    return None


def refuse_group(device: Device, shape: Problem) -> str | None:
    if shape.k % GROUP:
        return f"OpenVINO compresses whole groups only: K = {shape.k} is no multiple of {GROUP}"
    return refuse(device, shape)


def compressed_arithmetic(option: str, isa: Sequence[str]) -> str:
    """Number type that compressed weights are multiplied in."""
    return "bf16" if option == "bf16" and "amx_bf16" in isa else "int8"
