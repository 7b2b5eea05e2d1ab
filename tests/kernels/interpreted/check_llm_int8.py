"""LLM.int8 against float64: which columns are outliers, scales as methods/llm_int8.py has them, exact codes, the product."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from quantadvisor.kernels import triton_llm_int8
from quantadvisor.kernels.triton_launch import Tile
from quantadvisor.methods.llm_int8 import vector_wise

HALF = [torch.bfloat16, torch.float16]
# The interpreter computes with numpy, which warns of NaN and infinities; the checks that plant them look at the results.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")


def drawn(m: int, n: int, k: int, loud: int, dtype: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x with `loud` columns of which one row is above the threshold, INT8 weights, their scales."""
    torch.manual_seed(m + n + k + loud)
    x = torch.randn(m, k).clamp(-5.9, 5.9)
    x[torch.randint(0, m, (loud,)), torch.randperm(k)[:loud]] = 40.0
    return x.to(dtype), torch.randint(-127, 128, (n, k), dtype=torch.int8), torch.rand(n) / k


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("loud", [0, 1, 6])
@pytest.mark.parametrize("shape", [(1, 40, 192), (17, 33, 200), (70, 65, 129)], ids=str)
def test_against_float64(close: Callable[..., None], shape: tuple[int, int, int], loud: int, splits: int) -> None:
    m, n, k = shape
    x, w, w_scales = drawn(m, n, k, loud, HALF[m % 2])
    a = triton_llm_int8.decompose(x)
    columns = (x.double().abs() >= 6).any(0)
    assert torch.equal(a.outliers.bool(), columns)
    assert columns.sum() == loud
    codes, bound, _ = vector_wise(x.float())
    factor = torch.full_like(bound, 127) / bound  # 127 / bound is a reciprocal times 127 in torch: another last bit
    assert torch.equal(a.codes, (x.float().where(~columns, torch.zeros(())) * factor).round().to(torch.int8))
    assert (a.codes - codes).abs().max() <= 1
    assert torch.equal(a.scales, bound[:, 0] / 127)
    found = triton_llm_int8.llm_int8(a, w, w_scales, splits=splits, tile=Tile(16, 64, 64))
    exact = x.double().where(columns, a.codes.double() * a.scales.double()[:, None])
    weights = w.double() * w_scales.double()[:, None]
    close(found, exact @ weights.T, exact.abs() @ weights.abs().T, loud + splits)


def test_its_own_tile(close: Callable[..., None]) -> None:
    x, w, w_scales = drawn(64, 130, 256, 3, torch.bfloat16)
    a = triton_llm_int8.decompose(x)
    exact = x.double().where(a.outliers.bool(), a.codes.double() * a.scales.double()[:, None])
    weights = w.double() * w_scales.double()[:, None]
    close(triton_llm_int8.llm_int8(a, w, w_scales), exact @ weights.T, exact.abs() @ weights.abs().T, 3 + 16)


def test_nearer_to_the_unquantized_product_than_plain_int8() -> None:
    """Planted outliers of 40 stretch a per-token scale 7-fold; here they do not."""
    x, w, w_scales = drawn(17, 64, 256, 17, torch.bfloat16)
    x[:, :4] = 40.0
    weights = w.double() * w_scales.double()[:, None]
    true = x.double() @ weights.T
    step = x.double().abs().amax(1, keepdim=True) / 127
    plain = ((x.double() / step).round() * step) @ weights.T
    found = triton_llm_int8.llm_int8(triton_llm_int8.decompose(x), w, w_scales)
    assert (found.double() - true).norm() < (plain - true).norm() / 2


def test_what_is_no_number_spoils_its_row_alone() -> None:
    x, w, w_scales = drawn(5, 40, 96, 0, torch.float16)
    x[1] = 0
    x[2, 3], x[3, 7] = float("inf"), float("nan")
    a = triton_llm_int8.decompose(x)
    assert a.outliers.nonzero()[:, 0].tolist() == [3, 7]
    found = triton_llm_int8.llm_int8(a, w, w_scales)
    assert torch.equal(found[1], torch.zeros(40, dtype=torch.float16))
    assert not found[2:4].isfinite().any()
    assert found[[0, 4]].isfinite().all()


def test_a_token_of_outliers_alone_has_no_codes(close: Callable[..., None]) -> None:
    x, w, w_scales = drawn(2, 40, 64, 0, torch.bfloat16)
    x[0] = 50.0
    a = triton_llm_int8.decompose(x)
    assert a.scales[0] == 0
    assert not a.codes.any()
    weights = w.double() * w_scales.double()[:, None]
    close(triton_llm_int8.llm_int8(a, w, w_scales), x.double() @ weights.T, x.double().abs() @ weights.abs().T, 64)


def test_no_rows_give_no_rows_and_misfits_are_refused() -> None:
    x = torch.empty(0, 64, dtype=torch.bfloat16)
    w = torch.zeros(40, 64, dtype=torch.int8)
    assert triton_llm_int8.llm_int8(triton_llm_int8.decompose(x), w, torch.ones(40)).shape == (0, 40)
    with pytest.raises(ValueError, match="do not fit"):
        triton_llm_int8.llm_int8(triton_llm_int8.decompose(x), w, torch.ones(39))
