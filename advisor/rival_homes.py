"""Other packages' kernels whose pins conflict with ours: each is timed where its package lives, by a process of that interpreter.

No model here can call such a product: it is told beside ours, and its own runtime (vLLM) has it. Never run on a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from quantadvisor.documents import CandidateFailed
from quantadvisor.kernels import rivals
from quantadvisor.kernels.processes import ProbeProcess
from quantadvisor.kernels.rivals import Rival
from quantadvisor.profiling import gpu_kernels_child
from quantadvisor.profiling.environments import interpreter_of

CHILD = Path(gpu_kernels_child.__file__)
LIMIT_S = 300.0
"""The first answer waits for the package's import."""


def home_of(rival: Rival, pythons: Mapping[str, str]) -> str:
    """The interpreter that its package lives in: the one asked for its runtime (`pythons`: by runtime), or ours for it."""
    return interpreter_of(rival.package, pythons.get(rival.package))


def apart(rival: Rival, pythons: Mapping[str, str] = {}) -> bool:
    """Does its package live in another interpreter than ours?"""
    return home_of(rival, pythons) != sys.executable


def missing(rival: Rival, pythons: Mapping[str, str] = {}) -> str | None:
    return rivals.missing(rival, home_of(rival, pythons))


class RivalHomes:
    """A process for each such package, started when it is first asked."""

    def __init__(self, threads: int, environment: Mapping[str, str] | None = None, pythons: Mapping[str, str] = {}) -> None:
        self._threads, self._environment, self._pythons = threads, environment, pythons
        self._processes: dict[str, ProbeProcess] = {}
        self._given_up: dict[str, str] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def ask(self, rival: Rival, kernel: str, sizes: tuple[int, int, int]) -> Mapping[str, Any]:
        """The answer of `gpu_kernels_child` on the rival's package beside the 16-bit product, at (M, N, K) of a kernel by its
        name in `advisor selfcheck`; {"refused": reason} where it has none. A package that ended its process is asked no more."""
        if reason := self._given_up.get(rival.package) or missing(rival, self._pythons):
            return {"refused": reason}
        if rival.package not in self._processes:
            made = ProbeProcess(self._threads, CHILD, home_of(rival, self._pythons), self._environment)
            self._processes[rival.package] = self._stack.enter_context(made)
        request = {"probe": kernel, "sizes": sizes, "rivals": True, "package": rival.package}
        try:
            return self._processes[rival.package].ask(request, LIMIT_S)
        except CandidateFailed as error:
            self._given_up[rival.package] = str(error)
            return {"refused": str(error)}
