"""Mends triton 3.9.0's interpreter for bfloat16 and FP8, where it is silently wrong as shipped (NaN of E4M3 included).

Call `mend` after TRITON_INTERPRET=1 was set and before any kernel runs: the variable has to be set before triton is imported,
and afterwards nothing can be compiled in that process. It touches private names, which is why the canary
(`tests/kernels/interpreted/check_interpreter.py`) compares with torch, as shipped and mended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def mend() -> dict[str, Any]:
    """Products widen bfloat16 first, casts round as a GPU does, arithmetic on 16-bit patterns raises. -> what was shipped."""
    import numpy as np
    import torch
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    shipped = {name: getattr(builder, name) for name in ("create_dot", "cast_impl", "create_fp_to_fp")}
    rounded = {tl.bfloat16: torch.bfloat16, tl.float8e4nv: torch.float8_e4m3fn}

    def widened(handle: Any) -> Any:
        """float32; shipped, E4M3's NaN becomes 480."""
        if handle.dtype.scalar == tl.float8e4nv:
            bytes_ = torch.from_numpy(np.ascontiguousarray(handle.data).view(np.uint8))
            return interpreter.TensorHandle(bytes_.view(torch.float8_e4m3fn).float().numpy(), tl.float32)
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = np.ascontiguousarray(handle.data).view(np.uint16).astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def cast(self: Any, source: Any, wanted: Any) -> Any:
        """Rounds to nearest even through torch; FP8 saturates, as the GPU's conversion does."""
        given, target = source.dtype.scalar, wanted.scalar
        if given in rounded:
            single = widened(source)
            return single if target == tl.float32 else cast(self, single, wanted)
        if given.is_int() and target in rounded:
            source = shipped["cast_impl"](self, source, tl.float32)
            given = tl.float32
        if given == tl.float32 and target in rounded:
            numbers = torch.from_numpy(np.ascontiguousarray(source.data))
            if target == tl.float8e4nv:
                numbers = numbers.clamp(-448, 448)
            wide = target == tl.bfloat16
            bits = numbers.to(rounded[target]).contiguous().view(torch.int16 if wide else torch.int8).numpy()
            bits = bits.view(np.uint16 if wide else np.uint8).reshape(source.data.shape)
            return interpreter.TensorHandle(bits, target)
        return shipped["cast_impl"](self, source, wanted)

    def float_cast(self: Any, source: Any, wanted: Any, rounding: Any) -> Any:
        given, target = source.dtype.scalar, wanted.scalar
        to_nearest = given == tl.float32 and target in rounded and "RTZ" not in str(rounding)
        if to_nearest or given == tl.float8e4nv:
            return cast(self, source, wanted)
        return shipped["create_fp_to_fp"](self, source, wanted, rounding)

    def forbidden(name: str) -> Callable[..., Any]:
        original = getattr(builder, name)

        def loud(self: Any, *given: Any) -> Any:
            for one in given:
                if isinstance(one, interpreter.TensorHandle) and one.dtype.scalar in rounded:
                    raise TypeError(f"{name} on {one.dtype}: the interpreter would use bit patterns; cast to float32 first")
            return original(self, *given)

        return loud

    builder.create_dot = lambda self, a, b, d, *rest: shipped["create_dot"](self, widened(a), widened(b), d, *rest)
    builder.cast_impl = cast
    builder.create_fp_to_fp = float_cast
    for operation in ("binary_op", "unary_op", "ternary_op", "create_fma"):
        setattr(builder, operation, forbidden(operation))
    interpreter._patch_lang = _once_for_each_language(interpreter._patch_lang)
    return shipped


def _once_for_each_language(patch: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """As shipped, `tl` and `tl.core` are patched anew at every launch and at every call of a device function, `tl.sum` too.

    The patches say the same each time, and in this process nothing but the interpreter reads them: they stay.
    """
    from triton.language import core
    from triton.runtime import interpreter

    done: set[frozenset[str]] = set()

    def patched(fn: Any) -> Any:
        seen = frozenset(one.__name__ for one in fn.__globals__.values() if one is core or one is interpreter.tl)
        if seen not in done:
            patch(fn)
            done.add(seen)
        return interpreter._LangPatchScope()

    return patched
