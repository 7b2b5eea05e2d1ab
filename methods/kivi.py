"""KIVI (arXiv:2402.02750): keys rounded per channel, values per token, in small groups, the newest tokens not at all.

Keys have loud channels that stay loud from token to token, so GROUP tokens of one channel share a scale; values have
none, so GROUP channels of one token do. Both are asymmetric: codes run from the least to the largest value of the group.
The newest tokens stay in full precision until RESIDUAL of them have come together and are rounded at once: keys as in the
paper's Algorithm 1; of values it always keeps the last RESIDUAL, here 1 to RESIDUAL of them, so that a chunk is exact. No
calibration: the ranges are those of the groups. Keys are rounded after the rotary embedding, as they are stored.
Simulated on SmolLM2-135M: KL under 0.0001 at 8 bits, 0.006 at 4, 0.26 at 2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from .fake import Fake
from .refusals import installed, no_kernel, nothing_to_write
from .schemes import scheme as named

NAME = "kivi"
TARGET: Target = "kv_cache"
COST = "nothing: keys and values are rounded as they come, no calibration"
GROUP = 32
RESIDUAL = 32
BACKENDS = {"optimum.quanto": "optimum-quanto", "hqq": "hqq"}
"""Modules that transformers' QuantizedCache rounds with, and the packages that bring them."""
MISSING = {
    "onnxruntime": "GroupQueryAttention takes fixed scales, one per channel or tensor (kv_int4): none per group of tokens",
    "onnxruntime-genai": "GroupQueryAttention takes fixed scales, one per channel or tensor: none per group of tokens",
    "openvino": "its cache keeps no window, and with 4-bit keys per channel its process ended here; in 8 bit: kv_int8",
    "llama.cpp": "its cache blocks run along a token's channels, keys' too: kv_int8's q8_0",
}


def schemes() -> tuple[Scheme, ...]:
    return tuple(named(f"fp32-kv{bits}-kivi") for bits in (8, 4, 2))


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    return no_kernel(NAME, scheme, schemes(), runtime, {"torch": quantized_cache(), **MISSING})


def quantized_cache() -> str:
    """Why transformers' own cache of this kind is not it, whichever of its packages is here (5.x, cache_utils.QuantizedLayer)."""
    found = [package for module, package in BACKENDS.items() if installed(module)]
    if not found:
        named_packages = " or ".join(BACKENDS.values())
        return f"transformers' QuantizedCache needs {named_packages}, and neither is installed: pip install {BACKENDS['hqq']}"
    return f"transformers' QuantizedCache ({found[0]}) rounds a prompt whole, and all of the cache again when its window is full"


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None) -> NoReturn:  # fmt: skip
    nothing_to_write(NAME, refuse(model_folder, scheme, runtime))


def fake(model: Any, scheme: Scheme, calibration: NDArray[int64]) -> Fake:
    """Read in chunks of RESIDUAL tokens, so that a chunk is the window: exactly what decoding token by token would see."""
    assert scheme.keys is not None
    bits = int(scheme.keys.bits)
    return Fake(model, keys=lambda _, k: keys(k, bits), values=lambda _, v: values(v, bits), chunk=RESIDUAL)


def settled(tokens: int) -> int:
    """How many of the oldest of `tokens` are rounded: whole windows, but never the newest one."""
    return max(0, tokens - 1) // RESIDUAL * RESIDUAL


def keys(k: Any, bits: int) -> Any:
    """k: [..., tokens, d]: GROUP neighbouring tokens of one channel share a range; the window stays."""
    import torch

    from .grids import between

    old = settled(k.shape[-2])
    grouped = k[..., :old, :].unflatten(-2, (-1, GROUP)) if old else None
    return k if grouped is None else torch.cat([between(grouped, bits, -2).flatten(-3, -2), k[..., old:, :]], -2)


def values(v: Any, bits: int) -> Any:
    """v: [..., tokens, d]: GROUP neighbouring channels of one token share a range (d at most GROUP: all); the window stays."""
    import torch

    from .grids import between

    old, width = settled(v.shape[-2]), v.shape[-1]
    size = GROUP if width % GROUP == 0 else width
    rounded = between(v[..., :old, :].unflatten(-1, (-1, size)), bits, -1).flatten(-2)
    return torch.cat([rounded, v[..., old:, :]], -2)
