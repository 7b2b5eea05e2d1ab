"""Fake quantization: what a method would do to a model's numbers, as torch functions on the fp32 model.

A method with `fake(model, scheme, calibration)` says how it rounds weights, the inputs of linears, keys and values; it
computes them in fp32 on the grid of its format. `applied` puts that in place while it is entered. The output layer stays
as it is. A rounded cache is read as a runtime reads it: the text goes through in chunks, and every chunk sees the rounded
keys and values of those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy import int64
from numpy.typing import NDArray

CHUNK = 128
"""Tokens of one forward pass where the cache is rounded and the method names no window of its own."""

Named = Callable[[str, Any], Any]
"""(linear, tensor float32) -> the tensor on its grid"""
Layered = Callable[[int, Any], Any]
"""(layer, all keys or values so far, float32 [batch, heads, tokens, head_dim]) -> the same as they are read back"""


class Fake(NamedTuple):
    """What is rounded of `model`, a torch model; None leaves it alone."""

    model: Any
    weight: Named | None = None
    inputs: Named | None = None
    keys: Layered | None = None
    values: Layered | None = None
    chunk: int = CHUNK


Forward = Callable[[NDArray[int64]], Any]
"""tokens int64 [S] -> logits, float32 torch [S, V]"""


def linears(model: Any) -> dict[str, Any]:
    """Every linear by name, without the output layer."""
    import torch

    return {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}


def with_weights(model: Any, weights: Mapping[str, NDArray[np.float32]]) -> Fake:
    """The linears of `weights`, float32 [N, K] by name, as a search left them; the others as they are."""
    import torch

    return Fake(model, weight=lambda name, w: torch.from_numpy(weights[name]) if name in weights else w)


@contextmanager
def applied(fake: Fake) -> Iterator[Forward]:
    """`fake` in place: yields the rounded model's forward pass, and leaves the model as it was."""
    import torch

    layers = linears(fake.model)
    original = {name: linear.weight for name, linear in layers.items()}
    handles = []
    try:
        for name, linear in layers.items():
            if fake.weight is not None:
                rounded = fake.weight(name, linear.weight.data)
                linear.weight = torch.nn.Parameter(rounded, requires_grad=False)
            if fake.inputs is not None:
                handles.append(linear.register_forward_pre_hook(_rounding(name, fake.inputs)))
        yield lambda tokens: forward(fake, tokens)
    finally:
        for handle in handles:
            handle.remove()
        for name, linear in layers.items():
            linear.weight = original[name]


def _rounding(name: str, inputs: Named) -> Callable[[Any, tuple[Any, ...]], tuple[Any, ...]]:
    return lambda _, args: (inputs(name, args[0]), *args[1:])


def forward(fake: Fake, tokens: NDArray[int64]) -> Any:
    """Logits of int64 [S], float32 [S, V], as the model is now."""
    import torch

    ids = torch.from_numpy(np.ascontiguousarray(tokens))[None]
    with torch.no_grad():
        if fake.keys is None or fake.values is None:
            return fake.model(ids, use_cache=False).logits[0].float()
        cache = seen_cache(fake.keys, fake.values)
        parts = [
            fake.model(ids[:, at : at + fake.chunk], past_key_values=cache, use_cache=True).logits[0].float()
            for at in range(0, ids.shape[1], fake.chunk)
        ]
    return torch.cat(parts)


def seen_cache(keys: Layered, values: Layered) -> Any:
    """A cache of transformers that stores what comes and gives back what `keys` and `values` make of all of it."""
    from transformers import DynamicCache

    class Seen(DynamicCache):  # type: ignore[misc]  # transformers is not typed here
        def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **more: Any) -> tuple[Any, Any]:
            k, v = super().update(key_states, value_states, layer_idx, *args, **more)
            return keys(layer_idx, k), values(layer_idx, v)

    return Seen()


def largest(x: Any) -> float:
    return float(x.abs().amax())


Peaks = dict[int, Any]
"""layer -> a number, or a numpy array"""


def cache_peaks(model: Any, tokens: NDArray[int64], of_keys: Callable[[Any], Any] = largest,
                of_values: Callable[[Any], Any] = largest) -> tuple[Peaks, Peaks]:  # fmt: skip
    """Largest |key| and |value| of every layer over tokens int64 [samples, length], each sample prefilled alone; or, element by
    element, the largest of what the functions make of keys and values, float32 [1, heads, length, head_dim]."""
    peaks: tuple[Peaks, Peaks] = ({}, {})

    def watch(found: Peaks, of: Callable[[Any], Any]) -> Layered:
        def see(layer: int, x: Any) -> Any:
            made = of(x)
            found[layer] = np.maximum(found[layer], made) if layer in found else made
            return x

        return see

    for sample in tokens:
        seen = Fake(model, keys=watch(peaks[0], of_keys), values=watch(peaks[1], of_values), chunk=len(sample))
        forward(seen, sample)
    return peaks


def channel_peaks(model: Any, tokens: NDArray[int64]) -> dict[str, Any]:
    """max |x| per input channel of every linear, float32 torch [K], over tokens int64 [samples, length]."""
    import torch

    from .observe import observe

    found: dict[str, NDArray[np.float32]] = {}

    def widen(name: str, x: NDArray[np.float32]) -> None:
        bound = np.abs(x).max(axis=0)
        found[name] = np.maximum(found[name], bound) if name in found else bound

    observe(model, tokens, dict.fromkeys(linears(model), widen))
    return {name: torch.from_numpy(bound) for name, bound in found.items()}
