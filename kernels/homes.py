"""Where a runtime's kernels are timed: its interpreter, a process of it, and the timings of earlier runs on disk.

A crash, a hang or an error of a kernel is a refusal with its reason. Points that take turns and fail are asked again one by one.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from quantadvisor.documents import CandidateFailed, Device, KernelTiming

from . import timing_cache
from .point import Point, module_of, refusal, request_of, roofline_share, timed_figure, turns
from .processes import DIED, ProbeProcess, crashed

MOST_DEATHS = 2
GRACE_S = 30.0
"""On a busy machine points that take turns are slow, which is no hang."""


class TimingPlace(Protocol):
    """Where points are timed, and what is kept of them."""

    device: Device
    process: ProbeProcess

    def refusal(self, point: Point) -> str | None: ...
    def kept(self, point: Point) -> KernelTiming | None: ...
    def begin_import(self) -> None: ...
    def end_import(self, end: float) -> None: ...
    def take(self, points: Sequence[Point], end: float) -> list[KernelTiming]: ...


class Home:
    """One runtime's process, started when it is needed, and how often each kernel ended it, and how first."""

    def __init__(self, runtime: str, device: Device, python: str = sys.executable, cache: Path | None = None) -> None:
        self.runtime, self.device, self.python, self.cache = runtime, device, python, cache
        self.process = ProbeProcess(device.threads, python=python)
        self._deaths: Counter[tuple[str, str]] = Counter()
        self._words: dict[tuple[str, str], str] = {}

    def __enter__(self) -> Self:
        self.process.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.process.__exit__(kind, value, trace)

    def refusal(self, point: Point) -> str | None:
        kernel = point.kernel.name, point.kernel.option
        if reason := refusal(point, self.device, self.python):
            return reason
        if (deaths := self._deaths[kernel]) >= MOST_DEATHS:
            return f"{DIED} {deaths} times, first: {self._words[kernel]}"
        return None

    def kept(self, point: Point) -> KernelTiming | None:
        """The timing of an earlier run, held against today's roofs, or its crash, which counts as one."""
        kept = timing_cache.load(place) if (place := self._place(point)) else None
        if kept is not None and kept.time_s is not None:
            return kept.model_copy(update={"roofline_share": roofline_share(self.device, point, kept.time_s.median)})
        if kept is not None and kept.refused is not None:
            self._died(point, kept.refused)
            return kept
        return None

    def begin_import(self) -> None:
        """Lets the process import its runtime; `end_import` waits for that. What fails there shows again when it is asked."""
        with suppress(CandidateFailed):
            self.process.send({"import": module_of(self.runtime)})

    def end_import(self, end: float) -> None:
        with suppress(CandidateFailed):
            self.process.receive("its import", _patience(end))

    def take(self, points: Sequence[Point], end: float) -> list[KernelTiming]:
        """Timings or refusals of points of one kernel and one M; an answer is waited for a little beyond `end`."""
        taken = {point: point.timing(refused=reason) for point in points if (reason := self.refusal(point))}
        for group in turns([point for point in points if point not in taken]):
            taken |= self._asked(group, end)
        return [taken[point] for point in points]

    def _asked(self, points: list[Point], end: float) -> dict[Point, KernelTiming]:
        answer: dict[str, Any] = {}
        failed = False
        try:
            answer = self.process.ask(request_of(points, self.device), _patience(end))
            reason = answer.get("refused")
        except CandidateFailed as error:
            reason, failed = str(error), True
        if not reason:
            answers = zip(points, answer["timings"], strict=True)
            return {point: self._stored(point, self._timing(point, one)) for point, one in answers}
        if len(points) > 1 and time.monotonic() < end:
            return {point: timing for point in points for timing in self.take([point], end)}
        if failed:
            self._died(points[0], reason)
        refused = {point: point.timing(refused=reason) for point in points}
        return {point: self._stored(point, refused[point]) for point in points} if len(points) == 1 else refused

    def _timing(self, point: Point, found: dict[str, Any]) -> KernelTiming:
        time_s = timed_figure(found["samples"], point)
        share = roofline_share(self.device, point, time_s.median)
        rounding = found.get("rounding_share")
        return point.timing(time_s=time_s, operator=str(found["operator"]), roofline_share=share, rounding_share=rounding)

    def _died(self, point: Point, words: str) -> None:
        kernel = point.kernel.name, point.kernel.option
        self._deaths[kernel] += 1
        self._words.setdefault(kernel, words)

    def _place(self, point: Point) -> Path | None:
        if self.cache is None:
            return None
        builds = timing_cache.builds(self.runtime, self.python)
        kernel, shape = point.kernel, point.shape
        touched = point.touched_bytes if point.cold else 0
        return timing_cache.place(self.cache, self.device, kernel.name, builds, kernel.option, point.m, shape.n, shape.k, touched)

    def _stored(self, point: Point, timing: KernelTiming) -> KernelTiming:
        if (place := self._place(point)) and (timing.time_s is not None or crashed(timing.refused or "")):
            timing.write(place)
        return timing


def _patience(end: float) -> float:
    """Seconds that an answer is waited for."""
    return max(0.0, end - time.monotonic()) + GRACE_S
