"""TurboQuant (arXiv:2504.19874): a cache in 1 to 4 bits a value by a random rotation and a fixed codebook, without data.

A vector x of width d is stored as its norm and codes. Turned by a random rotation, every coordinate of sqrt(d) x / |x| is
nearly N(0, 1), whatever x was, so that one codebook fits all of them: that of Lloyd and Max for the normal distribution.
Each vector is rounded alone, when it comes (online): no calibration, no window.

    mse   y = sqrt(d) P x / |x|, P Haar; codes of the nearest codebook values c; x~ = |x| / sqrt(d) P^T c.
          E|x~ - x|^2 / |x|^2 is about 0.36, 0.117, 0.034, 0.0095 for 1 to 4 bits; <x~, y> is too small by that factor.
    prod  (bits - 1) of mse, and one sign for each row of a normal matrix S of what is left, r = x - x_mse (QJL,
          arXiv:2406.03482):  x~ = x_mse + sqrt(pi / 2) / d |r| S^T sign(S r).  <x~, y> is unbiased, with more variance.

Halves of a bit: one half of the channels takes a bit more than the other, each half turned by itself; louder channels
take more. Which are louder is seen in the first FIRST tokens of a sequence, per head.

Simulated on SmolLM2-135M (d = 64, every token rounded), KL in nats: 4 bits 0.072, 3.5 0.097, 3 0.27, 2.5 0.38, 2 1.0. The
unbiased form of keys costs more here, 0.42 at 4 bits: softmax suffers from variance more than from a common factor.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme
from quantadvisor.kernels.turbo_tables import codebook, rotation

from .fake import Fake
from .refusals import no_kernel, nothing_to_write
from .schemes import scheme as named

NAME = "turboquant"
TARGET: Target = "kv_cache"
COST = "nothing: keys and values are rounded as they come, no calibration"
FIRST = 32
"""Tokens that the louder half of the channels is chosen by."""
MISSING = {
    "torch": "transformers has no cache of rotated codebooks, and computing one in Python every step would only be slower",
    "onnxruntime": "GroupQueryAttention reads a float, INT8 or INT4 cache; no operator rotates one or looks codes up",
    "onnxruntime-genai": "GroupQueryAttention reads a float, INT8 or INT4 cache; no operator rotates one or looks codes up",
    "openvino": "KV_CACHE_PRECISION knows floats and integers, no codebooks",
    "llama.cpp": "its cache types are floats and GGUF blocks; none is rotated first",
    "vllm": "there it is an option of the session (kvturbo: turboquant_4bit_nc), which its attention on a CPU does not read",
    "triton": "there it is an option of the session, 4 bits over 16-bit or compressed weights: bf16-kv4-turbo",
}


def schemes() -> tuple[Scheme, ...]:
    names = ("kv1-turbo", "kv2-turbo", "kv2.5-turbo", "kv3-turbo", "kv3.5-turbo", "kv4-turbo", "kv3-turbo-prod", "kv4-turbo-prod")
    return tuple(named(f"fp32-{name}") for name in names)


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    return no_kernel(NAME, scheme, schemes(), runtime, MISSING)


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None) -> NoReturn:  # fmt: skip
    nothing_to_write(NAME, refuse(model_folder, scheme, runtime))


def fake(model: Any, scheme: Scheme, calibration: NDArray[int64]) -> Fake:
    """Keys and values rounded as they come. `-prod`: keys, whose products with queries count, in the unbiased form."""
    assert scheme.keys is not None
    bits, unbiased = scheme.keys.bits, scheme.unbiased_keys
    return Fake(
        model,
        keys=lambda _, k: (unbiased_product if unbiased else least_squares)(k, bits),
        values=lambda _, v: least_squares(v, bits),
    )


@functools.cache
def projection(width: int, seed: int = 1) -> Any:
    """QJL's S: independent N(0, 1), float32 torch [width, width]."""
    import torch

    return torch.from_numpy(np.random.default_rng(seed).standard_normal((width, width)).astype(np.float32))


def encode(x: Any, bits: int, turn: Any) -> tuple[Any, Any]:
    """x: [..., d] -> (norms [..., 1], codes int64 [..., d] in 0..2**bits - 1): what is stored. turn: [d, d]."""
    import torch

    values = torch.from_numpy(codebook(bits)).float()
    norms = x.norm(dim=-1, keepdim=True)
    turned = x / norms.clamp(min=1e-30) @ turn.T * math.sqrt(x.shape[-1])
    return norms, torch.bucketize(turned.contiguous(), (values[1:] + values[:-1]) / 2)


def decode(norms: Any, codes: Any, bits: int, turn: Any) -> Any:
    import torch

    values = torch.from_numpy(codebook(bits)).float()
    return norms / math.sqrt(codes.shape[-1]) * (values[codes] @ turn)


def least_squares(x: Any, bits: float, turn: Any = None) -> Any:
    """The mse form of x: [..., d]; halves of a bit need [..., heads, tokens, d]."""
    if bits == int(bits):
        turn = rotation(x.shape[-1]) if turn is None else turn
        return decode(*encode(x, int(bits), turn), int(bits), turn)
    return in_halves(x, lambda part, more: least_squares(part, math.floor(bits) + more))


def unbiased_product(x: Any, bits: float, turn: Any = None, sketch: Any = None) -> Any:
    """The prod form of x: [..., d], as the vector whose product with y is the estimate."""
    if bits != int(bits):
        return in_halves(x, lambda part, more: unbiased_product(part, math.floor(bits) + more))
    sketch = projection(x.shape[-1]) if sketch is None else sketch
    near = least_squares(x, bits - 1, turn) if bits > 1 else x * 0
    left = x - near
    signs = (left @ sketch.T).sign()
    return near + math.sqrt(math.pi / 2) / x.shape[-1] * left.norm(dim=-1, keepdim=True) * (signs @ sketch)


def in_halves(x: Any, rounding: Any) -> Any:
    """x: [..., heads, tokens, d]: the louder half of each head's channels by `rounding(part, 1)`, the rest by (part, 0)."""
    import torch

    loud = x[..., :FIRST, :].square().sum(-2, keepdim=True)
    order = loud.argsort(dim=-1, descending=True).expand_as(x)
    sorted_x, half = x.gather(-1, order), x.shape[-1] // 2
    rounded = torch.cat([rounding(sorted_x[..., :half], 1), rounding(sorted_x[..., half:], 0)], dim=-1)
    return torch.empty_like(x).scatter_(-1, order, rounded)
