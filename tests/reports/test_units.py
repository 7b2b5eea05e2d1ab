"""Human units: three significant digits, the largest unit reached, a dash for what is absent."""

from __future__ import annotations

import pytest

from quantadvisor.documents import Figure
from quantadvisor.reports import units


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0049, "4.90 ms"),
        (1.517, "1.52 s"),
        (0.9996, "1.00 s"),
        (3e-6, "3.00 µs"),
        (0, "0 s"),
        (180, "3.00 min"),
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "–"),
    ],
)
def test_duration(value: float | None, shown: str) -> None:
    assert units.duration(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(512, "512 B"), (269 * 2**20, "269 MiB"), (1010 * 2**20, "0.986 GiB"), (2**31, "2.00 GiB"), (None, "–")],
)
def test_size(value: float | None, shown: str) -> None:
    assert units.size(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (3.09, "3.09"),
        (9.999, "10.0"),
        (99.96, "100"),
        (0.000648, "0.000648"),
        (0, "0"),
        (-2.5, "−2.50"),
        (1234567, "1,234,567"),
        (1e-12, "1.00e−12"),
    ],
)
def test_digits(value: float, shown: str) -> None:
    assert units.digits(value) == shown


def test_one_unit_for_both_bounds_where_it_is_the_same() -> None:
    assert units.spread(Figure(median=0.005, low=0.0048, high=0.0052), units.duration) == "5.00 ms [4.80–5.20 ms]"
    assert units.bounds(0.9, 1.1, units.duration) == "[900 ms–1.10 s]"
    assert units.bounds(0, 1e-7, units.nats) == "[< 0.00001]"
    assert units.bounds(0, 0.01, units.nats) == "[< 0.00001–0.010]"


def test_signs_are_typographic() -> None:
    assert units.signed_percent(-0.021) == "−2.1 %"
    assert units.percent(-0.01, 1) == "−1.0 %"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("could gain 2.07x on this runtime; 52% of it", "could gain 2.07× on this runtime; 52 % of it"),
        ("3,084 -> 790 ms (3.91x)", "3,084 → 790 ms (3.91×)"),
        ("w4x@openvino and gemm-16x8 stay, 100 % too", "w4x@openvino and gemm-16x8 stay, 100 % too"),
        ("0x10 is no factor", "0x10 is no factor"),
    ],
)
def test_plain_words_are_typeset_and_names_are_not(said: str, shown: str) -> None:
    assert units.typeset(said) == shown
