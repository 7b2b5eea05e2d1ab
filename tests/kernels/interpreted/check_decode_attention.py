"""Decode attention over quantized caches against float64 softmax attention on exactly dequantized keys and values.

The bound: a score is a float32 sum of D exact products and three factors, wrong by at most e = (D + 8) 2^-24 |q| |k|, which
moves a weight by a factor of at most exp(2 e); the weight times the value's scale is rounded to q's type (u); sums over S.
float16 also loses what is below its smallest subnormal, 2^-24, half of it a term, before the division by a sum >= 1.
"""

import math
from typing import Any

import pytest
import torch

from quantadvisor.kernels import triton_decode_attention as kernel

UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
# The interpreter computes with numpy, which warns of NaN and infinities; the check that plants one looks at the result.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
Part = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def quantized(x: torch.Tensor, bits: int) -> tuple[Part, torch.Tensor, torch.Tensor]:
    """(what the kernel reads, exact values, the integers)"""
    if bits == 8:
        codes, scales = kernel.quantize_int8(x)
        return (codes, scales, None), codes.double() * scales.double()[..., None], codes.double()
    packed, scales, zeros = kernel.quantize_int4(x)
    codes = torch.cat([packed & 15, packed >> 4], -1).double() - zeros.double()[..., None]
    return (packed, scales, zeros), codes * scales.double()[..., None], codes


def checked(found: torch.Tensor, q: torch.Tensor, k: Any, v: Any, codes: Any, lengths: torch.Tensor) -> None:
    shared, dim = q.shape[1] // k.shape[1], q.shape[2]
    k, v, codes = (one.repeat_interleave(shared, 1) for one in (k, v, codes))
    unit, single = UNIT[q.dtype], 2.0**-24
    for b, length in enumerate(lengths.tolist()):
        if not length:
            assert torch.equal(found[b], torch.zeros_like(found[b]))
            continue
        keys, values, query = k[b, :, :length], v[b, :, :length], q[b].double()
        weights = torch.softmax(torch.einsum("hd,hsd->hs", query, keys) / math.sqrt(dim), -1)
        true = torch.einsum("hs,hsd->hd", weights, values)
        sizes = torch.einsum("hs,hsd->hd", weights, values.abs())
        score = (dim + 8) * single * torch.einsum("hd,hsd->hs", query.abs(), keys.abs()).amax(-1) / math.sqrt(dim)
        inner = (unit + 2 * score[:, None] + (length + 64) * single) * sizes * (1 + unit)
        lost = 2.0**-25 * codes[b, :, :length].abs().sum(1) if q.dtype == torch.float16 else 0.0
        assert ((found[b].double() - true).abs() <= inner + lost + unit * true.abs() + 2.0**-25).all()


def problem(bits: int, heads: tuple[int, int], dim: int, tokens: int, lengths: list[int], dtype: Any) -> tuple[Any, ...]:
    torch.manual_seed(dim + tokens)
    hq, hkv = heads
    q = torch.randn(len(lengths), hq, dim).to(dtype)
    keys, k, _ = quantized(torch.randn(len(lengths), hkv, tokens, dim), bits)
    values, v, codes = quantized(torch.randn(len(lengths), hkv, tokens, dim) + 0.3, bits)
    return q, keys, values, torch.tensor(lengths, dtype=torch.int32), k, v, codes


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("heads", "dim", "tokens", "lengths", "parts"),
    [
        ((3, 1), 64, 150, [150, 1], 1),
        ((4, 2), 80, 200, [130, 200], 3),
        ((2, 2), 96, 65, [64, 65, 0], 2),
        ((8, 1), 128, 300, [299], 4),
        ((32, 1), 32, 70, [70], 2),
        ((9, 3), 64, 40, [0, 17], 5),
    ],
    ids=str,
)
def test_against_float64(bits: int, heads: tuple[int, int], dim: int, tokens: int, lengths: list[int], parts: int) -> None:
    dtype = [torch.float16, torch.bfloat16][parts % 2]
    q, keys, values, at, k, v, codes = problem(bits, heads, dim, tokens, lengths, dtype)
    checked(kernel.decode_attention(q, keys, values, at, parts=parts), q, k, v, codes, at)


@pytest.mark.parametrize("bits", [8, 4])
def test_places_beyond_the_length_are_not_read(bits: int) -> None:
    q, keys, values, at, k, v, codes = problem(bits, (4, 2), 64, 128, [70], torch.bfloat16)
    for one in (keys, values):
        one[0][:, :, 70:] = 99
        one[1][:, :, 70:] = float("nan")
    checked(kernel.decode_attention(q, keys, values, at), q, k, v, codes, at)


def test_an_infinite_query_spoils_its_own_head_alone() -> None:
    q, keys, values, at, *_ = problem(8, (4, 2), 64, 64, [64], torch.bfloat16)
    q[0, 1, 3] = float("inf")
    found = kernel.decode_attention(q, keys, values, at)
    assert not found[0, 1].isfinite().any()
    assert found[0, [0, 2, 3]].isfinite().all()


def test_what_does_not_fit_is_refused() -> None:
    q, keys, values, at, *_ = problem(8, (4, 2), 64, 64, [64], torch.bfloat16)
    with pytest.raises(ValueError, match="do not fit"):
        kernel.decode_attention(q[:, :3].contiguous(), keys, values, at)
