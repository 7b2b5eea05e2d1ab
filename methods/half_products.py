"""Products of calibration in bfloat16, where the CPU has instructions for them: operands of 8 significant bits, sums in float32.

What linears read is off by 2^-9 at most, as it is where the model is served in 16 bit; GPTQ's damping alone adds 1 % to the
Hessian. Two ways, since torch knows the first on any such CPU and the second on AMX alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def forward() -> Any:
    """A context in which linears and attention take bfloat16 and give it; the hidden states between layers stay float32."""
    import torch

    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=arithmetic() != "float32", cache_enabled=False)


def arithmetic() -> str:
    """In what products are on this CPU: what is kept of an artifact half made depends on it. A torch that does not tell what the
    CPU has computes in float32."""
    import torch

    units: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return "amx" if units.get("amx_bf16") else "bfloat16" if units.get("avx512_bf16") else "float32"


def as_they_are() -> Any:
    """Within `forward`: products in the type of their operands."""
    import torch

    return torch.autocast("cpu", enabled=False)


@contextmanager
def sums_in_float32() -> Iterator[None]:
    """Float32 products whose operands AMX rounds to bfloat16; the result is float32, unlike that of bfloat16 tensors."""
    import torch

    if arithmetic() != "amx":
        yield
        return
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
