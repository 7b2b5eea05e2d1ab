"""Oracle: a power law is straight in logarithms, so that interpolation must give it back exactly."""

import itertools

import numpy as np
import pytest

from quantadvisor.kernels.gpu_devices import gpu
from quantadvisor.kernels.gpu_schemes import gpu_scheme, stored_bytes
from quantadvisor.kernels.gpu_tables import grid_of, looked, product_s, tables


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
