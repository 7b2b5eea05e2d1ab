"""Where a GPU's kernels are timed, for `advisor kernels` and a run: ours, torch's (cuBLAS) and those of installed packages.

One answer of the process (`profiling/gpu_kernels_child.py`) times all contenders of a kind at one (M, N, K), interleaved: what is
asked for one of them tells of the others. Packages in an interpreter of their own are asked there (`rival_homes.py`). Kept by
device and versions, as on a CPU. Never run on a GPU.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from quantadvisor.documents import CandidateFailed, Device, GpuState, KernelTiming, Scheme
from quantadvisor.kernels import timing_cache, triton_products
from quantadvisor.kernels.homes import MOST_DEATHS
from quantadvisor.kernels.point import Kernel, Point, roofline_share
from quantadvisor.kernels.probe import NOT_REACHED
from quantadvisor.kernels.problem import Problem
from quantadvisor.kernels.processes import DIED, ProbeProcess
from quantadvisor.kernels.rivals import Rival, rivals_of
from quantadvisor.kernels.timing import figure
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling import gpu_kernels_child
from quantadvisor.profiling.gpu_kernels_child import OURS, PLAIN
from quantadvisor.profiling.gpus import environment

from .candidates import no_arithmetic
from .first_contact import TRITON, cleared, products
from .rival_homes import RivalHomes, apart, home_of, missing

CHILD = Path(gpu_kernels_child.__file__)
POINT_LIMIT_S = 60.0
"""The first one compiles."""
BF16 = scheme("bf16")
CUBLAS = "cuBLAS"
ENOUGH_MS = 3
"""M at which a contender failed, and succeeded nowhere: it is asked no more. Some need more rows than decode has."""
NUMBERS = {"w8a8": "int8", "fp8": "fp8"}
"""Kind -> what multiplies, where that is not bfloat16."""


@dataclass(frozen=True)
class Contender:
    """A kernel of one kind: ours, torch's, or another package's (`reason`: why it cannot be had here; `rival`: where that
    package lives in an interpreter of its own)."""

    scheme: Scheme
    runtime: str
    number: str = "bf16"
    reason: str | None = None
    rival: Rival | None = None

    def refuse(self, device: Device, shape: Problem) -> str | None:
        return self.reason or no_arithmetic(self.scheme, device)

    def arithmetic(self, option: str, isa: Sequence[str]) -> str:
        return self.number


def contenders(
    kinds: Mapping[str, Scheme],
    refused: Mapping[str, str | None] = MappingProxyType({}),
    pythons: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Kernel]:
    """cuBLAS in 16 bits, and of each kind (a kernel's name in `advisor selfcheck` -> a scheme that takes it) ours, unless it is
    `refused`, and the packages', in the interpreters that were asked for (`pythons`: by runtime)."""
    yield Kernel(PLAIN, Contender(BF16, "torch"), CUBLAS)
    for kind, made in kinds.items():
        number = NUMBERS.get(kind, "bf16")
        yield Kernel(kind, Contender(made, TRITON, number, refused.get(kind)), OURS)
        for rival in rivals_of(kind):
            own = rival if apart(rival, pythons) else None
            yield Kernel(kind, Contender(made, rival.package, number, missing(rival, pythons), own), rival.name)


def all_contenders(device: Device, pythons: Mapping[str, str] = MappingProxyType({})) -> tuple[Kernel, ...]:
    """Of every quantized product that a candidate takes, ours as far as `advisor selfcheck` clears it on the device."""
    kinds = products()
    return tuple(contenders(kinds, {kind: cleared((kind,), device) for kind in kinds}, pythons))


class GpuHome:
    """The GPU's process, what it said, how often each kind of kernels ended it, and who could be timed at which M."""

    def __init__(self, device: Device, cache: Path, pythons: Mapping[str, str] = MappingProxyType({})) -> None:
        self.device, self.cache, self.pythons = device, cache, pythons
        self.process = ProbeProcess(device.threads, CHILD, environment=environment(device))
        self.rivals = RivalHomes(device.threads, environment(device), pythons)
        self._packages = triton_products.versions()
        self._said: dict[tuple[Rival | None, str, int, int, int], Mapping[str, Any]] = {}
        self._deaths: Counter[str] = Counter()
        self._failed: dict[Kernel, dict[int, str]] = {}
        self._timed: set[Kernel] = set()

    def __enter__(self) -> Self:
        self.process.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.process.__exit__(kind, value, trace)
        self.rivals.__exit__(kind, value, trace)

    def refusal(self, point: Point) -> str | None:
        kernel, deaths = point.kernel, self._deaths[point.kernel.name]
        if reason := kernel.probe.refuse(self.device, point.problem):
            return reason
        if deaths >= MOST_DEATHS:
            return f"{DIED} {deaths} times"
        failed = self._failed.get(kernel, {})
        return next(iter(failed.values())) if len(failed) >= ENOUGH_MS and kernel not in self._timed else None

    def kept(self, point: Point) -> KernelTiming | None:
        if point.kernel.probe.refuse(self.device, point.problem):
            return None
        kept = timing_cache.load(self._place(point))
        if kept is None or kept.time_s is None:
            return None
        return kept.model_copy(update={"roofline_share": roofline_share(self.device, point, kept.time_s.median)})

    def begin_import(self) -> None:
        """Nothing to win: there is one process, which imports when it is first asked."""

    def end_import(self, end: float) -> None:
        """As `begin_import`."""

    def take(self, points: Sequence[Point], end: float) -> list[KernelTiming]:
        return [self._taken(point, end) for point in points]

    def _taken(self, point: Point, end: float) -> KernelTiming:
        if reason := self.refusal(point):
            return point.timing(refused=reason)
        if kept := self.kept(point):
            return kept
        rival = rival_of(point.kernel)
        asked = (rival, point.kernel.name, point.m, point.shape.n, point.shape.k)
        if asked not in self._said:
            if time.monotonic() >= end:
                return point.timing(refused=NOT_REACHED)
            self._said[asked] = self._answer(*asked)
        return self._timing(point, self._said[asked])

    def _answer(self, rival: Rival | None, kind: str, m: int, n: int, k: int) -> Mapping[str, Any]:
        if rival is not None:
            return self.rivals.ask(rival, kind, (m, n, k))
        try:
            return self.process.ask({"probe": kind, "sizes": (m, n, k), "rivals": True}, POINT_LIMIT_S)
        except CandidateFailed as error:
            self._deaths[kind] += 1
            return {"refused": str(error)}

    def _timing(self, point: Point, said: Mapping[str, Any]) -> KernelTiming:
        name = PLAIN if point.kernel.option == CUBLAS else point.kernel.option
        samples = said.get("samples", {}).get(name)
        if not samples:
            reason = said.get("refused") or said.get("without", {}).get(name) or "not timed"
            self._failed.setdefault(point.kernel, {})[point.m] = reason
            return point.timing(refused=reason)
        self._timed.add(point.kernel)
        time_s = figure(samples, source="CUDA graph, L2 cache emptied before each call")
        made = point.timing(
            time_s=time_s,
            roofline_share=roofline_share(self.device, point, time_s.median),
            gpu=GpuState.model_validate(said["gpu"]) if said.get("gpu") else None,
        )
        made.write(self._place(point))
        return made

    def _place(self, point: Point) -> Path:
        kernel, shape, packages = point.kernel, point.shape, self._packages
        if rival := rival_of(kernel):
            packages = packages | timing_cache.versions(rival.package, home_of(rival, self.pythons))
        return timing_cache.place(
            self.cache, self.device, f"gpu-{kernel.name}", packages, kernel.option, point.m, shape.n, shape.k
        )


def rival_of(kernel: Kernel) -> Rival | None:
    """Whom to ask in another interpreter."""
    return kernel.probe.rival if isinstance(kernel.probe, Contender) else None
