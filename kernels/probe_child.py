"""The process in which kernels of one runtime run: started by path, one JSON object per line in and out.

    in   {"probe", "m", "n", "k", "option", "threads", "copies", "flush_bytes", "rounds", "limit_s"}
    out  {"samples": [seconds per product], "operator": str} or {"refused": reason}

What libraries print goes to standard error. The end of standard input ends the process.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from quantadvisor.kernels.problem import Problem
from quantadvisor.kernels.registry import PROBES
from quantadvisor.kernels.timing import time_callable

TIGHT = 0.02


@lru_cache(maxsize=1)
def flusher(size: int) -> Callable[[], object] | None:
    """Reads `size` bytes, so that nothing else is left in the caches; None for 0. To make them costs more than many a timing."""
    if size <= 0:
        return None
    import numpy as np

    buffer = np.ones(size // 8, dtype=np.int64)
    return buffer.max


def time_probe(request: dict[str, Any]) -> dict[str, Any]:
    shape = Problem(**{name: request[name] for name in ("m", "n", "k", "option", "threads", "copies")})
    prepared = PROBES[request["probe"]].prepare(shape)
    samples = time_callable(
        prepared.call,
        rounds=request["rounds"],
        limit_s=request["limit_s"],
        tight=TIGHT,
        before_each=flusher(request["flush_bytes"]),
    )
    return {"samples": [sample / shape.copies for sample in samples], "operator": prepared.operator()}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = time_probe(json.loads(line))
        except (Exception, MemoryError) as error:
            text = str(error).strip() or type(error).__name__
            answer = {"refused": f"{type(error).__name__}: {text.splitlines()[0][:300]}"}
        print(json.dumps(answer), file=answers, flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
