"""The process in which a run's GPU kernels are timed at its model's sizes: started by path, one JSON object per line in and out.

    in   {"probe": name in `triton_subjects.product_at`, or "16 bit" for cuBLAS alone, "sizes": [M, N, K], "rivals": bool,
          "package": whose rivals alone are timed, without ours, in the interpreter where it lives}
    out  {"samples": {"triton": [seconds per call], "16 bit": [...], rival: [...]}, "without": {name: why it has none},
          "gpu": GpuState or null}, or {"refused": reason}

CUDA graphs, L2 cache emptied before each call; ours, the 16-bit product it replaces, and with `rivals` what other packages have
of the kind (kernels/rivals.py), interleaved (kernels/gpu_timing.py). On the first GPU that the process sees. Never run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quantadvisor.kernels import gpu_timing, rivals
from quantadvisor.kernels.answering import serve
from quantadvisor.profiling import nvml
from quantadvisor.profiling.gpu_state import state_of
from quantadvisor.profiling.memory import visible_gpu

OURS, PLAIN = "triton", "16 bit"
ROUNDS = 12
WARM_S = 0.05
"""Of each point; the first ones have warmed the clocks by then."""


def answer(request: dict[str, Any]) -> dict[str, Any]:
    sizes, package = tuple(request["sizes"]), request.get("package")
    ready, without = calls(request["probe"], sizes, others=bool(request.get("rivals")), package=package)
    with nvml.watching(visible_gpu()) as seen:
        samples, refused = gpu_timing.interleaved(ready, ROUNDS, WARM_S)
    if refused and not samples:
        return {"refused": next(iter(refused.values()))}
    state = state_of([seen.summary()])
    return {"samples": samples, "without": without | refused, "gpu": state.model_dump(mode="json") if state else None}


def calls(
    name: str, sizes: tuple[int, int, int], *, others: bool, package: str | None
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """(what is timed, why some of the others cannot be), by name."""
    import torch

    if name == PLAIN:
        m, n, k = sizes
        x, w = (torch.randn(rows, k, device="cuda").to(torch.bfloat16) for rows in (m, n))
        return {PLAIN: lambda: x @ w.T}, {}
    from quantadvisor.kernels.triton_subjects import product_at

    made = product_at(name, "cuda", sizes)
    ready, without = rivals.prepared(*made.problem, made.integers, package) if others and made.problem else ({}, {})
    ours = {} if package else {OURS: made.run}
    return {**ours, **({PLAIN: made.plain} if made.plain else {}), **ready}, without


def main() -> None:
    serve(answer, "refused")


if __name__ == "__main__":
    main()
