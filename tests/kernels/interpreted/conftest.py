"""Mends triton 3.9.0's interpreter for bfloat16 and FP8, where it is silently wrong as shipped, and offers exact bounds.

Runs only in the process that `tests/kernels/test_triton_numbers.py` starts with TRITON_INTERPRET=1: the variable has to be
set before triton is imported, and afterwards nothing can be compiled in that process.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    import numpy as np
    import torch
    import triton.language as tl
    from triton.runtime import interpreter

    Builder = interpreter.InterpreterBuilder
    shipped = {name: getattr(Builder, name) for name in ("create_dot", "cast_impl", "create_fp_to_fp")}
    ROUNDED = {tl.bfloat16: torch.bfloat16, tl.float8e4nv: torch.float8_e4m3fn}

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = np.ascontiguousarray(handle.data).view(np.uint16).astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def cast(self: Any, source: Any, wanted: Any) -> Any:
        """Rounds to nearest even through torch; FP8 saturates, as the GPU's conversion does."""
        given, target = source.dtype.scalar, wanted.scalar
        if given == tl.bfloat16 and target != tl.float32:
            return cast(self, widened(source), wanted)
        if given.is_int() and target in ROUNDED:
            source = shipped["cast_impl"](self, source, tl.float32)
            given = tl.float32
        if given == tl.float32 and target in ROUNDED:
            numbers = torch.from_numpy(np.ascontiguousarray(source.data))
            if target == tl.float8e4nv:
                numbers = numbers.clamp(-448, 448)
            wide = target == tl.bfloat16
            bits = numbers.to(ROUNDED[target]).contiguous().view(torch.int16 if wide else torch.int8).numpy()
            bits = bits.view(np.uint16 if wide else np.uint8).reshape(source.data.shape)
            return interpreter.TensorHandle(bits, target)
        return shipped["cast_impl"](self, source, wanted)

    def float_cast(self: Any, source: Any, wanted: Any, rounding: Any) -> Any:
        if source.dtype.scalar == tl.float32 and wanted.scalar in ROUNDED and "RTZ" not in str(rounding):
            return cast(self, source, wanted)
        return shipped["create_fp_to_fp"](self, source, wanted, rounding)

    def forbidden(name: str) -> Callable[..., Any]:
        original = getattr(Builder, name)

        def loud(self: Any, *given: Any) -> Any:
            for one in given:
                if isinstance(one, interpreter.TensorHandle) and one.dtype.scalar in ROUNDED:
                    raise TypeError(f"{name} on {one.dtype}: the interpreter would use bit patterns; cast to float32 first")
            return original(self, *given)

        return loud

    Builder.create_dot = lambda self, a, b, d, *rest: shipped["create_dot"](self, widened(a), widened(b), d, *rest)
    Builder.cast_impl = cast
    Builder.create_fp_to_fp = float_cast
    for operation in ("binary_op", "unary_op", "ternary_op", "create_fma"):
        setattr(Builder, operation, forbidden(operation))


@pytest.fixture
def as_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter without the mend."""
    for name, function in shipped.items():
        monkeypatch.setattr(Builder, name, function)


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
