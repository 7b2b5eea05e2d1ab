"""bfloat16 products where the CPU has them, float32 elsewhere, and nothing left as it was not before."""

from __future__ import annotations

import numpy as np
import pytest

from quantadvisor.methods import half_products, layerwise


@pytest.mark.parametrize(("units", "half"), [({"amx_bf16": True}, True), ({"avx512_bf16": True}, True), ({"avx2": True}, False)])
def test_linears_take_bfloat16_where_the_cpu_has_it(units: dict[str, bool], half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: units)
    x, w = torch.randn(4, 8), torch.randn(3, 8)
    with half_products.forward():
        assert torch.nn.functional.linear(x, w).dtype == (torch.bfloat16 if half else torch.float32)
        with half_products.as_they_are():
            assert torch.nn.functional.linear(x, w).dtype == torch.float32
    assert torch.nn.functional.linear(x, w).dtype == torch.float32


@pytest.mark.parametrize(("units", "told"), [({"amx_bf16": True}, True), ({"avx512_bf16": True}, False)])
def test_only_amx_rounds_operands_of_float32(units: dict[str, bool], told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: units)
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    with pytest.raises(ValueError, match="in a product"), half_products.sums_in_float32():
        assert settings.fp32_precision == ("bf16" if told else before)
        raise ValueError("in a product")
    assert settings.fp32_precision == before


def test_a_gram_matrix_is_as_exact_as_its_operands() -> None:
    """On this machine, AMX or not: each operand off by half a unit of its eighth bit at most, 2^-9 of it, and float32 sums."""
    x = np.random.default_rng(0).standard_normal((512, 96)).astype(np.float32)
    wide = x.astype(np.float64)
    bound = (2 * 2**-9 + 2**-18 + 512 * 2**-24) * (np.abs(wide).T @ np.abs(wide))
    assert (np.abs(layerwise.gram(x) - wide.T @ wide) <= bound).all()
