"""Rotated and quantized tokens against float64 products with scipy's Hadamard matrices.

The bound: a float32 sum of `block` exact products is wrong by at most e = block 2^-24 sum|x| over its block, and so is the
largest one, from which the scale is; a quotient may therefore move by e / scale, and 127 times that through the scale.
"""

from typing import Any

import pytest
import torch
from scipy.linalg import hadamard

from quantadvisor.kernels import triton_hadamard
from quantadvisor.kernels.triton_launch import pack_pairs

HALF = [torch.bfloat16, torch.float16]
# The interpreter computes with numpy, which warns of NaN and infinities; the check that plants them looks at the result.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")


def signed(q: torch.Tensor, k: int, block: int, bits: int) -> torch.Tensor:
    """Codes as integers [M, K], from either layout."""
    if bits == 8:
        return q.double()
    runs = q.reshape(len(q), -1, 1, block)
    codes = torch.cat([runs & 15, runs >> 4], 2).reshape(len(q), -1)
    assert torch.equal(pack_pairs(codes, block), q)
    assert (codes[:, k:] == 8).all()
    return codes[:, :k].double() - 8


def checked(x: torch.Tensor, block: int, bits: int) -> None:
    m, k = x.shape
    q, scales = triton_hadamard.rotate_quantize(x, block, bits)
    most, single = {8: 127, 4: 7}[bits], 2.0**-24
    blocks = x.double().reshape(m, -1, block)
    true = (blocks @ torch.from_numpy(hadamard(block)).double() / block**0.5).reshape(m, k)
    error = block * single * blocks.abs().sum(-1, keepdim=True).expand_as(blocks).reshape(m, k) / block**0.5
    scale = true.abs().amax(1) / most
    assert ((scales.double() - scale).abs() <= error.amax(1) / most + 4 * single * scale).all()
    codes = signed(q, k, block, bits)
    assert codes.abs().amax(1).eq(most).all()
    moved = (error + true.abs() / scale[:, None] * error.amax(1, keepdim=True) / most) / scale[:, None] + 4 * single * most
    assert ((true / scale[:, None] - codes).abs() <= 0.5 + 2 * moved).all()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("m", "k", "block"), [(1, 64, 64), (3, 576, 64), (5, 1536, 128), (2, 48, 16), (4, 4096, 32), (2, 384, 128)], ids=str
)
def test_against_float64(m: int, k: int, block: int, bits: int) -> None:
    torch.manual_seed(k)
    x = torch.randn(m, k).to(HALF[m % 2])
    x[:, 5] = 40.0
    checked(x, block, bits)


def test_an_outlier_is_spread_over_its_block() -> None:
    """63 values of 1 and one of 64: plain INT4 rounds all 63 to 0, rotated they come back to within a step of their sum."""
    x = torch.full((1, 64), 1.0, dtype=torch.bfloat16)
    x[0, 9] = 64.0
    q, scales = triton_hadamard.rotate_quantize(x, 64, 4)
    back = signed(q, 64, 64, 4) * scales.double()[:, None] @ torch.from_numpy(hadamard(64)).double() / 8
    assert (x.double() * 7 / 64).round().count_nonzero() == 1
    assert ((back - x.double()).abs()[0, torch.arange(64) != 9] < 0.2).all()


def test_rows_of_zeros_and_of_no_numbers() -> None:
    x = torch.randn(5, 128).to(torch.bfloat16)
    x[1] = 0
    x[2, 3], x[3, 70], x[4, 0] = float("inf"), float("nan"), float("-inf")
    for bits in (8, 4):
        q, scales = triton_hadamard.rotate_quantize(x, 64, bits)
        assert scales[1] == 0
        assert not signed(q, 128, 64, bits)[1:].any()
        assert scales[2:].isnan().all()
        assert scales[0] > 0


def test_no_rows_give_no_rows() -> None:
    q, scales = triton_hadamard.rotate_quantize(torch.empty(0, 192, dtype=torch.float16), 64, 4)
    assert (q.shape, scales.shape) == ((0, 128), (0,))


@pytest.mark.parametrize(("k", "block", "bits"), [(100, 64, 8), (96, 48, 8), (128, 64, 5)])
def test_misfits_are_refused(k: int, block: int, bits: int) -> None:
    with pytest.raises(ValueError, match="divide K"):
        triton_hadamard.rotate_quantize(torch.zeros(1, k, dtype=torch.bfloat16), block, bits)


def test_other_types_are_refused() -> None:
    x: Any = torch.zeros(1, 64)
    with pytest.raises(TypeError, match="float16 or bfloat16"):
        triton_hadamard.rotate_quantize(x, 64, 8)
