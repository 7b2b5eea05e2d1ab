"""Times kernels at a model's own (N, K) and M: each runtime in a process of its own, one after the other.

A crash, a hang or an error of a kernel is a refusal with its reason. Decode reads every weight of the model once a
step, so at small M a call goes through several different weights and the caches are emptied before it; where the
whole model fits the last-level cache, they are not. At large M arithmetic outweighs reading, and one weight does.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from quantadvisor.documents import CandidateFailed, Device, Figure, KernelTiming, LinearShape, Peaks, Scheme

from . import timing_cache
from .cliffs import next_ms
from .problem import KernelProbe, Problem, matrix_bytes
from .processes import DIED, ProbeProcess
from .registry import PROBES
from .timing import figure

COLD_M = 64
COLD_BYTES = 8 << 20
MOST_BYTES = 256 << 20
MOST_COPIES = 24
ROUNDS = 9
POINT_LIMIT_S = 0.12
MOST_DEATHS = 2
START_POINTS = 8.0
"""What starting a runtime takes, in points."""
NOT_REACHED = "not reached within budget"
INSTALL = {
    "torch": "pip install torch",
    "onnxruntime": "pip install 'quantadvisor[cpu]'",
    "openvino": "pip install 'quantadvisor[openvino]'",
    "llama.cpp": "make runtime-llama",
    "vllm": "make runtime-vllm",
}
MODULES = {"llama.cpp": "llama_cpp"}
Pythons = Mapping[str, str]
"""runtime → the interpreter that it lives in, where that is not ours"""

Progress = Callable[[int, int, str], None]
"""points done, points in all, what is being timed"""


@dataclass(frozen=True)
class Home:
    """Where a runtime's kernels run: its interpreter, a process of it, and how often each kernel ended that, and how first."""

    python: str
    process: ProbeProcess
    deaths: Counter[tuple[str, str]] = field(default_factory=Counter)
    words: dict[tuple[str, str], str] = field(default_factory=dict)

    def died(self, point: Point, words: str) -> None:
        self.deaths[point.name, point.option] += 1
        self.words.setdefault((point.name, point.option), words)


@dataclass(frozen=True)
class Point:
    """One timing to take."""

    name: str
    probe: KernelProbe
    shape: LinearShape
    option: str
    m: int
    cold: bool = True

    @property
    def problem(self) -> Problem:
        return Problem(m=self.m, n=self.shape.n, k=self.shape.k, option=self.option)


def probe_kernels(
    shapes: Sequence[LinearShape],
    ms: Sequence[int],
    device: Device,
    *,
    probes: Iterable[str] = tuple(PROBES),
    budget_s: float,
    extra_ms: Sequence[int] = (),
    progress: Progress | None = None,
    cache: Path | None = None,
    search_cliffs: bool = False,
    pythons: Pythons | None = None,
) -> tuple[KernelTiming, ...]:
    """Every probe at every (N, K) and every M of `ms`, then at `extra_ms` and about cliffs as far as the budget goes.

    The head runs on the last position of each sequence only, so it is timed at the smallest of `ms` alone. Points of
    `ms` that the budget did not reach come back refused; those of `extra_ms` do not come back. Where all of them were kept,
    so is what the search for cliffs found then: it is not taken further.
    """
    deadline = time.monotonic() + budget_s
    chosen = {name: PROBES[name] for name in probes}
    wanted = _points(chosen, shapes, ms, device, heads=True)
    extra = _points(chosen, shapes, [m for m in extra_ms if m not in ms], device, heads=False)
    taken: list[KernelTiming] = []
    with ExitStack() as stack:
        homes = {}
        for runtime in dict.fromkeys(point.probe.runtime for point in wanted):
            python = (pythons or {}).get(runtime, sys.executable)
            homes[runtime] = Home(python, stack.enter_context(ProbeProcess(device.threads, python=python)))
        for points, required in ((wanted, True), (extra, False)):
            taken += _sweep(points, homes, device, deadline, cache, progress, required=required)
        places = {_place(point): point for point in wanted} if search_cliffs else {}
        end = deadline if any(home.process.running for home in homes.values()) else 0.0
        while steps := _steps(taken, ms, places):
            more = _sweep(steps, homes, device, end, cache, progress, required=False)
            taken += more
            places = {place: point for place, point in places.items() if place in {_place(one) for one in more if one.time_s}}
    return tuple(taken)


Place = tuple[str, str, int, int]
"""probe, option, N, K: one curve over M."""


def _place(one: Point | KernelTiming) -> Place:
    if isinstance(one, Point):
        return one.name, one.option, one.shape.n, one.shape.k
    return one.probe, one.option, one.n, one.k


def _steps(taken: Sequence[KernelTiming], ms: Sequence[int], places: Mapping[Place, Point]) -> list[Point]:
    """The next points of the search for cliffs in the curves that are still searched."""
    curves: dict[Place, dict[int, float]] = {}
    for timing in taken:
        if timing.time_s is not None:
            curves.setdefault(_place(timing), {})[timing.m] = timing.time_s.median
    best: dict[tuple[int, int], dict[int, float]] = {}
    for (_, _, n, k), curve in curves.items():
        fastest = best.setdefault((n, k), {})
        fastest.update({m: min(seconds, fastest.get(m, seconds)) for m, seconds in curve.items()})
    return [
        replace(point, m=m) for place, point in places.items() for m in next_ms(curves.get(place, {}), ms, best.get(place[2:]))
    ]


def _points(
    probes: Mapping[str, KernelProbe], shapes: Sequence[LinearShape], ms: Sequence[int], device: Device, *, heads: bool
) -> list[Point]:
    """The smallest M of every probe first, so that a short budget leaves none without its decode."""
    made = []
    for m in sorted(set(ms)):
        for name, probe in probes.items():
            total = sum(one.count * weight_bytes(probe.scheme, one) for one in shapes)
            cold = total > device.last_level_cache_bytes
            for shape in shapes:
                if shape.lm_head and not (heads and m == min(ms)):
                    continue
                made += [Point(name, probe, shape, option, m, cold) for option in probe.options]
    return made


def _sweep(
    points: Sequence[Point],
    homes: Mapping[str, Home],
    device: Device,
    deadline: float,
    cache: Path | None,
    progress: Progress | None,
    *,
    required: bool,
) -> list[KernelTiming]:
    """The points, runtime after runtime; each has its part of the time that is left, by the points it has still to time."""
    taken: list[KernelTiming] = []
    kept = {point: timing for point in points if cache and (timing := _kept(point, homes[point.probe.runtime], device, cache))}
    runtimes = list(dict.fromkeys(point.probe.runtime for point in points))
    todo = Counter(
        one.probe.runtime for one in points if one not in kept and not refusal(one, device, homes[one.probe.runtime].python)
    )
    weights = {runtime: todo[runtime] and todo[runtime] + START_POINTS for runtime in runtimes}
    for place, runtime in enumerate(runtimes):
        mine = [point for point in points if point.probe.runtime == runtime]
        share = weights[runtime] / (sum(weights[name] for name in runtimes[place:]) or 1.0)
        end = time.monotonic() + max(0.0, deadline - time.monotonic()) * share
        for point in mine:
            if progress:
                progress(len(taken), len(points), f"{point.name} {point.shape.n}x{point.shape.k} M={point.m}")
            timing = kept.get(point) or _timed(point, homes[runtime], device, end)
            if cache and point not in kept and (timing.time_s is not None or crashed(timing)):
                timing.write(_place_on_disk(point, homes[runtime], device, cache))
            if required or timing.refused != NOT_REACHED:
                taken.append(timing)
    return taken


def _place_on_disk(point: Point, home: Home, device: Device, cache: Path) -> Path:
    versions = timing_cache.versions(point.probe.runtime, home.python)
    return timing_cache.place(cache, device, point.name, versions, point.option, point.m, point.shape.n, point.shape.k)


def _kept(point: Point, home: Home, device: Device, cache: Path) -> KernelTiming | None:
    """The timing of an earlier run, held against today's roofs, or its crash, which counts as one."""
    kept = timing_cache.load(_place_on_disk(point, home, device, cache))
    if kept is not None and kept.time_s is not None:
        return kept.model_copy(update={"roofline_share": roofline_share(device, point, kept.time_s.median)})
    if kept is not None and kept.refused is not None:
        home.died(point, kept.refused)
        return kept
    return None


def crashed(timing: KernelTiming) -> bool:
    """Did the kernel itself end its process? Being killed (no memory) says nothing of the kernel."""
    words = timing.refused or ""
    return words.startswith(f"{DIED} at") and "SIGKILL" not in words


def _timed(point: Point, home: Home, device: Device, end: float) -> KernelTiming:
    """Ask the runtime's process, or say why not."""
    base = KernelTiming(
        probe=point.name,
        scheme=point.probe.scheme,
        runtime=point.probe.runtime,
        option=point.option,
        m=point.m,
        n=point.shape.n,
        k=point.shape.k,
    )
    reason = refusal(point, device, home.python)
    kernel = point.name, point.option
    if home.deaths[kernel] >= MOST_DEATHS:
        reason = reason or f"{DIED} {home.deaths[kernel]} times, first: {home.words[kernel]}"
    left = end - time.monotonic()
    if reason or left <= 0:
        return base.model_copy(update={"refused": reason or NOT_REACHED})
    try:
        answer = home.process.ask(request_of(point, device), timeout_s=left + 10)
    except CandidateFailed as error:
        home.died(point, str(error))
        return base.model_copy(update={"refused": str(error)})
    if "refused" in answer:
        return base.model_copy(update={"refused": str(answer["refused"])})
    time_s = timed_figure(answer["samples"], point)
    share = roofline_share(device, point, time_s.median)
    return base.model_copy(update={"time_s": time_s, "operator": str(answer["operator"]), "roofline_share": share})


def timed_figure(samples: Sequence[float], point: Point) -> Figure:
    """The figure of one product; where only part of a huge weight's rows ran, scaled to all of them and so said."""
    rows = timed_rows(point)
    if rows == point.shape.n:
        return figure(samples, source=point.name)
    scaled = [sample * point.shape.n / rows for sample in samples]
    return figure(scaled, "modelled", f"{point.name} timed at {rows} of {point.shape.n} rows and scaled")


def timed_rows(point: Point) -> int:
    """Rows of the weight that are built: all, or as many as exceed every cache several times."""
    size = weight_bytes(point.probe.scheme, point.shape)
    return point.shape.n if size <= MOST_BYTES else max(1024, int(point.shape.n * MOST_BYTES / size) // 64 * 64)


def request_of(point: Point, device: Device) -> dict[str, object]:
    """What the process is asked: copies and flushing make weights as cold as a decode step finds them."""
    cold = point.cold and point.m <= COLD_M
    copies = 1
    if point.m <= COLD_M:
        size = weight_bytes(point.probe.scheme, point.shape)
        copies = max(1, min(-(-COLD_BYTES // size), MOST_COPIES, point.shape.count))
    return {
        "probe": point.name,
        "m": point.m,
        "n": timed_rows(point),
        "k": point.shape.k,
        "option": point.option,
        "threads": device.threads,
        "copies": copies,
        "flush_bytes": 2 * device.last_level_cache_bytes if cold else 0,
        "rounds": ROUNDS,
        "limit_s": POINT_LIMIT_S,
    }


def refusal(point: Point, device: Device, python: str = sys.executable) -> str | None:
    """Why the kernel cannot run here at all; what lives in another interpreter is asked there, when it is timed."""
    return point.probe.refuse(device, point.problem) or (_missing(point.probe.runtime) if python == sys.executable else None)


def _missing(runtime: str) -> str | None:
    if importlib.util.find_spec(MODULES.get(runtime, runtime)) is None:
        return f"{runtime} is not installed: {INSTALL.get(runtime, f'pip install {runtime}')}"
    return None


def weight_bytes(scheme: Scheme, shape: LinearShape) -> int:
    """Stored bytes of one such weight in the scheme's own format."""
    plain = 4 if scheme.compute == "fp32" else 2
    return matrix_bytes(shape.n, shape.k, scheme.weights, plain, scale_bytes=plain)


def roofline_share(device: Device, point: Point, time_s: float) -> float | None:
    """Time that the roof allows (reading the weights once, or the arithmetic, the longer one) over the time taken."""
    number = point.probe.arithmetic(point.option, device.isa)
    stored = weight_bytes(point.probe.scheme, point.shape)
    if number == "bf16" and point.probe.scheme.weights is None:
        stored = 2 * point.shape.n * point.shape.k
    roof = roof_s(device.peaks, number, stored, 2.0 * point.m * point.shape.n * point.shape.k)
    return None if roof is None else roof / time_s


def roof_s(peaks: Peaks | None, number: str, weight_bytes: int, operations: float) -> float | None:
    """Least seconds by the roofline model; None where that peak was not measured."""
    if peaks is None or number not in peaks.flops_per_s:
        return None
    return max(weight_bytes / peaks.read_bytes_per_s.median, operations / peaks.flops_per_s[number].median)
