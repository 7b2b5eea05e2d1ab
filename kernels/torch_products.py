"""Products that torch runs itself, over several weights as a model's layers do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .problem import Bound, Prepared, Problem, float_weights

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def prepare(shape: Problem, dtype: str) -> Prepared:
    """x and w in `dtype`, a call of `linear` per copy."""
    import torch
    from torch.nn.functional import linear

    kind: torch.dtype = getattr(torch, dtype)
    weights = [(torch.from_numpy(float_weights(shape, copy)).to(kind),) for copy in range(shape.copies)]
    return prepare_products(shape, linear, weights, kind, f"aten::linear {dtype}")


def prepare_products(
    shape: Problem, product: Callable[..., Any], weights: Sequence[tuple[Any, ...]], dtype: Any, operator: str
) -> Prepared:
    """`product(x, *weight)` for the weight of every copy, x in `dtype`; threads are those of the process."""
    import torch

    torch.set_num_threads(shape.threads)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def through(x: torch.Tensor) -> torch.Tensor:
        for weight in weights:
            y: torch.Tensor = product(x, *weight)
        return y

    return Prepared(bind=lambda x: bound(through, torch.from_numpy(x).to(dtype)), operator=lambda: operator)


def bound(through: Callable[[Any], Any], x: Any) -> Bound:
    """A function of a tensor, called on `x`; it keeps what it gave."""
    given: list[Any] = [None]

    def call() -> None:
        given[0] = through(x)

    return Bound(call=call, output=lambda: given[0].float().numpy())
