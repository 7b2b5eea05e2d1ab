"""torch's own product with INT4 weights in groups of 64 and bf16 activations (`_weight_int4pack_mm_for_cpu`): made for few rows.

At many rows it is many times slower than torch's bf16 product: it is timed as a trap. On torch candidates in GPTQ's and AWQ's
layouts run it, through GPTQModel (docs/checkpoints.md). Option `int4pack`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from quantadvisor.documents import Device, Scheme

from . import torch_products
from .problem import GROUP, Prepared, Problem, group_scales, grouped_reference, integer_weights
from .schemes import W4_G64_BF16

if TYPE_CHECKING:
    import numpy as np

scheme: Scheme = W4_G64_BF16
runtime = "torch"
options: tuple[str, ...] = ("int4pack",)


def refuse(device: Device, shape: Problem) -> str | None:
    for size, most in ((shape.n, 16), (shape.k, GROUP)):
        if size % most:
            return f"torch packs whole blocks of 16 rows and groups of {GROUP}: {size} is no multiple of {most}"
    return None


def arithmetic(option: str, isa: Sequence[str]) -> str:
    return "bf16"


def prepare(shape: Problem) -> Prepared:
    import torch

    def weight(copy: int) -> tuple[torch.Tensor, int, torch.Tensor]:
        q = torch.from_numpy(integer_weights(shape, 4, copy)).reshape(shape.n, shape.k)
        packed = torch._convert_weight_to_int4pack_for_cpu(q.int(), 1)
        scales = torch.from_numpy(group_scales(shape, 4, copy)).bfloat16().T
        return packed, GROUP, torch.stack([scales, torch.zeros_like(scales)], dim=-1).contiguous()

    weights = [weight(copy) for copy in range(shape.copies)]
    int4pack = torch.ops.aten._weight_int4pack_mm_for_cpu
    return torch_products.prepare_products(shape, int4pack, weights, torch.bfloat16, "aten::_weight_int4pack_mm_for_cpu")


def reference(shape: Problem) -> Callable[[], np.ndarray[Any, Any]]:
    return grouped_reference(shape, 4)
