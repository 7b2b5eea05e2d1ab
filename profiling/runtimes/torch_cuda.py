"""torch on an NVIDIA GPU, as a session needs it: logits that stay there, the allocator's memory, what each part's kernels take.

Shared by the runtimes that compute with torch. Device 0 of what the process sees. Written against torch's documented
interfaces and checked here with stand-ins for them: never run on a GPU.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

SCOPE = "quantadvisor: "
Place = tuple[Any, str, str]
"""An owner, the name of a function of it, and the part of a step that it is: linears, attention or cache."""
PARTS = ("linears", "attention", "cache")


class Logits:
    """Logits [B, V] that stay on the GPU, computed when this is made: a server takes its greedy token there too."""

    def __init__(self, tensor: Any) -> None:
        import torch

        self.tensor = tensor.float()
        torch.cuda.synchronize()

    def argmax(self, axis: int) -> Any:
        return self.tensor.argmax(axis).cpu().numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        made = self.tensor.cpu().numpy()
        return made if dtype is None else made.astype(dtype, copy=False)


def reset_memory() -> None:
    """The allocator's peak starts again from what it holds now."""
    import torch

    torch.cuda.reset_peak_memory_stats()


def allocated() -> tuple[int, int]:
    """Bytes that torch's allocator holds on the GPU, and held at most since `reset_memory`."""
    import torch

    return int(torch.cuda.memory_allocated()), int(torch.cuda.max_memory_allocated())


@contextmanager
def scopes(places: Iterable[Place]) -> Iterator[None]:
    """Every call of those functions inside a scope of the profiler that is named after its part."""
    import torch

    def around(inner: Any, part: str) -> Any:
        def marked(*args: Any, **kwargs: Any) -> Any:
            with torch.profiler.record_function(SCOPE + part):
                return inner(*args, **kwargs)

        return marked

    with ExitStack() as undo:
        for owner, name, part in places:
            inner, own = getattr(owner, name), name in vars(owner)
            setattr(owner, name, around(inner, part))
            undo.callback(setattr, owner, name, inner) if own else undo.callback(delattr, owner, name)
        yield


def observe(run: Callable[[], Any], rounds: int, places: Iterable[Place] | None) -> dict[str, Any]:
    """Wall times of plain passes; kernels of one more by torch.profiler, with their own time on the GPU. What is left of the
    wall is *other*: other kernels, launches and the host. No `places`: compiled code and CUDA graphs call no function that
    could be marked, so a kernel's part is what its name tells."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    walls = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        walls.append(time.perf_counter() - start)
    with scopes(places or ()), profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    wall = sorted(walls)[len(walls) // 2]
    found = kernels(seen.events(), by_name=places is None)
    parts = {part: sum(row["time_s"] for row in found if row["part"] == part) for part in PARTS}
    way, marks = ("eager, no CUDA graph", "scope") if places is not None else ("parts by the names of kernels", "known kernel")
    notes = [f"kernels busy for {sum(row['time_s'] for row in found):.2e} s of {wall:.2e} s; {way}"]
    if not any(parts.values()):
        notes.append(f"the profiler showed no {marks} on the GPU: linears, attention and cache are not taken apart")
    for row in found:
        row["linear"] = row.pop("part") == "linears"
        row["quantized"] = row["linear"] and bool(LOW_BIT.search(row["name"].lower()))
    return {
        "operators": found,
        "wall_s": wall,
        "walls_s": walls,
        "notes": notes,
        **{f"{part}_s": seconds for part, seconds in parts.items()},
        "other_s": wall - sum(parts.values()),
    }


def kernels(events: Iterable[Any], by_name: bool = False) -> list[dict[str, Any]]:
    """Kernels of the GPU by name and part, most expensive first. A kernel's part is that of the last scope which began on the
    GPU before it and has not ended: the profiler marks there from when to when each scope's kernels ran. Outside of all scopes
    it is other, or `by_name` what its name tells."""
    import torch

    on_gpu = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    order = sorted(on_gpu, key=lambda event: (event.time_range.start, not event.name.startswith(SCOPE)))
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    opened: list[Any] = []
    for event in order:
        opened = [mark for mark in opened if mark.time_range.end > event.time_range.start]
        if event.name.startswith(SCOPE):
            opened.append(event)
            continue
        if getattr(event, "is_user_annotation", False):
            continue
        part = opened[-1].name.removeprefix(SCOPE) if opened else part_of(event.name) if by_name else "other"
        if "reshape_and_cache" in event.name:  # vLLM's attention writes the cache inside its scope
            part = "cache"
        new = {"name": event.name, "count": 0, "provider": "CUDA", "precision": precision(event.name), "time_s": 0.0}
        row = rows.setdefault((event.name, part), new | {"part": part})
        row["count"] += 1
        row["time_s"] += (event.time_range.end - event.time_range.start) / 1e6
    return sorted(rows.values(), key=lambda row: -row["time_s"])


LOW_BIT = re.compile(r"marlin|machete|wna16|awq|gptq|4bit|int[48]|w[48]a|scaled_mm|fp8|e4m3|(?<![a-z0-9])[si]8")
"""Marks in the names of products that read codes; codes that are dequantized first run as a plain one."""
KERNEL_PARTS = {
    r"^triton_(poi|red|per)_": "other",
    r"reshape_and_cache": "cache",
    r"attn|attention|flash|fmha|pagedkv|reduce_segments": "attention",
    r"gemm|gemv|matmul|scaled_mm|nvjet|cutlass|splitk|marlin|machete|wna16|awq|gptq|fused_moe|^triton_tem_": "linears",
}
"""Marks in the names of kernels, in this order: what Inductor fuses carries the names of all that went into it."""


def part_of(kernel: str) -> str:
    """The part of a step that a kernel's name tells; other where it tells none."""
    return next((part for mark, part in KERNEL_PARTS.items() if re.search(mark, kernel.lower())), "other")


PRECISIONS = {
    r"e4m3|fp8": "fp8",
    r"(?<![a-z0-9])(s8|i8|int8)": "int8",
    r"bf16|bfloat16": "bfloat16",
    r"f16|half|hgemm|h16816": "float16",
    r"sgemm|tf32": "float32",
}
"""Marks in the names of kernels, in this order."""


def precision(kernel: str) -> str:
    """The number type that a kernel's name tells; empty where it tells none."""
    return next((number for mark, number in PRECISIONS.items() if re.search(mark, kernel.lower())), "")
