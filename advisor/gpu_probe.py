"""Kernels timed on this GPU at the model's sizes: cuBLAS in 16 bit, and our Triton kernels as far as they may be cited, beside
those of installed packages.

What was timed here replaces what tables say of it (gpu_kernels). Timings are kept by device and versions, so that the next run
takes them from there. Where a package is faster than ours by more than noise, the triton runtime calls it there
(kernels/triton_products.py), and the time is its. Never run on a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from quantadvisor.documents import Device, Inventory, KernelTiming, LinearShape, Scheme
from quantadvisor.kernels import triton_products
from quantadvisor.kernels.point import Kernel
from quantadvisor.kernels.point import Point as PointOfKernel
from quantadvisor.kernels.triton_products import Winner, winner
from quantadvisor.profiling.gpu_kernels_child import PLAIN
from quantadvisor.profiling.gpus import device_class

from .first_contact import TRITON
from .gpu_home import BF16, GpuHome, contenders, rival_of
from .predict import kernel_class

BUDGET_S = 60.0
MOST_ROWS = 4096
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
    winners: list[Winner] = []
    timed = [one for one in contenders(kernels) if rival_of(one) is None]  # no model here can call what lives elsewhere
    home = GpuHome(device, cache)
    with home:
        for point in points:
            say(f"{point.kernel} {point.n}x{point.k} M={point.m}")
            found = timings_at(point, [one for one in timed if one.name == point.kernel], home, end)
            won = None if point.kernel == PLAIN else winner(point.kernel, (point.m, point.n, point.k), found)
            winners += [won] if won else []
            taken += places_of(found, won)
    triton_products.keep(device_class(device), winners)
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


def timings_at(point: Point, kernels: Sequence[Kernel], home: GpuHome, end: float) -> dict[str, KernelTiming]:
    """What could be timed at the point, by the contender's name."""
    shape = LinearShape(name=point.kernel, n=point.n, k=point.k, count=1)
    taken = home.take([PointOfKernel(kernel, shape, point.m) for kernel in kernels], end)
    return {kernel.option: one for kernel, one in zip(kernels, taken, strict=True) if one.time_s is not None}


def places_of(found: Mapping[str, KernelTiming], won: Winner | None) -> list[KernelTiming]:
    """The timing for each runtime that calls the kernel: of ours, for the triton runtime, that of the winner."""
    if won is not None:
        return [found[won.product].model_copy(update={"runtime": TRITON, "option": "", "operator": won.product})]
    plain = [one for one in found.values() if one.probe == PLAIN]
    return [one.model_copy(update={"runtime": runtime, "option": option}) for one in plain for runtime, option in CUBLAS_PLACES]


def whole(taken: Sequence[KernelTiming], points: Iterable[Point]) -> list[KernelTiming]:
    """Those of kernels that were timed at all of their points."""
    wanted: dict[str, set[tuple[int, int, int]]] = {}
    for point in points:
        wanted.setdefault(kernel_class(point.made), set()).add((point.m, point.n, point.k))
    had: dict[str, set[tuple[int, int, int]]] = {}
    for one in taken:
        had.setdefault(kernel_class(one.scheme), set()).add((one.m, one.n, one.k))
    return [one for one in taken if had[kernel_class(one.scheme)] == wanted[kernel_class(one.scheme)]]
