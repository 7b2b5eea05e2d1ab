"""Kernels timed on this GPU at the model's sizes: cuBLAS in 16 bit, and our Triton kernels as far as they may be cited.

What was timed here replaces what tables say of it (gpu_kernels). Timings are kept by device and versions, so that the next run
takes them from there. Never run on a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from quantadvisor.documents import CandidateFailed, Device, GpuState, Inventory, KernelTiming, Scheme
from quantadvisor.kernels import timing_cache
from quantadvisor.kernels.processes import ProbeProcess
from quantadvisor.kernels.timing import figure
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling import gpu_kernels_child
from quantadvisor.profiling.gpu_kernels_child import OURS, PLAIN
from quantadvisor.profiling.gpus import environment

from .predict import kernel_class

CHILD = Path(gpu_kernels_child.__file__)
BUDGET_S = 60.0
POINT_LIMIT_S = 60.0
"""The first one compiles."""
MOST_ROWS = 4096
BF16 = scheme("bf16")
CUBLAS_PLACES = (("torch", "cuda"), ("vllm", "cuda"), ("triton", ""))
"""Runtime and option of candidates whose 16-bit products are cuBLAS's, called by torch."""


class Point(NamedTuple):
    kernel: str
    made: Scheme
    m: int
    n: int
    k: int


def timed_here(
    inventory: Inventory,
    device: Device,
    kernels: Mapping[str, Scheme],
    rows: Sequence[int],
    cache: Path,
    say: Callable[[str], None],
    budget_s: float = BUDGET_S,
) -> tuple[KernelTiming, ...]:
    """Timings of every kernel (its name in `advisor selfcheck` -> a scheme that takes it) at the model's (N, K) and `rows`, the
    smallest first. Curves that the budget did not reach in all of `rows` are left out: half of one would be extrapolated."""
    points = points_of(inventory, {PLAIN: BF16, **kernels}, [min(one, MOST_ROWS) for one in rows])
    end = time.monotonic() + budget_s
    taken: list[KernelTiming] = []
    with ProbeProcess(device.threads, CHILD, environment=environment(device)) as process:
        for point in points:
            taken += timings_at(point, device, process, cache, end - time.monotonic(), say)
    return tuple(whole(taken, points))


def points_of(inventory: Inventory, kernels: Mapping[str, Scheme], rows: Iterable[int]) -> list[Point]:
    """The head sees one row a sequence: it is timed at the smallest alone, and in 16 bit, as every scheme here leaves it."""
    counts = sorted(set(rows))
    body = {(one.n, one.k) for one in inventory.linears if not one.lm_head}
    shapes = dict.fromkeys((one.n, one.k) for one in inventory.linears)
    return [
        Point(kernel, made, m, *shape)
        for m in counts
        for kernel, made in kernels.items()
        for shape in shapes
        if shape in body or (m == counts[0] and kernel == PLAIN)
    ]


def timings_at(
    point: Point, device: Device, process: ProbeProcess, cache: Path, left_s: float, say: Callable[[str], None]
) -> list[KernelTiming]:
    file = timing_cache.place(
        cache, device, f"gpu-{point.kernel}", timing_cache.versions("torch") | timing_cache.versions("triton"), "",
        point.m, point.n, point.k,
    )  # fmt: skip
    kept = timing_cache.load(file)
    if kept is None and left_s > 0:
        say(f"{point.kernel} {point.n}x{point.k} M={point.m}")
        kept = asked(point, process)
        if kept.time_s is not None:
            kept.write(file)
    return [] if kept is None or kept.time_s is None else places_of(kept)


def asked(point: Point, process: ProbeProcess) -> KernelTiming:
    base = KernelTiming(probe=f"gpu-{point.kernel}", scheme=point.made, runtime="triton", m=point.m, n=point.n, k=point.k)
    try:
        said = process.ask({"probe": point.kernel, "sizes": [point.m, point.n, point.k], "rivals": False}, POINT_LIMIT_S)
    except CandidateFailed as error:
        return base.model_copy(update={"refused": str(error)})
    samples = said.get("samples", {}).get(PLAIN if point.kernel == PLAIN else OURS)
    if not samples:
        return base.model_copy(update={"refused": str(said.get("refused", "not timed"))})
    time_s = figure(samples, source="CUDA graph, L2 cache emptied before each call")
    state = GpuState.model_validate(said["gpu"]) if said.get("gpu") else None
    return base.model_copy(update={"time_s": time_s, "gpu": state})


def places_of(timing: KernelTiming) -> list[KernelTiming]:
    """The timing for each runtime that calls the kernel."""
    if kernel_class(timing.scheme) != kernel_class(BF16):
        return [timing]
    return [timing.model_copy(update={"runtime": runtime, "option": option}) for runtime, option in CUBLAS_PLACES]


def whole(taken: Sequence[KernelTiming], points: Iterable[Point]) -> list[KernelTiming]:
    """Those of kernels that were timed at all of their points."""
    wanted: dict[str, set[tuple[int, int, int]]] = {}
    for point in points:
        wanted.setdefault(kernel_class(point.made), set()).add((point.m, point.n, point.k))
    had: dict[str, set[tuple[int, int, int]]] = {}
    for one in taken:
        had.setdefault(kernel_class(one.scheme), set()).add((one.m, one.n, one.k))
    return [one for one in taken if had[kernel_class(one.scheme)] == wanted[kernel_class(one.scheme)]]
