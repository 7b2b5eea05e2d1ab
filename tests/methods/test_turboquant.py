"""TurboQuant against quadrature of the normal distribution and against the distortions of arXiv:2504.19874."""

import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from quantadvisor.kernels.turbo_tables import codebook, rotation
from quantadvisor.methods import turboquant
from quantadvisor.methods.schemes import scheme
from quantadvisor.methods.turboquant import least_squares, projection, unbiased_product

DISTORTION = {1: 0.3633802, 2: 0.1174818, 3: 0.0345478, 4: 0.0095010}
"""E (x - Q(x))^2 of the Lloyd-Max quantizer of N(0, 1) (Max 1960, table I); the paper rounds to 0.36, 0.117, 0.03, 0.009."""
POSITIVE = {
    1: [0.7978846],
    2: [0.4527800, 1.5104176],
    3: [0.2450942, 0.7560052, 1.3439093, 2.1519457],
    4: [0.1283950, 0.3880483, 0.6567591, 0.9423404, 1.2562311, 1.6180464, 2.0690170, 2.7325895],
}


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_codebooks_by_quadrature(bits: int) -> None:
    from scipy import integrate, stats

    values = codebook(bits)
    np.testing.assert_allclose(values[2 ** (bits - 1) :], POSITIVE[bits], atol=1e-6)
    edges = [-np.inf, *(values[1:] + values[:-1]) / 2, np.inf]
    error = sum(
        integrate.quad(lambda x, c=c: (x - c) ** 2 * stats.norm.pdf(x), low, high)[0]
        for c, low, high in zip(values, edges, edges[1:], strict=False)
    )
    assert error == pytest.approx(DISTORTION[bits], rel=1e-5)


def vectors(width: int) -> torch.Tensor:
    """400 vectors that no method should be tuned to: half are heavy-tailed, half have one loud channel."""
    draw = np.random.default_rng(width)
    x = draw.standard_t(2, (400, width))
    x[200:] = draw.standard_normal((200, width))
    x[200:, 3] *= 50
    return torch.from_numpy((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32))


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_distortion_is_the_papers_for_any_vector(bits: int, width: int) -> None:
    x = vectors(width)
    errors = [float((least_squares(x, bits, rotation(width, seed)) - x).square().sum(1).mean()) for seed in range(30)]
    assert np.mean(errors) == pytest.approx(DISTORTION[bits], rel=0.05)
    assert 4.0**-bits < np.mean(errors) <= math.sqrt(3) * math.pi / 2 * 4.0**-bits


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_inner_products_are_unbiased_in_the_product_form(bits: int) -> None:
    width, x = 128, vectors(128)
    near, product, spread = [], [], []
    draw = np.random.default_rng(7)
    y = torch.from_numpy(draw.standard_normal((400, width)).astype(np.float32))
    for seed in range(40):
        turn = rotation(width, seed)
        near.append((least_squares(x, bits, turn) * x).sum(1))
        made = unbiased_product(x, bits, turn, projection(width, 1000 + seed))
        product.append((made * x).sum(1))
        spread.append(((made - x) * y).sum(1).square() / y.square().sum(1))
    assert float(torch.stack(product).mean()) == pytest.approx(1, abs=5e-3)
    assert float(torch.stack(near).mean()) == pytest.approx(1 - DISTORTION[bits], abs=5e-3)
    left = DISTORTION[bits - 1] if bits > 1 else 1.0
    assert width * float(torch.stack(spread).mean()) == pytest.approx(math.pi / 2 * left, rel=0.06)


def test_vectors_are_rounded_alone_and_scale_with_their_norm() -> None:
    x = vectors(64)
    whole = least_squares(x, 3)
    torch.testing.assert_close(torch.cat([least_squares(part, 3) for part in x.split(7)]), whole, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(least_squares(x * 100, 3), whole * 100, atol=1e-4, rtol=1e-4)
    assert not least_squares(torch.zeros(3, 64), 2).isnan().any()
    assert unbiased_product(torch.zeros(3, 64), 2).abs().max() == 0


def test_half_bits_go_to_the_louder_channels() -> None:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 2, 500, 64)).astype(np.float32))
    seen: list[torch.Tensor] = []
    x[:, 0, :, ::2] *= 3
    x[:, 1, :, 40:] *= 3
    back = turboquant.in_halves(x, lambda part, more: seen.append(part) or part)
    assert torch.equal(back, x)
    assert seen[0][0, 0].abs().mean() > 2.5 * seen[1][0, 0].abs().mean()
    error = [float((least_squares(x, bits) - x).square().mean()) for bits in (2, 2.5, 3)]
    power = [float(part.square().mean()) / 2 for part in seen]
    other = torch.from_numpy(np.random.default_rng(1).standard_normal((4000, 32)).astype(np.float32))
    d3, d2 = (float((least_squares(other, b) - other).square().mean() / other.square().mean()) for b in (3, 2))
    assert error[1] == pytest.approx(power[0] * d3 + power[1] * d2, rel=0.03)
    assert error[1] < 0.8 * error[0]  # with such channels less than even three bits for all cost


def test_stored_bits() -> None:
    norms, codes = turboquant.encode(vectors(64), 3, rotation(64))
    assert norms.shape == (400, 1)
    assert (codes.min(), codes.max()) == (0, 7)


def test_every_runtime_says_what_it_lacks(llama: Path) -> None:
    for runtime in ("torch", "onnxruntime", "onnxruntime-genai", "openvino", "llama.cpp", "vllm"):
        assert turboquant.refuse(llama, scheme("fp32-kv4-turbo"), runtime)
    assert "does not offer" in turboquant.refuse(llama, scheme("fp32-kv8"), "torch")
    assert "an option of the session" in turboquant.refuse(llama, scheme("fp32-kv4-turbo"), "triton")


def test_vllm_names_the_cache_and_its_cpu_attention_does_not_read_it(llama: Path) -> None:
    """By the installed vLLM's own lists."""
    package = next(Path(f"{sys.prefix}-vllm").glob("lib/python3*/site-packages/vllm"), None)
    if package is None:
        pytest.skip("vLLM is not here: make runtime-vllm")
    said = str(turboquant.refuse(llama, scheme("fp32-kv4-turbo"), "vllm"))
    named = re.search(r"kvturbo: (\w+)", said)
    assert named and f'"{named[1]}"' in (package / "config" / "cache.py").read_text()
    attention = (package / "v1" / "attention" / "backends" / "cpu_attn.py").read_text()
    read = re.search(r"supported_kv_cache_dtypes[^=]*= \[([^\]]*)\]", attention)
    assert read and "turboquant" not in read[1]


def test_the_cache_is_read_rounded(llama: Path, tokens: np.ndarray) -> None:
    from quantadvisor.methods.observe import load

    from .conftest import fake_kl

    found = [
        fake_kl(turboquant.fake(load(llama), scheme(f"fp32-kv{bits}-turbo"), tokens), llama, tokens) for bits in ("1", "2.5", "4")
    ]
    assert 0 < found[2] < found[1] < found[0]
