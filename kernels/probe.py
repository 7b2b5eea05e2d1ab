"""Times kernels at a model's own (N, K) and M: each runtime in a process of its own, one kernel after the other.

The imports of all runtimes overlap, then one process computes at a time. Each kernel has its part of the time that is left; what
it does not use is the others'. `grid` says which M are timed, `cliffs` where more are, `homes` how.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from quantadvisor.documents import Device, Figure, KernelTiming, LinearShape

from . import grid
from .cliffs import next_ms
from .homes import Home, TimingPlace
from .point import Kernel, Point, roofline_share, weight_bytes
from .registry import OFFERED, PROBES

START_POINTS = 8
"""What building a kernel takes, in points."""
NOT_REACHED = "not reached within budget"
Pythons = Mapping[str, str]
"""runtime → the interpreter that it lives in, where that is not ours"""
Progress = Callable[[int, int, str], None]
"""points done, points in all, what is being timed"""


@dataclass(frozen=True)
class Curve:
    """One kernel at one (N, K) over M, and what was taken of it so far: timings and refusals."""

    kernel: Kernel
    shape: LinearShape
    ms: tuple[int, ...]
    extra: tuple[int, ...]
    taken: dict[int, KernelTiming] = field(default_factory=dict)

    @property
    def times(self) -> dict[int, Figure]:
        return {m: timing.time_s for m, timing in self.taken.items() if timing.time_s is not None}

    def point(self, m: int) -> Point:
        return Point(self.kernel, self.shape, m)

    def left(self, ms: Iterable[int]) -> list[int]:
        """Those that were not refused."""
        return [m for m in ms if m not in self.taken or self.taken[m].time_s is not None]


Plan = Callable[[Curve], Sequence[int]]
"""curve → the M that it is to be timed at next; those that were taken do not count"""


def probe_kernels(
    shapes: Sequence[LinearShape],
    ms: Sequence[int],
    device: Device,
    *,
    probes: Iterable[str] = OFFERED,
    budget_s: float,
    extra_ms: Sequence[int] = (),
    progress: Progress | None = None,
    cache: Path | None = None,
    search_cliffs: bool = False,
    pythons: Pythons | None = None,
) -> tuple[KernelTiming, ...]:
    """Every probe at every (N, K) and at every M of `ms`, timed or interpolated where that is clear (a modelled figure that
    says so), and at `extra_ms` and about cliffs as far as the budget goes.

    The head runs on the last position of each sequence only, so it is timed at the smallest of `ms` alone. Points of
    `ms` that the budget did not reach come back refused; those of `extra_ms` do not come back. Where all that is needed was
    kept, so is what the search for cliffs found then: it is not taken further.
    """
    deadline = time.monotonic() + budget_s
    kernels = _kernels(probes, shapes, device)
    with ExitStack() as stack:
        homes = {}
        for runtime in dict.fromkeys(kernel.runtime for kernel in kernels):
            python = (pythons or {}).get(runtime, sys.executable)
            homes[runtime] = stack.enter_context(Home(runtime, device, python, cache))
        curves = {kernel: _curves(kernel, shapes, ms, extra_ms) for kernel in kernels}
        return swept(curves, homes, deadline, progress, search_cliffs=search_cliffs)


def probe_in(
    kernels: Iterable[Kernel],
    home: TimingPlace,
    shapes: Sequence[LinearShape],
    ms: Sequence[int],
    deadline: float,
    progress: Progress | None = None,
) -> tuple[KernelTiming, ...]:
    """`probe_kernels`, cliffs included, of kernels that are all timed in one place."""
    curves = {kernel: _curves(kernel, shapes, ms, ()) for kernel in kernels}
    return swept(curves, {kernel.runtime: home for kernel in curves}, deadline, progress, search_cliffs=True)


def swept(
    curves: Mapping[Kernel, Sequence[Curve]],
    homes: Mapping[str, TimingPlace],
    deadline: float,
    progress: Progress | None,
    *,
    search_cliffs: bool,
) -> tuple[KernelTiming, ...]:
    """All that is known of the curves once the grid, and where wanted the cliffs, were timed until the deadline (monotonic)."""
    sweep = _Sweep(curves, homes, progress)
    sweep.remember()
    on_grid: Plan = lambda curve: _on_grid(curve, sweep.rivals(curve))  # noqa: E731
    sweep.go(on_grid, deadline)
    if search_cliffs:
        best = _fastest(curves)
        end = deadline if any(home.process.running for home in homes.values()) else 0.0
        sweep.go(lambda curve: _about_cliffs(curve, best[curve.shape.n, curve.shape.k]), end)
        sweep.go(on_grid, end)  # a cliff that was found may have opened what seemed clear
    return tuple(timing for mine in curves.values() for curve in mine for timing in sweep.told(curve))


def _kernels(probes: Iterable[str], shapes: Sequence[LinearShape], device: Device) -> list[Kernel]:
    """Runtime after runtime."""
    made = []
    for name in probes:
        probe = PROBES[name]
        total = sum(one.count * weight_bytes(probe.scheme, one) for one in shapes)
        made += [Kernel(name, probe, option, total > device.last_level_cache_bytes) for option in probe.options]
    runtimes = list(dict.fromkeys(kernel.runtime for kernel in made))
    return sorted(made, key=lambda kernel: runtimes.index(kernel.runtime))


def _curves(kernel: Kernel, shapes: Sequence[LinearShape], ms: Sequence[int], extra_ms: Sequence[int]) -> list[Curve]:
    """One for each distinct (N, K)."""
    merged: dict[tuple[int, int], LinearShape] = {}
    for shape in sorted(shapes, key=lambda one: one.lm_head):
        same = merged.get((shape.n, shape.k))
        merged[shape.n, shape.k] = same.model_copy(update={"count": same.count + shape.count}) if same else shape
    grid_ms, extra = tuple(sorted(set(ms))), tuple(sorted(set(extra_ms) - set(ms)))
    return [
        Curve(kernel, shape, grid_ms[:1], ()) if shape.lm_head else Curve(kernel, shape, grid_ms, extra)
        for shape in merged.values()
    ]


def _on_grid(curve: Curve, rivals: Sequence[grid.Times]) -> list[int]:
    m = grid.next_m(curve.times, curve.left(curve.ms), curve.left(curve.extra), rivals)
    return [] if m is None else [m]


def _about_cliffs(curve: Curve, fastest: Mapping[int, float]) -> list[int]:
    return next_ms({m: time_s.median for m, time_s in curve.times.items()}, curve.ms, fastest)


def _fastest(curves: Mapping[Kernel, Sequence[Curve]]) -> dict[tuple[int, int], dict[int, float]]:
    """(N, K) → M → seconds of the fastest kernel."""
    best: dict[tuple[int, int], dict[int, float]] = {}
    for curve in (curve for mine in curves.values() for curve in mine):
        fastest = best.setdefault((curve.shape.n, curve.shape.k), {})
        fastest.update({m: min(time_s.median, fastest.get(m, time_s.median)) for m, time_s in curve.times.items()})
    return best


@dataclass(frozen=True)
class _Sweep:
    """The curves of all kernels, and where each kernel is timed."""

    curves: Mapping[Kernel, Sequence[Curve]]
    homes: Mapping[str, TimingPlace]
    progress: Progress | None

    def rivals(self, curve: Curve) -> list[grid.Times]:
        """Other kernels at the same (N, K)."""
        size = curve.shape.n, curve.shape.k
        others = (one for kernel, mine in self.curves.items() if kernel != curve.kernel for one in mine)
        return [one.times for one in others if (one.shape.n, one.shape.k) == size]

    def remember(self) -> None:
        """All that earlier runs kept of the grid, whatever is known of rivals by then: what they settled stays settled."""
        for kernel, mine in self.curves.items():
            for curve in mine:
                kept = ((m, self.homes[kernel.runtime].kept(curve.point(m))) for m in (*curve.ms, *curve.extra))
                curve.taken.update({m: timing for m, timing in kept if timing is not None})

    def go(self, plan: Plan, deadline: float) -> None:
        """Follows the plan in what earlier runs left, then times what is open, round after round, until the deadline."""
        for kernel in self.curves:
            self._recall(kernel, plan)
        open_kernels = [kernel for kernel in self.curves if self._wanted(kernel, plan)]
        self._start({kernel.runtime for kernel in open_kernels if not self._refused(kernel, plan)}, deadline)
        while open_kernels and (time.monotonic() < deadline or any(self._refused(kernel, plan) for kernel in open_kernels)):
            for place, kernel in enumerate(open_kernels):
                weights = [self._weight(one) for one in open_kernels[place:]]
                share = (deadline - time.monotonic()) * weights[0] / sum(weights)
                self._visit(kernel, plan, time.monotonic() + max(0.0, share))
            open_kernels = [kernel for kernel in open_kernels if self._wanted(kernel, plan)]

    def told(self, curve: Curve) -> list[KernelTiming]:
        """All that was taken, and of the other M of the grid what is known, or why nothing is; by M."""
        home, times, rivals = self.homes[curve.kernel.runtime], curve.times, self.rivals(curve)
        told = list(curve.taken.values())
        for point in (curve.point(m) for m in curve.ms if m not in curve.taken):
            settled = grid.clear(times, point.m) or grid.beaten(times, point.m, rivals)
            time_s = grid.interpolated(times, point.m, curve.kernel.name) if settled else None
            if time_s is None:
                told.append(point.timing(refused=home.refusal(point) or NOT_REACHED))
            else:
                told.append(point.timing(time_s=time_s, roofline_share=roofline_share(home.device, point, time_s.median)))
        return sorted(told, key=lambda timing: timing.m)

    def _recall(self, kernel: Kernel, plan: Plan) -> None:
        for curve in self.curves[kernel]:
            while ms := [m for m in plan(curve) if m not in curve.taken]:
                kept = {m: timing for m in ms if (timing := self.homes[kernel.runtime].kept(curve.point(m)))}
                curve.taken.update(kept)
                if len(kept) < len(ms):
                    break

    def _wanted(self, kernel: Kernel, plan: Plan) -> dict[int, list[Curve]]:
        wanted: dict[int, list[Curve]] = {}
        for curve in self.curves[kernel]:
            for m in plan(curve):
                if m not in curve.taken:
                    wanted.setdefault(m, []).append(curve)
        return wanted

    def _refused(self, kernel: Kernel, plan: Plan) -> bool:
        """Would what is wanted next be refused without asking?"""
        points = [curve.point(m) for m, mine in self._wanted(kernel, plan).items() for curve in mine]
        return bool(points) and all(self.homes[kernel.runtime].refusal(point) for point in points)

    def _start(self, runtimes: Iterable[str], deadline: float) -> None:
        starting = [self.homes[runtime] for runtime in runtimes if time.monotonic() < deadline]
        for home in starting:
            home.begin_import()
        for home in starting:
            home.end_import(deadline)

    def _weight(self, kernel: Kernel) -> int:
        return START_POINTS + sum(len({*curve.ms, *curve.extra} - set(curve.taken)) for curve in self.curves[kernel])

    def _visit(self, kernel: Kernel, plan: Plan, end: float) -> None:
        """Times a kernel, its (N, K) in turns, until nothing is wanted or its time is up; refusals cost none."""
        home = self.homes[kernel.runtime]
        while wanted := self._wanted(kernel, plan):
            if time.monotonic() >= end and not self._refused(kernel, plan):
                return
            m = min(wanted)
            points = [curve.point(m) for curve in wanted[m]]
            self._say(points)
            for curve, timing in zip(wanted[m], home.take(points, end), strict=True):
                curve.taken[m] = timing
            self._recall(kernel, plan)

    def _say(self, points: Sequence[Point]) -> None:
        if self.progress is None:
            return
        curves = [curve for mine in self.curves.values() for curve in mine]
        done = sum(len(curve.taken) for curve in curves)
        total = max(done + len(points), sum(len(curve.ms) + len(curve.extra) for curve in curves))
        for place, point in enumerate(points):
            self.progress(done + place, total, f"{point.kernel.name} {point.shape.n}x{point.shape.k} M={point.m}")
