"""Who may be loaded at once: as many as the memory of the device holds."""

from __future__ import annotations

from collections.abc import Sequence

from quantadvisor.documents import Candidate
from quantadvisor.kernels.machine import process_memory
from quantadvisor.profiling.gpu_memory import CONTEXT_BYTES

from .context import Context
from .decide import limit_bytes
from .predict import weights_and_cache


def in_parts(context: Context, candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """The candidates in their order, in parts that fit side by side; one that fits nowhere is tried alone."""
    limit = limit_bytes(context.workload, context.device) if context.device.kind == "cuda" else process_memory()
    parts, used = list[list[Candidate]](), 0
    for one in candidates:
        need = needed_bytes(context, one)
        if not parts or used + need > limit:
            parts, used = [*parts, []], 0
        parts[-1].append(one)
        used += need
    return parts


def needed_bytes(context: Context, candidate: Candidate) -> int:
    """Its predicted peak, or at least its weights and caches; on a GPU with a CUDA context of its own. Of a given server nothing:
    it holds its own already."""
    if candidate.url:
        return 0
    own = weights_and_cache(context.inventory, candidate.scheme, candidate.runtime, context.workload)
    predicted = candidate.predicted.peak_bytes if candidate.predicted else None
    return max(own, predicted or 0) + (CONTEXT_BYTES if context.device.kind == "cuda" else 0)
