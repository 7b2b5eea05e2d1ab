"""Oracle: a power law is straight in logarithms, so that interpolation must give it back exactly."""

import itertools

import numpy as np
import pytest

from quantadvisor.kernels.gpu_devices import gpu
from quantadvisor.kernels.gpu_schemes import gpu_scheme, stored_bytes
from quantadvisor.kernels.gpu_tables import (
    all_reduce_s,
    decode_attention_s,
    grid_of,
    looked,
    prefill_attention_s,
    product_s,
    sum_of,
    tables,
)


def law(m: float, n: float, k: float) -> float:
    return 1e-9 * m**0.3 * n**0.9 * k**0.7


@pytest.fixture(scope="module")
def grid():  # type: ignore[no-untyped-def]
    points = np.array([p for p in itertools.product((1, 8, 64), (128, 512, 4096), (256, 1024)) if p != (64, 4096, 1024)])
    return grid_of(points.T, law(*points.T))


def test_a_point_of_the_table_is_measured(grid) -> None:  # type: ignore[no-untyped-def]
    found = looked(grid, (8, 512, 1024))
    assert found.kind == "measured"
    assert found.seconds == pytest.approx(law(8, 512, 1024))


def test_between_points_it_is_interpolated_in_logarithms(grid) -> None:  # type: ignore[no-untyped-def]
    found = looked(grid, (3, 300, 500))
    assert found.kind == "interpolated"
    assert found.seconds == pytest.approx(law(3, 300, 500))


@pytest.mark.parametrize("at", [(0.5, 512, 1024), (128, 512, 1024), (8, 5000, 1024), (32, 1000, 1024)])
def test_outside_or_beside_a_hole_nothing_is_said(grid, at: tuple[float, ...]) -> None:  # type: ignore[no-untyped-def]
    assert looked(grid, at) is None


@pytest.mark.parametrize("name", ["a100_sxm", "l40s", "h100_sxm", "h200_sxm", "b200_sxm"])
def test_no_product_is_faster_than_its_bytes(name: str) -> None:
    device = gpu(name)
    for key in tables(name):
        if key.startswith("gemm"):
            _, runtime, scheme = key.split()
            for m, n, k in ((1, 1024, 1024), (7, 5000, 3000), (64, 8192, 8192)):
                read = stored_bytes(n, k, gpu_scheme(scheme)) / device.read_bytes_per_s
                assert product_s(device, runtime, scheme, m, n, k).seconds >= read


def test_beyond_the_table_it_is_a_roofline() -> None:
    assert product_s(gpu("h100"), "vllm", "bf16", 8, 1 << 20, 64).kind == "roofline"


def test_attention_costs_its_cache() -> None:
    """At 32 x 16k tokens decode attention is bandwidth: 60 to 100 % of it; an 8-bit cache there gains (facts: 1.3 to 1.9x)."""
    h100 = gpu("h100")
    plain, small = (decode_attention_s(h100, "vllm", 32, 16384, 32, 8, 128, bits) for bits in (16, 8))
    read = 32 * 16384 * 2 * 8 * 128 * 2 / h100.read_bytes_per_s
    assert plain.kind == "measured"
    assert 0.6 < read / plain.seconds <= 1
    assert 1.2 < plain.seconds / small.seconds < 2.0
    assert decode_attention_s(h100, "vllm", 64, 1 << 22, 32, 8, 128, 16).kind == "roofline"


def test_attention_over_a_fresh_prompt_is_arithmetic() -> None:
    """Eight prompts of 8k tokens: 20 to 90 % of the 16-bit peak, and four times as long for twice the tokens."""
    for name in ("a100", "h100", "b200"):
        device = gpu(name)
        one, twice = (prefill_attention_s(device, "vllm", 8, tokens, 32, 8, 128, 16) for tokens in (4096, 8192))
        done = 2 * 8 * 32 * 4096**2 * 128 / device.flops_per_s["bf16"]
        assert one.kind in ("measured", "interpolated")
        assert 0.2 < done / one.seconds < 0.9
        assert 3 < twice.seconds / one.seconds < 4.5
    assert prefill_attention_s(gpu("h100"), "vllm", 8, 1 << 22, 32, 8, 128, 16).kind == "roofline"


def test_reductions() -> None:
    """A few microseconds for a message of one token; never less than the ring's bytes over the link."""
    h100 = gpu("h100")
    small, large = (all_reduce_s(h100, "vllm", 8, size) for size in (8192 * 2, 1 << 28))
    assert 2e-6 < small.seconds < 30e-6
    assert large.seconds >= (1 << 28) * 2 * 7 / 8 / h100.link_bytes_per_s
    assert all_reduce_s(h100, "vllm", 16, 1 << 20).kind == "roofline"


def test_a_sum_is_as_certain_as_its_least() -> None:
    h100 = gpu("h100")
    parts = [(2, product_s(h100, "vllm", "bf16", 8, 4096, 4096)), (1, product_s(h100, "vllm", "bf16", 8, 1 << 20, 64))]
    assert [one.kind for _, one in parts] == ["measured", "roofline"]
    assert sum_of(parts) == (pytest.approx(2 * parts[0][1].seconds + parts[1][1].seconds), "roofline")
