"""The Hessian against its definition in float64."""

from __future__ import annotations

import numpy as np
import pytest

from quantadvisor.methods import layerwise


@pytest.mark.parametrize("width", [5, 12, 13])
def test_a_gram_matrix_by_strips_is_the_whole_product(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips that divide the width, that do not, and one wider than it; a part of a larger array is an input too. Inputs of eight
    significant bits, which AMX does not round."""
    monkeypatch.setattr(layerwise, "STRIP", 6)
    x = np.random.default_rng(width).standard_normal((50, 20)).astype(np.float32)[:, :width]
    x.view(np.uint32)[:] &= 0xFFFF0000
    exact = x.astype(np.float64).T @ x.astype(np.float64)
    found = layerwise.gram(x)
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(layerwise.hessian([x[:20], x[20:]]), 2 * exact / 50, rtol=1e-4, atol=1e-5)
