"""Grids as torch functions, each tensor -> the nearest values that its format holds, float32: the arithmetic of fakes.

`dim` names the axis (or axes) that share one scale; None: the whole tensor. Rounding is half to even. Everywhere an
all-zero slice stays zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Dim = int | tuple[int, ...] | None
LEAST = 1e-12
"""Bound of an empty slice: its values are zero, so any scale will do."""
LARGEST = {"e4m3": 448.0, "e5m2": 57344.0}
"""Largest finite values of the OCP 8-bit floats (arXiv:2209.05433)."""


def bound(x: Any, dim: Dim) -> Any:
    """max|x| over `dim`, which stays as an axis of one."""
    found = x.abs().amax() if dim is None else x.abs().amax(dim, keepdim=True)
    return found.clamp(min=LEAST)


def symmetric(x: Any, bits: int, dim: Dim = -1) -> Any:
    """Integers in -top..top with top = 2**(bits - 1) - 1 and S = max|x| / top."""
    scale = bound(x, dim) / (2 ** (bits - 1) - 1)
    return (x / scale).round() * scale


def affine(x: Any, bits: int, dim: Dim = -1) -> Any:
    """Codes 0..2**bits - 1 over the range of x and 0, with an integer zero point: the asymmetric grid of `affine.py`."""
    low, high = (x.amin(), x.amax()) if dim is None else (x.amin(dim, keepdim=True), x.amax(dim, keepdim=True))
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low).clamp(min=LEAST) / (2**bits - 1)
    zero = (-low / scale).round()
    return (((x / scale).round() + zero).clamp(0, 2**bits - 1) - zero) * scale


def between(x: Any, bits: int, dim: int) -> Any:
    """Codes 0..2**bits - 1 from the least to the largest value: KIVI's form, whose zero point is the least value itself."""
    low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    scale = (high - low).clamp(min=LEAST) / (2**bits - 1)
    return ((x - low) / scale).round() * scale + low


def float8(x: Any, layout: str, dim: Dim = -1, peak: Any = None) -> Any:
    """E4M3 or E5M2 with S = max|x| / largest (or `peak` / largest); what lies beyond is clipped, never infinite."""
    scale = (bound(x, dim) if peak is None else peak) / LARGEST[layout]
    return cast8(x / scale, layout) * scale


def cast8(x: Any, layout: str) -> Any:
    """x as the 8-bit float holds it, saturating: torch's own cast gives an infinity beyond E5M2's range."""
    import torch

    kind = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[layout]
    return x.clamp(-LARGEST[layout], LARGEST[layout]).to(kind).to(torch.float32)


def minifloat(x: Any, exponent: int, mantissa: int, largest: Any) -> Any:
    """A float of `exponent` and `mantissa` bits and a real bias b that makes `largest` its largest value (FPQ,
    arXiv:2310.16836, eq. 4 to 8): b = 2^E - log2(largest) + log2(2 - 2^-M) - 1, step 2^(max(floor(log2|x| + b), 1) - M - b).
    """
    import torch

    top = torch.as_tensor(largest, dtype=torch.float64).clamp(min=LEAST)  # in float32 a tie would fall to either side
    bias = exponent_bias(top, exponent, mantissa)
    clipped = torch.minimum(torch.maximum(x.double(), -top), top)
    binade = torch.floor(torch.log2(clipped.abs().clamp(min=1e-30)) + bias).clamp(min=1)
    step = torch.exp2(binade - mantissa - bias)
    return ((clipped / step).round() * step).float()


def exponent_bias(largest: Any, exponent: int, mantissa: int) -> Any:
    """The real bias that makes `largest` the largest value of the format."""
    import math

    import torch

    return 2**exponent - torch.log2(largest) + math.log2(2 - 2.0**-mantissa) - 1


def in_groups(x: Any, size: int, rounding: Callable[[Any], Any]) -> Any:
    """`rounding` of [..., G, size], the last axis cut into groups; a shorter last group is filled with zeros."""
    import torch

    width = x.shape[-1]
    padded = torch.nn.functional.pad(x, (0, -width % size))
    return rounding(padded.unflatten(-1, (-1, size))).flatten(-2)[..., :width]


def in_blocks(w: Any, size: int, rounding: Callable[[Any], Any]) -> Any:
    """`rounding` of [R, size, C, size]: a matrix cut into squares, those at its edges filled with zeros."""
    import torch

    rows, columns = w.shape
    padded = torch.nn.functional.pad(w, (0, -columns % size, 0, -rows % size))
    tall, wide = padded.shape
    cut = padded.reshape(tall // size, size, wide // size, size)
    return rounding(cut).reshape(tall, wide)[:rows, :columns]
