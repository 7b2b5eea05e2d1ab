"""Mends the interpreter (`kernels/triton_interpreter.py`) and offers exact bounds.

Runs only in the process that `tests/kernels/test_triton_numbers.py` starts with TRITON_INTERPRET=1: the variable has to be
set before triton is imported, and afterwards nothing can be compiled in that process.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest

from quantadvisor.kernels.triton_interpreter import mend

shipped = mend() if os.environ.get("TRITON_INTERPRET") == "1" else {}


@pytest.fixture
def as_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter without the mend."""
    from triton.runtime.interpreter import InterpreterBuilder

    for name, function in shipped.items():
        monkeypatch.setattr(InterpreterBuilder, name, function)


UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Unit roundoff: half the distance of neighbours at 1."""


@pytest.fixture
def close() -> Callable[..., None]:
    """Asserts |found - true| <= u |true| (rounding of the output, of its type) + (additions + 4) 2^-24 |x| |w| (sums)."""

    def checked(found: Any, true: Any, sizes: Any, additions: int) -> None:
        unit = UNIT[str(found.dtype).removeprefix("torch.")]
        smallest = 2.0**-25 if unit == UNIT["float16"] else 0.0  # half a subnormal of float16
        sums = (additions + 4) * UNIT["float32"] * sizes
        allowed = unit * (true.abs() + sums) + sums + smallest
        excess = ((found.double() - true).abs() - allowed).max().item() if true.numel() else 0.0
        assert found.shape == true.shape
        assert excess <= 0, f"error exceeds what the formats allow by {excess:.3g}"

    return checked
