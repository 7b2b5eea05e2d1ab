"""vLLM's unquantized bfloat16 product on its CPU build, by its own dispatch: SGLang's packed kernel for small weights that
its tiles divide, oneDNN's on a prepacked weight for the others. It runs in vLLM's own environment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from quantadvisor.documents import Device, Scheme

from .problem import Prepared, Problem, float_reference, float_weights
from .schemes import BF16
from .torch_products import bound

if TYPE_CHECKING:
    import numpy as np

scheme: Scheme = BF16
runtime = "vllm"
options: tuple[str, ...] = ("",)


def refuse(device: Device, shape: Problem) -> str | None:
    return None


def arithmetic(option: str, isa: Sequence[str]) -> str:
    return "bf16"


def prepare(shape: Problem) -> Prepared:
    import torch
    from vllm.model_executor.layers.utils import check_cpu_sgl_kernel, dispatch_cpu_unquantized_gemm

    torch.set_num_threads(shape.threads)
    torch.set_grad_enabled(False)
    layers = [torch.nn.Linear(shape.k, shape.n, bias=False, device="meta") for _ in range(shape.copies)]
    for copy, layer in enumerate(layers):
        layer.weight = torch.nn.Parameter(torch.from_numpy(float_weights(shape, copy)).to(torch.bfloat16))
        dispatch_cpu_unquantized_gemm(layer, remove_weight=False)

    def through(x: Any) -> Any:
        for layer in layers:
            y = layer.cpu_linear(x, layer.weight, None)
        return y

    name = "weight_packed_linear" if check_cpu_sgl_kernel(shape.n, shape.k, torch.bfloat16) else "onednn_mm"
    return Prepared(bind=lambda x: bound(through, torch.from_numpy(x).to(torch.bfloat16)), operator=lambda: name)


def reference(shape: Problem) -> Callable[[], np.ndarray[Any, Any]]:
    return float_reference(shape)
