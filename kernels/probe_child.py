"""The process in which kernels of one runtime run: started by path, one JSON object per line in and out.

    in   {"import": module}
    out  {}
    in   {"probe", "option", "threads", "m", "shapes": [{"n", "k", "copies"}], "cold", "flush_bytes", "rounds", "limit_s"}
    out  {"timings": [{"samples": [seconds per product], "operator": str, "rounding_share": float}, ...]} or {"refused": reason}

The shapes take turns; with `cold` each runs once a round, and `flush_bytes` more are read before each round. Weights stay in
place until another kernel is asked for. What libraries print goes to standard error. The end of standard input ends the process.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from quantadvisor.kernels import onnx_graph
from quantadvisor.kernels.answering import serve
from quantadvisor.kernels.problem import Prepared, Problem, inputs
from quantadvisor.kernels.registry import PROBES
from quantadvisor.kernels.timing import time_in_turns

TIGHT = 0.02
MOST_FLUSHING_THREADS = 8


class Flusher:
    """Reads bytes of a buffer that grows, with several threads: the making costs more than many a timing."""

    def __init__(self) -> None:
        self._buffer: Any = ()
        self._pool = ThreadPoolExecutor(MOST_FLUSHING_THREADS)

    def reading(self, size: int, threads: int) -> Callable[[], object] | None:
        """Reads `size` bytes, which leaves little else in the caches; None for 0."""
        import numpy as np

        if size <= 0:
            return None
        if len(self._buffer) < size // 8:
            self._buffer = np.ones(size // 8, dtype=np.int64)
        parts = np.array_split(self._buffer[: size // 8], min(threads, MOST_FLUSHING_THREADS))
        return lambda: list(self._pool.map(np.max, parts))


@dataclass
class Bench:
    """The kernel that was asked for last, with its weights at each (N, K, copies), and the operators that ran there."""

    kernel: tuple[str, str] = ("", "")
    prepared: dict[Problem, Prepared] = field(default_factory=dict)
    operators: dict[tuple[int, int], str] = field(default_factory=dict)
    flusher: Flusher = field(default_factory=Flusher)

    def turn_to(self, kernel: tuple[str, str]) -> None:
        if kernel != self.kernel:
            self.prepared.clear()
            self.operators.clear()
            gc.collect()
            self.kernel = kernel

    def at(self, problem: Problem) -> Prepared:
        if problem not in self.prepared:
            self.prepared[problem] = PROBES[self.kernel[0]].prepare(problem)
        return self.prepared[problem]

    def operator(self, problem: Problem) -> str:
        place = problem.n, problem.k
        if place not in self.operators:
            self.operators[place] = self.prepared[problem].operator()
        return self.operators[place]

    def rounding_share(self, problem: Problem, m: int) -> float | None:
        return self.prepared[problem].rounding_share(m) if "QuantizeLinear" in self.operator(problem) else None


def time_probe(request: dict[str, Any], bench: Bench) -> dict[str, Any]:
    bench.turn_to((request["probe"], request["option"]))
    problems = [
        Problem(m=1, option=request["option"], threads=request["threads"], **{name: shape[name] for name in ("n", "k", "copies")})
        for shape in request["shapes"]
    ]
    xs = {k: inputs(request["m"], k) for k in {problem.k for problem in problems}}
    bound = [bench.at(problem).bind(xs[problem.k]) for problem in problems]
    samples = time_in_turns(
        [one.call for one in bound],
        rounds=request["rounds"],
        limit_s=request["limit_s"],
        tight=TIGHT,
        once=request["cold"],
        before_round=bench.flusher.reading(request["flush_bytes"], request["threads"]),
    )
    return {
        "timings": [
            {
                "samples": [sample / problem.copies for sample in found],
                "operator": bench.operator(problem),
                "rounding_share": bench.rounding_share(problem, request["m"]),
            }
            for problem, found in zip(problems, samples, strict=True)
        ]
    }


def answer(request: dict[str, Any], bench: Bench) -> dict[str, Any]:
    if "import" in request:
        importlib.import_module(request["import"])
        return {}
    if PROBES[request["probe"]].runtime == "onnxruntime":
        onnx_graph.share_pool(request["threads"])
    return time_probe(request, bench)


def main() -> None:
    bench = Bench()
    serve(lambda request: answer(request, bench), "refused")


if __name__ == "__main__":
    main()
