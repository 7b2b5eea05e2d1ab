"""ZeroQuant's two grids against the numpy arithmetic that artifacts are written with."""

import platform
import timeit
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from quantadvisor.methods import zeroquant
from quantadvisor.methods.affine import dequantize_groups, fake_tokens, quantize_groups
from quantadvisor.methods.schemes import scheme

from .conftest import fake_kl


@pytest.mark.parametrize(("name", "bits"), [("w8a8-g64", 8), ("w4a8-g64", 4)])
@pytest.mark.parametrize("width", [128, 100])
def test_groups_of_weights_and_tokens_of_activations(name: str, bits: int, width: int) -> None:
    draw = np.random.default_rng(width)
    w, x = (draw.standard_normal((24, width)).astype(np.float32) for _ in range(2))
    made = zeroquant.fake(None, scheme(name), x)
    assert made.weight and made.inputs
    theirs = dequantize_groups(*quantize_groups(w, bits, 64, True), 64)
    np.testing.assert_allclose(made.weight("", torch.from_numpy(w)).numpy(), theirs, atol=1e-5)
    np.testing.assert_allclose(made.inputs("", torch.from_numpy(x)).numpy(), fake_tokens(x), atol=1e-5)


def test_eight_bits_below_four(llama: Path, tokens: np.ndarray) -> None:
    from quantadvisor.methods.observe import load

    eight, four = (fake_kl(zeroquant.fake(load(llama), scheme(f"w{b}a8-g64"), tokens), llama, tokens[:2]) for b in (8, 4))
    assert 0 < eight < four / 5


def test_refusals(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "accuracy level 4" in str(zeroquant.refuse(llama, scheme("w4a8-g64"), "onnxruntime"))
    assert "does not offer" in str(zeroquant.refuse(llama, scheme("w8a8"), "onnxruntime"))
    assert "does not offer" in str(zeroquant.refuse(llama, scheme("fp32"), "vllm"))
    for runtime in ("torch", "vllm"):
        assert "none of 8 bits" in str(zeroquant.refuse(llama, scheme("w8a8-g64"), runtime))
        monkeypatch.setattr(zeroquant.platform, "machine", lambda: "aarch64")
        assert "runs it on Arm" in str(zeroquant.refuse(llama, scheme("w4a8-g64"), runtime))
        monkeypatch.undo()


@pytest.mark.skipif(platform.machine() in zeroquant.ARM, reason="says what x86 has")
def test_on_x86_torch_multiplies_without_vectors(llama: Path) -> None:
    """torch's own product, which vLLM's W4A8 calls: right, and many times slower than the float product it would take the place
    of."""
    assert "without vectors" in str(zeroquant.refuse(llama, scheme("w4a8-g64"), "vllm"))
    group, n, k = 64, 256, 512
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8)
    scales = torch.rand(n, k // group).to(torch.bfloat16)
    packed = torch.ops.aten._dyn_quant_pack_4bit_weight(codes[:, 1::2] << 4 | codes[:, ::2], scales, None, group, k, n)
    x, w = torch.randn(64, k), ((codes.float() - 8).unflatten(1, (-1, group)) * scales.float()[..., None]).flatten(1)
    theirs = torch.ops.aten._dyn_quant_matmul_4bit(x, packed, group, k, n)
    assert float((theirs - x @ w.T).norm() / (x @ w.T).norm()) < 0.02

    def seconds(call: Callable[[], object]) -> float:
        call()
        return min(timeit.repeat(call, number=1, repeat=5))

    slow, fast = seconds(lambda: torch.ops.aten._dyn_quant_matmul_4bit(x, packed, group, k, n)), seconds(lambda: x @ w.T)
    assert slow > 5 * fast
