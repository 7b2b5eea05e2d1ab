"""Products that torch runs itself, over several weights as a model's layers do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .problem import Prepared, Problem, float_weights, inputs

if TYPE_CHECKING:
    import numpy as np


def prepare(shape: Problem, dtype: str) -> Prepared:
    """x and w in `dtype`, a call of `linear` per copy; threads are those of the process."""
    import torch
    from torch.nn.functional import linear

    torch.set_num_threads(shape.threads)
    kind: torch.dtype = getattr(torch, dtype)
    x = torch.from_numpy(inputs(shape)).to(kind)
    weights = [torch.from_numpy(float_weights(shape, copy)).to(kind) for copy in range(shape.copies)]

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def call() -> Any:
        y = None
        for w in weights:
            y = linear(x, w)
        return y

    def run() -> np.ndarray[Any, Any]:
        return call().float().numpy()  # type: ignore[no-any-return]

    return Prepared(run=run, call=call, operator=lambda: f"aten::linear {dtype}")
