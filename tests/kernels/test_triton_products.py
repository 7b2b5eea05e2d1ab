"""Who wins beyond noise, and what is remembered of it. Calling it: interpreted/check_triton_runtime.py."""

from pathlib import Path

import pytest

from quantadvisor.documents import Figure, KernelTiming
from quantadvisor.kernels import triton_products
from quantadvisor.kernels.triton_products import keep, kept, winner
from quantadvisor.methods.schemes import scheme


def timing(low: float, high: float) -> KernelTiming:
    time_s = Figure(median=(low + high) / 2, low=low, high=high, kind="measured")
    return KernelTiming(probe="w8a8", scheme=scheme("w8a8-bf16"), runtime="triton", m=8, n=64, k=32, time_s=time_s)


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ({"a": (0.9, 1.1)}, "triton"),
        ({"a": (0.5, 0.8), "b": (0.3, 0.85)}, "b"),
        ({"a": (0.5, 0.91), "b": (1.5, 1.6)}, "triton"),
        ({}, "triton"),
    ],
)
def test_the_fastest_of_those_that_are_surely_faster_wins(others: dict[str, tuple[float, float]], expected: str) -> None:
    found = {"triton": timing(0.9, 1.1), "16 bit": timing(5, 6)} | {name: timing(*ends) for name, ends in others.items()}
    won = winner("w8a8", (8, 64, 32), found)
    assert won is not None
    assert (won.product, won.m, won.n, won.k) == (expected, 8, 64, 32)
    assert won.factor == pytest.approx(1.0 / (won.time_s.median))
    assert winner("w8a8", (8, 64, 32), {name: timing(*ends) for name, ends in others.items()}) is None  # ours was not timed


def test_the_16_bit_product_is_no_stand_in() -> None:
    """It multiplies other weights."""
    won = winner("w8a8", (8, 64, 32), {"triton": timing(0.9, 1.1), "16 bit": timing(0.1, 0.2)})
    assert won is not None
    assert won.product == "triton"


def test_winners_are_remembered_by_device_size_and_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QUANTADVISOR_CACHE", str(tmp_path))
    before = winner("w8a8", (8, 64, 32), {"triton": timing(0.9, 1.1), "a": timing(0.5, 0.6)})
    after = winner("w8a8", (8, 64, 32), {"triton": timing(0.9, 1.1)})
    other = winner("w8a8", (1, 64, 32), {"triton": timing(0.9, 1.1)})
    assert before and after and other
    keep("A, sm_90", [before])
    assert kept("A, sm_90") == (before,)
    keep("A, sm_90", [after, other])
    assert kept("A, sm_90") == (after, other)
    assert kept("B, sm_90") == ()
    monkeypatch.setattr(triton_products, "versions", lambda: {"torch": "another"})
    assert kept("A, sm_90") == ()
