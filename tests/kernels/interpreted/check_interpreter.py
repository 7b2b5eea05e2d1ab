"""The canary: the interpreter's faults are there as shipped, and gone with the mend. Once the first test fails, drop the mend."""

from typing import Any

import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def product_kernel(a, b, y):
    at = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(y + at, tl.dot(tl.load(a + at), tl.load(b + at)))


@triton.jit
def cast_kernel(x, y, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(y + at, tl.load(x + at).to(y.dtype.element_ty))


@triton.jit
def add_kernel(x, y):
    at = tl.arange(0, 16)
    tl.store(y + at, tl.load(x + at) + tl.load(x + at))


def product() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    a, b = (torch.randn(16, 16).to(torch.bfloat16) for _ in range(2))
    y = torch.empty(16, 16)
    product_kernel[(1,)](a, b, y)
    return y, a.double() @ b.double()


@pytest.mark.usefixtures("as_shipped")
def test_the_interpreter_multiplies_bit_patterns_as_shipped() -> None:
    found, true = product()
    assert (found - true).abs().max() > 1e6, "triton's interpreter learned bfloat16: take the mend in conftest.py out"


def test_the_mend_multiplies_bfloat16() -> None:
    found, true = product()
    assert (found - true).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_casts_round_to_nearest_even(dtype: Any) -> None:
    """Every size from subnormals of E4M3 to beyond its largest, and midpoints between its neighbours."""
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middles = (codes[1:] + codes[:-1]) / 2
    x = torch.cat([codes, middles, middles * (1 + 2**-20), -middles, torch.randn(3590) * 100, torch.tensor([1000.0])])
    y = torch.empty(4096, dtype=dtype)
    cast_kernel[(1,)](x, y, SIZE=4096)
    true = (x.clamp(-448, 448) if dtype == torch.float8_e4m3fn else x).to(dtype)
    assert torch.equal(y.float(), true.float())


def test_arithmetic_on_bfloat16_is_loud() -> None:
    x = torch.ones(16, dtype=torch.bfloat16)
    with pytest.raises(Exception, match="cast to float32 first"):
        add_kernel[(1,)](x, torch.empty_like(x))
