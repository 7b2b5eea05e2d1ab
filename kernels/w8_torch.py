"""torch's own product with INT8 weights per channel and bf16 activations (`_weight_int8pack_mm`): made for few rows.

At many rows it is many times slower than torch's bf16 product. No candidate runs it: it is timed as a trap. Option `int8pack`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from quantadvisor.documents import Device, Scheme

from . import torch_products
from .problem import Prepared, Problem, channel_weights, inputs, product
from .schemes import W8_CHANNEL_BF16

if TYPE_CHECKING:
    import numpy as np

scheme: Scheme = W8_CHANNEL_BF16
runtime = "torch"
options: tuple[str, ...] = ("int8pack",)


def refuse(device: Device, shape: Problem) -> str | None:
    if shape.k % 16:
        return f"torch's kernel reads past the end of a row: K = {shape.k} is no multiple of 16"
    return None


def arithmetic(option: str, isa: Sequence[str]) -> str:
    return "bf16"


def prepare(shape: Problem) -> Prepared:
    import torch

    def weight(copy: int) -> tuple[torch.Tensor, torch.Tensor]:
        q, scale = channel_weights(shape, copy)
        return torch.from_numpy(q), torch.from_numpy(scale).bfloat16()

    weights = [weight(copy) for copy in range(shape.copies)]
    int8pack = torch.ops.aten._weight_int8pack_mm
    return torch_products.prepare_products(shape, int8pack, weights, torch.bfloat16, "aten::_weight_int8pack_mm")


def reference(shape: Problem) -> Callable[[], np.ndarray[Any, Any]]:
    q, scale = channel_weights(shape, shape.copies - 1)
    return product(inputs(shape.m, shape.k), q * scale[:, None])
