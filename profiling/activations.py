"""What the inputs of a model's linears look like: where outliers sit, and what rounding them to INT8 costs.

The criterion is that of LLM.int8() (arXiv:2208.07339, section 3.1): a feature of magnitude 6 or more. The error of a
granularity is sum (x − Q(x))² / sum x², with symmetric INT8 whose scale is the largest magnitude of one sequence's
tensor, of one token, or of one channel of one sequence: what a dynamic quantizer would see at that moment. The head is
left out: it sees one position per sequence, and methods treat it apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantadvisor.documents import ActivationStats, LayerActivations

if TYPE_CHECKING:
    import numpy as np
    import torch

OUTLIER = 6.0
GRANULARITIES: dict[str, int | None] = {"tensor": None, "token": 1, "channel": 0}
"""name → the dimension of x: [tokens, K] that one scale spans; None: all of it."""


@dataclass
class Observed:
    """Running figures of the inputs of one linear."""

    absmax: torch.Tensor | None = None
    """float32 [K]"""
    tokens: int = 0
    outlier_tokens: int = 0
    squares: float = 0.0
    errors: dict[str, float] = field(default_factory=lambda: dict.fromkeys(GRANULARITIES, 0.0))

    def add(self, x: torch.Tensor) -> None:
        """x: float32 [tokens, K] of one sequence."""
        import torch

        size = x.abs()
        channels = size.amax(dim=0)
        self.absmax = channels if self.absmax is None else torch.maximum(self.absmax, channels)
        self.tokens += len(x)
        self.outlier_tokens += int((size.amax(dim=1) >= OUTLIER).sum())
        self.squares += float(x.square().sum(dtype=torch.float64))
        for name, dim in GRANULARITIES.items():
            largest = size.amax() if dim is None else size.amax(dim=dim, keepdim=True)
            self.errors[name] += rounding_error(x, largest)


def rounding_error(x: torch.Tensor, largest: torch.Tensor) -> float:
    """sum (x − Q(x))² for symmetric INT8 over ± `largest`, which broadcasts against x."""
    import torch

    scale = (largest / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return float(torch.round(x / scale).mul_(scale).sub_(x).square_().sum(dtype=torch.float64))


def collect_activations(model_folder: str | Path, tokens: np.ndarray[Any, Any]) -> ActivationStats:
    """Statistics of every linear but the head: the model of a Hugging Face folder runs in fp32 over tokens, int64 [samples,
    length], one sequence at a time, and without its head."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32, local_files_only=True).eval()
    body = model.base_model
    with watching(body) as observed, torch.inference_mode():
        for row in torch.from_numpy(tokens):
            body(row[None], use_cache=False)
    prefix = next((name for name, module in model.named_modules() if module is body), "")
    layers = tuple(summary(f"{prefix}.{name}" if prefix else name, one) for name, one in observed.items() if one.tokens)
    with_outliers = sum(1 for layer in layers if layer.outlier_channels)
    return ActivationStats(
        tokens=int(tokens.size),
        layers=layers,
        outlier_threshold=OUTLIER,
        outlier_layers_share=with_outliers / len(layers) if layers else 0.0,
    )


@contextmanager
def watching(body: Any) -> Iterator[dict[str, Observed]]:
    """Hooks on every linear; linears that share one input (q, k and v) share one set of figures."""
    from torch import nn

    observed: dict[str, Observed] = {}
    last: list[Any] = [None, None]
    handles = []

    def hook_of(name: str) -> Any:
        def hook(module: Any, arguments: tuple[Any, ...]) -> None:
            x = arguments[0]
            if x is last[0] and (name not in observed or observed[name] is last[1]):
                observed[name] = last[1]
                return
            one = observed.setdefault(name, Observed())
            one.add(x.detach().float().reshape(-1, x.shape[-1]))
            last[:] = [x, one]

        return hook

    for name, module in body.named_modules():
        if isinstance(module, nn.Linear):
            handles.append(module.register_forward_pre_hook(hook_of(name)))
    try:
        yield observed
    finally:
        for handle in handles:
            handle.remove()
        last[:] = [None, None]


def summary(name: str, one: Observed) -> LayerActivations:
    assert one.absmax is not None
    squares = one.squares or 1.0
    return LayerActivations(
        name=name,
        absmax=float(one.absmax.max()),
        absmax_channel_p50=float(one.absmax.median()),
        outlier_channels=int((one.absmax >= OUTLIER).sum()),
        outlier_tokens_share=one.outlier_tokens / one.tokens,
        error_per_tensor=one.errors["tensor"] / squares,
        error_per_token=one.errors["token"] / squares,
        error_per_channel=one.errors["channel"] / squares,
    )
