"""Who may be loaded at once: on a CPU all that are compared, on a GPU as many as its memory holds."""

from __future__ import annotations

from collections.abc import Sequence

from quantadvisor.documents import Candidate
from quantadvisor.profiling.gpu_memory import CONTEXT_BYTES

from .context import Context
from .decide import limit_bytes
from .predict import weights_and_cache


def in_parts(context: Context, candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """The candidates in their order, in parts that fit side by side; one that fits nowhere is tried alone."""
    if context.device.kind != "cuda":
        return [list(candidates)]
    limit, parts, used = limit_bytes(context.workload, context.device), list[list[Candidate]](), 0
    for one in candidates:
        need = needed_bytes(context, one)
        if not parts or used + need > limit:
            parts, used = [*parts, []], 0
        parts[-1].append(one)
        used += need
    return parts


def needed_bytes(context: Context, candidate: Candidate) -> int:
    """Of the GPU: its predicted peak, or at least its weights and caches, and a CUDA context of its own."""
    own = weights_and_cache(context.inventory, candidate.scheme, candidate.runtime, context.workload)
    predicted = candidate.predicted.peak_bytes if candidate.predicted else None
    return max(own, predicted or 0) + CONTEXT_BYTES
