"""The INT8 cache's scales: they bound keys at every position."""

import numpy as np
import pytest

from quantadvisor.methods.formats.onnx_cache import pair_norms


@pytest.mark.parametrize("neighbours", [False, True])
def test_pair_norms_bound_keys_at_every_position(neighbours: bool) -> None:
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(2, 5, 8)).astype(np.float32)  # [heads, tokens, head_size], of which 6 are turned
    bound = pair_norms(keys, 6, neighbours).max(axis=1)
    assert pair_norms(keys, 6, neighbours)[..., 6:] == pytest.approx(np.abs(keys[..., 6:]))
    pairs = [(0, 1), (2, 3), (4, 5)] if neighbours else [(0, 3), (1, 4), (2, 5)]
    reached = np.zeros_like(bound)
    for angle in np.linspace(0, 2 * np.pi, 400):
        turned = keys.copy()
        for i, j in pairs:
            turned[..., i] = np.cos(angle) * keys[..., i] - np.sin(angle) * keys[..., j]
            turned[..., j] = np.sin(angle) * keys[..., i] + np.cos(angle) * keys[..., j]
        reached = np.maximum(reached, np.abs(turned).max(axis=1))
    assert (reached <= bound + 1e-6).all()
    assert reached == pytest.approx(bound, rel=1e-3)
