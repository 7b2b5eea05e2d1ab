"""vLLM's INT8 product on its CPU build: per-channel weights, activations rounded per token inside the operator.

The kernel that vLLM itself chooses for these sizes (`CPUInt8ScaledMMLinearKernel`): SGLang's, on AMX tiles, where these
divide N and K, else oneDNN's. It runs in vLLM's own environment. Activations come and go in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from quantadvisor.documents import Device, Scheme

from .problem import Prepared, Problem, channel_weights, inputs, product
from .schemes import W8A8_BF16
from .torch_products import bound

if TYPE_CHECKING:
    import numpy as np

scheme: Scheme = W8A8_BF16
runtime = "vllm"
options: tuple[str, ...] = ("",)


def refuse(device: Device, shape: Problem) -> str | None:
    return None


def arithmetic(option: str, isa: Sequence[str]) -> str:
    return "int8"


def prepare(shape: Problem) -> Prepared:
    import torch
    from vllm import _custom_ops as ops
    from vllm.model_executor.layers.utils import check_cpu_sgl_kernel

    torch.set_num_threads(shape.threads)
    kind = torch.bfloat16
    tiles = check_cpu_sgl_kernel(shape.n, shape.k, torch.int8)

    def packed(copy: int) -> Callable[[Any], Any]:
        codes, scales = (torch.from_numpy(part) for part in channel_weights(shape, copy))
        if tiles:
            w = torch.ops._C.convert_weight_packed(codes)
            return lambda x: torch.ops._C.int8_scaled_mm_with_quant(x, w, scales, None, kind, True)
        handler = ops.create_onednn_scaled_mm(codes.t(), scales.unsqueeze(1), kind, True, False, 32)

        def onednn(x: Any) -> Any:
            x_codes, x_scales, _ = ops.onednn_scaled_int8_quant(x, None, None, True)
            y = torch.empty((len(x), shape.n), dtype=kind)
            ops.onednn_scaled_mm(handler, x_codes, y, x_scales, None, None, None)
            return y

        return onednn

    products = [packed(copy) for copy in range(shape.copies)]

    def through(x: Any) -> Any:
        for run in products:
            y = run(x)
        return y

    name = "int8_scaled_mm_with_quant" if tiles else "onednn_scaled_mm"
    return Prepared(bind=lambda x: bound(through, torch.from_numpy(x).to(kind)), operator=lambda: name)


def reference(shape: Problem) -> Callable[[], np.ndarray[Any, Any]]:
    codes, scales = channel_weights(shape, shape.copies - 1)
    return product(inputs(shape.m, shape.k), codes * scales[:, None])
