"""One timing to take: what its process is asked, whether it can run at all, and what its figure means against the roofs.

Decode reads every weight of the model once a step. So at small M the (N, K) of a model take turns, each going through several
weights, and as many bytes more are read as empty the caches; where the whole model fits the last-level cache, they are not. At
large M arithmetic outweighs reading, and one weight does. Weights that do not fit in memory together take turns in parts.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quantadvisor.documents import Device, Figure, KernelTiming, LinearShape, Peaks, Scheme

from .problem import Problem, TimedKernel, matrix_bytes
from .timing import figure

COLD_M = 64
COLD_BYTES = 8 << 20
MOST_BYTES = 256 << 20
MOST_COPIES = 24
TURN_BYTES = 512 << 20
"""Weights that take turns together, in their own format."""
ROUNDS, WARM_ROUNDS = 9, 5
POINT_LIMIT_S = 0.06
INSTALL = {
    "torch": "pip install torch",
    "onnxruntime": "pip install 'quantadvisor[cpu]'",
    "openvino": "pip install 'quantadvisor[openvino]'",
    "llama.cpp": "make runtime-llama",
    "vllm": "make runtime-vllm",
}
MODULES = {"llama.cpp": "llama_cpp"}


def module_of(runtime: str) -> str:
    return MODULES.get(runtime, runtime)


@dataclass(frozen=True)
class Kernel:
    """A probe with one of its options; `cold`: the model's weights in its format exceed the last-level cache."""

    name: str
    probe: TimedKernel
    option: str
    cold: bool = True

    @property
    def runtime(self) -> str:
        return self.probe.runtime


@dataclass(frozen=True)
class Point:
    """One kernel at one (M, N, K)."""

    kernel: Kernel
    shape: LinearShape
    m: int

    @property
    def problem(self) -> Problem:
        return Problem(m=self.m, n=self.shape.n, k=self.shape.k, option=self.kernel.option)

    @property
    def stored_bytes(self) -> int:
        return weight_bytes(self.kernel.probe.scheme, self.shape)

    @property
    def cold(self) -> bool:
        return self.kernel.cold and self.m <= COLD_M

    @property
    def copies(self) -> int:
        """Different weights that one call goes through."""
        if self.m > COLD_M:
            return 1
        return max(1, min(-(-COLD_BYTES // self.stored_bytes), MOST_COPIES, self.shape.count))

    @property
    def touched_bytes(self) -> int:
        return self.copies * min(self.stored_bytes, MOST_BYTES)

    @property
    def rows(self) -> int:
        """Rows of the weight that are built: all, or as many as exceed every cache several times."""
        part = MOST_BYTES / self.stored_bytes
        return self.shape.n if part >= 1 else max(1024, int(self.shape.n * part) // 64 * 64)

    def timing(self, **known: object) -> KernelTiming:
        scheme, sizes = self.kernel.probe.scheme, {"m": self.m, "n": self.shape.n, "k": self.shape.k}
        given = {"probe": self.kernel.name, "scheme": scheme, "runtime": self.kernel.runtime, "option": self.kernel.option}
        return KernelTiming.model_validate(given | sizes | known)


def turns(points: Sequence[Point]) -> Iterator[list[Point]]:
    """Points of one kernel and one M, in groups whose weights fit in memory together."""
    group: list[Point] = []
    for point in points:
        if group and sum(one.touched_bytes for one in (*group, point)) > TURN_BYTES:
            yield group
            group = []
        group.append(point)
    if group:
        yield group


def request_of(points: Sequence[Point], device: Device) -> dict[str, object]:
    """What the process is asked of points that take turns: each finds its weights as cold as a decode step does."""
    first = points[0]
    others = 2 * device.last_level_cache_bytes - sum(point.touched_bytes for point in points)
    return {
        "probe": first.kernel.name,
        "option": first.kernel.option,
        "threads": device.threads,
        "m": first.m,
        "shapes": [{"n": point.rows, "k": point.shape.k, "copies": point.copies} for point in points],
        "cold": first.cold,
        "flush_bytes": max(0, others) if first.cold else 0,
        "rounds": ROUNDS if first.m <= COLD_M else WARM_ROUNDS,
        "limit_s": POINT_LIMIT_S * len(points),
    }


def timed_figure(samples: Sequence[float], point: Point) -> Figure:
    """The figure of one product; where only part of a huge weight's rows ran, scaled to all of them and so said."""
    name, rows = point.kernel.name, point.rows
    if rows == point.shape.n:
        return figure(samples, source=name)
    scaled = [sample * point.shape.n / rows for sample in samples]
    return figure(scaled, "modelled", f"{name} timed at {rows} of {point.shape.n} rows and scaled")


def refusal(point: Point, device: Device, python: str = sys.executable) -> str | None:
    """Why the kernel cannot run here at all; what lives in another interpreter is asked there, when it is timed."""
    probe = point.kernel.probe
    return probe.refuse(device, point.problem) or (_missing(probe.runtime) if python == sys.executable else None)


def _missing(runtime: str) -> str | None:
    if importlib.util.find_spec(module_of(runtime)) is None:
        return f"{runtime} is not installed: {INSTALL.get(runtime, f'pip install {runtime}')}"
    return None


def weight_bytes(scheme: Scheme, shape: LinearShape) -> int:
    """Stored bytes of one such weight in the scheme's own format."""
    plain = 4 if scheme.compute == "fp32" else 2
    return matrix_bytes(shape.n, shape.k, scheme.weights, plain, scale_bytes=plain)


def roofline_share(device: Device, point: Point, time_s: float) -> float | None:
    """Time that the roof allows (reading the weights once, or the arithmetic, the longer one) over the time taken."""
    probe, (n, k) = point.kernel.probe, (point.shape.n, point.shape.k)
    number = probe.arithmetic(point.kernel.option, device.isa)
    stored = 2 * n * k if number == "bf16" and probe.scheme.weights is None else point.stored_bytes
    roof = roof_s(device.peaks, number, stored, 2.0 * point.m * n * k)
    return None if roof is None else roof / time_s


WIDER = {"bf16": ("fp32",), "int8": ("fp32",)}
"""Number types that another's values widen to as they are read: where a CPU has no units for the narrow one, that is faster."""


def roof_s(peaks: Peaks | None, number: str, weight_bytes: int, operations: float) -> float | None:
    """Least seconds by the roofline model, in that number type or a wider one; None where its own peak was not measured."""
    if peaks is None or number not in peaks.flops_per_s:
        return None
    rates = [peaks.flops_per_s[kind].median for kind in (number, *WIDER.get(number, ())) if kind in peaks.flops_per_s]
    return max(weight_bytes / peaks.read_bytes_per_s.median, operations / max(rates))
