"""`advisor kernels`: every kernel probe, ready or refused; with a model, which one wins at which M, and where that changes.

Timings (`kernels/probe.py`) and the device's roofs (`profiling/device.py`) are kept on disk, so a second look is quick. Between
two measured M a time is a straight line in log-log, and the M at which the winner changes is where two such lines cross. On a GPU
the kernels are ours, cuBLAS and those of installed packages (`gpu_home.py`).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from quantadvisor.documents import Device, Figure, Inventory, KernelTiming, LinearShape, OpenDocument
from quantadvisor.kernels.cliffs import cliffs
from quantadvisor.kernels.point import Kernel, Point, refusal
from quantadvisor.kernels.probe import NOT_REACHED, Progress, probe_in, probe_kernels
from quantadvisor.kernels.registry import PROBES
from quantadvisor.profiling.device import kept_peaks
from quantadvisor.profiling.environments import interpreter_of
from quantadvisor.profiling.gpu_peaks import with_peaks

from .catalogue import first_line
from .gpu_home import GpuHome, all_contenders

DEFAULT_MS = (1, 4, 16, 64, 256, 1024, 4096)
ANY_SHAPE = LinearShape(name="any", n=1024, k=1024, count=1)


class ProbeHere(OpenDocument):
    probe: str
    option: str
    runtime: str
    scheme: str
    what: str
    refused: str | None


class Winner(OpenDocument):
    m: int
    kernel: str
    time_s: float
    roofline_share: float | None
    over_runner_up: float | None
    """The second fastest kernel's time over this one's."""
    interpolated: bool = False
    """Not timed at this M: its neighbours leave no doubt."""


class Change(OpenDocument):
    """From this M on (modelled: the crossing of two measured lines) another kernel is the fastest."""

    m: float
    before: str
    after: str


class Cliff(OpenDocument):
    """At `m` a row of the activation matrix costs `factor` times what it does at `after_m`, the next M that was timed."""

    kernel: str
    after_m: int
    m: int
    factor: float


class ShapeTruth(OpenDocument):
    name: str
    n: int
    k: int
    count: int
    winners: tuple[Winner, ...]
    changes: tuple[Change, ...]
    cliffs: tuple[Cliff, ...]


class KernelTruth(OpenDocument):
    model: str | None = None
    device: str
    probes: tuple[ProbeHere, ...]
    shapes: tuple[ShapeTruth, ...] = ()
    timings: tuple[KernelTiming, ...] = ()
    counts: dict[str, int] = {}
    """Points timed, interpolated, untimed (the budget did not reach them) and refused."""


def standing(timing: KernelTiming) -> str:
    if timing.time_s is None:
        return "untimed" if timing.refused == NOT_REACHED else "refused"
    return "timed" if timing.time_s.samples else "interpolated"


def interpreters(asked: Mapping[str, str]) -> dict[str, str]:
    """The interpreter of every probed runtime, as it was `asked` for: probes run where their runtime lives."""
    return {runtime: interpreter_of(runtime, asked.get(runtime)) for runtime in {probe.runtime for probe in PROBES.values()}}


def probes_here(device: Device, pythons: Mapping[str, str] = {}) -> tuple[ProbeHere, ...]:
    """Every probe and option, on a GPU every contender; nothing is timed."""
    if device.kind == "cuda":
        return tuple(
            ProbeHere(
                probe=kernel.name,
                option=kernel.option,
                runtime=kernel.runtime,
                scheme=kernel.probe.scheme.name,
                what=f"a kernel of {kernel.runtime}",
                refused=kernel.probe.refuse(device, Point(kernel, ANY_SHAPE, 1).problem),
            )
            for kernel in all_contenders(device, pythons)
        )
    lives = interpreters(pythons)
    return tuple(
        ProbeHere(
            probe=name,
            option=option,
            runtime=probe.runtime,
            scheme=probe.scheme.name,
            what=first_line(getattr(probe, "__doc__", "")),
            refused=refusal(Point(Kernel(name, probe, option), ANY_SHAPE, 1), device, lives[probe.runtime]),
        )
        for name, probe in PROBES.items()
        for option in probe.options
    )


def time_kernels(
    model: str, inventory: Inventory, device: Device, cache: Path, budget_s: float, progress: Progress | None = None,
    pythons: Mapping[str, str] = {},
) -> KernelTruth:  # fmt: skip
    """Times what is not kept yet, the device's roofs included, within the budget, and says who wins. `pythons`: interpreters of
    runtimes that are not where the project makes them."""
    deadline = time.monotonic() + budget_s
    if device.kind == "cuda":
        device = with_peaks(device)
        timings = on_a_gpu(inventory, device, DEFAULT_MS, cache, deadline, progress, pythons)
    else:
        device = device.model_copy(update={"peaks": kept_peaks(device, cache)})
        timings = probe_kernels(
            inventory.linears,
            DEFAULT_MS,
            device,
            budget_s=deadline - time.monotonic(),
            progress=progress,
            cache=cache,
            search_cliffs=True,
            pythons=interpreters(pythons),
        )
    return KernelTruth(
        model=model,
        device=device.name,
        probes=probes_here(device, pythons),
        shapes=truth(inventory.linears, timings, DEFAULT_MS),
        timings=timings,
        counts=Counter(standing(timing) for timing in timings),
    )


def on_a_gpu(
    inventory: Inventory, device: Device, ms: Sequence[int], cache: Path, deadline: float, progress: Progress | None,
    pythons: Mapping[str, str],
) -> tuple[KernelTiming, ...]:  # fmt: skip
    """All contenders at every (N, K) and M, as the probes of a CPU are swept. Never run on a GPU."""
    home = GpuHome(device, cache, pythons)
    with home:
        return probe_in(all_contenders(device, pythons), home, inventory.linears, ms, deadline, progress)


def truth(shapes: Iterable[LinearShape], timings: Sequence[KernelTiming], ms: Sequence[int]) -> tuple[ShapeTruth, ...]:
    """Winners and their changes at those of `ms` where every kernel that runs here is known, and cliffs, of each distinct
    (N, K)."""
    merged: dict[tuple[int, int], list[LinearShape]] = {}
    for shape in shapes:
        merged.setdefault((shape.n, shape.k), []).append(shape)
    return tuple(shape_truth(same, [t for t in timings if (t.n, t.k) == size], ms) for size, same in merged.items())


def shape_truth(same: Sequence[LinearShape], timings: Sequence[KernelTiming], ms: Sequence[int]) -> ShapeTruth:
    times: dict[str, dict[int, float]] = {}
    spreads: dict[str, dict[int, Figure]] = {}
    shares: dict[tuple[str, int], float | None] = {}
    for timing in timings:
        if timing.time_s is None:
            continue
        kernel = kernel_name(timing)
        times.setdefault(kernel, {})[timing.m] = timing.time_s.median
        shares[kernel, timing.m] = timing.roofline_share
        if standing(timing) == "timed":
            spreads.setdefault(kernel, {})[timing.m] = timing.time_s
    unknown = {timing.m for timing in timings if standing(timing) == "untimed"}
    winners = []
    for m in sorted(({m for curve in times.values() for m in curve} & set(ms)) - unknown):
        ranked = sorted((curve[m], kernel) for kernel, curve in times.items() if m in curve)
        best, kernel = ranked[0]
        runner_up = ranked[1][0] / best if len(ranked) > 1 else None
        winners.append(
            Winner(
                m=m,
                kernel=kernel,
                time_s=best,
                roofline_share=shares[kernel, m],
                over_runner_up=runner_up,
                interpolated=m not in spreads.get(kernel, {}),
            )
        )
    changes = [
        Change(m=crossing(times[a.kernel], times[b.kernel], a.m, b.m), before=a.kernel, after=b.kernel)
        for a, b in pairwise(winners)
        if a.kernel != b.kernel
    ]
    first = same[0]
    return ShapeTruth(
        name=" ".join(dict.fromkeys(shape.name for shape in same)),
        n=first.n,
        k=first.k,
        count=sum(shape.count for shape in same),
        winners=tuple(winners),
        changes=tuple(changes),
        cliffs=tuple(
            Cliff(kernel=kernel, after_m=low, m=high, factor=factor)
            for kernel, curve in sorted(spreads.items())
            for low, high, factor in cliffs(curve)
        ),
    )


def kernel_name(timing: KernelTiming) -> str:
    return f"{timing.probe}+{timing.option}" if timing.option else timing.probe


def crossing(before: dict[int, float], after: dict[int, float], low: int, high: int) -> float:
    """M in [low, high] where `after` becomes the faster: two straight lines in log-log; `high` where one was not timed."""
    if not (low in before and low in after and high in before and high in after):
        return float(high)
    at_low = math.log(after[low] / before[low])
    at_high = math.log(after[high] / before[high])
    if at_low <= at_high:
        return float(high)
    return math.exp(math.log(low) + at_low / (at_low - at_high) * math.log(high / low))
