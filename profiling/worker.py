"""The child process that runs one candidate: one JSON request per line in, one JSON reply per line out.

Started as `python -P worker.py` with the interpreter of the runtime's own environment, so it imports only the standard
library, numpy and (by path) one file of `profiling/runtimes/`. Arrays travel as `.npy` files.

Requests (`op`), each answered by `{"ok": true, ...}` or `{"ok": false, "error": "..."}`:

    imports   runtime_file                                -> (the runtime's libraries are imported)
    load      path, options, threads                      -> load_s, base_bytes, loaded_bytes, memory_from; closes what was loaded
    generate  tokens [B, S], output_tokens                -> ttft_s, itl_s[output_tokens - 1], peak_bytes, generated [B][n], ...
    steady    tokens [1, S], batch, steps                 -> prefill_row_s, itl_s[steps], peak_bytes, rows_equal, prefill_row,
                                                             decode (the energy of that, and of all steps but the first), ...
    chunked   tokens [B, S], chunk                        -> seconds of a prefill in chunks, each after the one before
    reference tokens [W, S], out                          -> log-probabilities float16 [W * S, V] written to `out`
    score     tokens [W, S], reference, chunk, out        -> nll, kl, top1 per token, float64 [3, W * S], written to `out`
    operators tokens [B, S], batch                        -> what the session says really ran
    bench     arguments                                   -> times of requests, of a load generator in the runtime's place
    close

`...`: `memory_from`, who told the bytes (profiling/memory.py), and `gpu`, what the GPU did meanwhile (profiling/nvml.py), null
on a CPU. A runtime with a GPU path has `on_gpu(options)`; its session waits for the GPU in every step, so times are real.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any


def load_file(path: str | Path) -> Any:
    """A module by its path. Its folder becomes a package, so that it may import its siblings (`from . import nvidia`): nothing
    of ours is on the path of an interpreter that is not ours."""
    file = Path(path).resolve()
    package = ModuleType(re.sub(r"\W", "_", str(file.parent)))
    package.__path__ = [str(file.parent)]
    sys.modules.setdefault(package.__name__, package)
    return importlib.import_module(f"{package.__name__}.{file.stem}")


energy, memory = (load_file(Path(__file__).with_name(name)) for name in ("energy.py", "memory.py"))


class Worker:
    """Holds the session of one candidate between requests."""

    def __init__(self) -> None:
        self.runtime: Any = None
        self.session: Any = None
        self.memory: Any = None

    def imports(self, runtime_file: str) -> dict[str, Any]:
        self.runtime = load_file(runtime_file)
        self.runtime.warm_imports()
        return {}

    def load(self, path: str, options: list[str], threads: int) -> dict[str, Any]:
        base_bytes = self.memory.base_bytes if self.memory else None
        if self.session is not None:
            self.session.close()
        self.session = self.memory = None
        on_gpu = getattr(self.runtime, "on_gpu", None)
        gpu = on_gpu is not None and on_gpu(tuple(options))
        self.memory = memory.Memory(load_file(Path(__file__).with_name("nvml.py")) if gpu else None, base_bytes)
        with self.memory.watching():
            start = time.perf_counter()
            self.session = self.runtime.open_session(path, tuple(options), threads)
            load_s = time.perf_counter() - start
        self.memory.opened(self.session)
        return {
            "load_s": load_s,
            "base_bytes": self.memory.base_bytes,
            "loaded_bytes": self.memory.used()[0],
            "memory_from": self.memory.source,
        }

    def generate(self, tokens: str, output_tokens: int) -> dict[str, Any]:
        """Greedy generation of one static batch; all rows arrive at t = 0."""
        import numpy as np

        prompt = np.load(tokens)
        with self.memory.watching():
            start = time.perf_counter()
            logits = self.session.prefill(prompt, prompt.shape[1] + output_tokens)
            token = logits.argmax(-1)[:, None].astype(np.int64)
            ttft_s = time.perf_counter() - start
            generated, itl_s = [token], []
            for _ in range(output_tokens - 1):
                logits, token, seconds = self.step(token)
                itl_s.append(seconds)
                generated.append(token)
        check_finite(logits)
        rows = np.concatenate(generated, 1).tolist()
        return {"ttft_s": ttft_s, "itl_s": itl_s, "generated": rows, **self.spent()}

    def steady(self, tokens: str, batch: int, steps: int, at: int = 0) -> dict[str, Any]:
        """Decode of `batch` rows whose caches are copies of one really prefilled row: recorded keys and values. `at`: the tokens
        that each holds before its first step, where that is more than the prompt, which is then repeated."""
        import numpy as np

        prompt = np.load(tokens)[:1]
        capacity = max(at, prompt.shape[1]) + steps
        with self.memory.watching():
            with self.metering() as prefill_row:
                start = time.perf_counter()
                logits = self.session.prefill(prompt, capacity)
                prefill_row_s = time.perf_counter() - start
            if at > prompt.shape[1]:
                logits = self.session.prefill(np.resize(prompt, (1, at)), capacity)
            self.session.fill(batch, capacity)
            logits, token, first_s = self.step(np.repeat(logits.argmax(-1)[:, None].astype(np.int64), batch, 0))
            itl_s = [first_s]
            with self.metering() as decode:
                for _ in range(steps - 1):
                    logits, token, seconds = self.step(token)
                    itl_s.append(seconds)
        check_finite(logits)
        equal = bool((token == token[:1]).all())
        energies = {"prefill_row": prefill_row, "decode": decode}
        return {"prefill_row_s": prefill_row_s, "itl_s": itl_s, "rows_equal": equal, **energies, **self.spent()}

    def step(self, token: Any) -> tuple[Any, Any, float]:
        """Logits and next token, int64 [B, 1], after that token of every row, and the seconds that it took."""
        import numpy as np

        start = time.perf_counter()
        logits = self.session.decode(token)
        following = logits.argmax(-1)[:, None].astype(np.int64)
        return logits, following, time.perf_counter() - start

    def metering(self) -> Any:
        return energy.metering(self.memory.nvml, self.memory.which)

    def chunked(self, tokens: str, chunk: int) -> dict[str, Any]:
        import numpy as np

        prompt = np.load(tokens)
        start = time.perf_counter()
        self.session.prefill(prompt[:, :chunk], prompt.shape[1])
        for at in range(chunk, prompt.shape[1], chunk):
            logits = self.session.append(prompt[:, at : at + chunk])
        seconds = time.perf_counter() - start
        check_finite(logits)
        return {"seconds": seconds}

    def spent(self) -> dict[str, Any]:
        """Memory so far, who told it, and what the GPU did during the request."""
        return {"peak_bytes": self.memory.used()[1], "memory_from": self.memory.source, "gpu": self.memory.record()}

    def reference(self, tokens: str, out: str, chunk: int | None) -> dict[str, Any]:
        import numpy as np

        windows = np.load(tokens)
        store = None
        at = 0
        for window in windows:
            for _, logits in blocks(self.session.score(window, chunk)):
                if store is None:
                    shape = (windows.size, logits.shape[1])
                    store = np.lib.format.open_memmap(out, "w+", np.float16, shape)
                store[at : at + len(logits)] = log_softmax(logits)
                at += len(logits)
        assert store is not None
        store.flush()
        return {"rows": at}

    def score(self, tokens: str, reference: str, chunk: int | None, out: str) -> dict[str, Any]:
        import numpy as np

        windows, expected = np.load(tokens), np.load(reference, mmap_mode="r")
        result = np.full((3, windows.size), np.nan)
        at = 0
        for window in windows:
            for i, logits in blocks(self.session.score(window, chunk)):
                check_finite(logits)
                got = log_softmax(logits)
                want = log_softmax(expected[at : at + len(got)].astype(np.float32))
                span = slice(at, at + len(got))
                following = window[i + 1 : i + 1 + len(got)]
                result[0, at : at + len(following)] = -got[np.arange(len(following)), following]
                result[1, span] = (np.exp(want) * (want - got)).sum(-1)
                result[2, span] = got.argmax(-1) == want.argmax(-1)
                at += len(got)
        if at != windows.size:
            raise ValueError(f"logits of {at} of {windows.size} positions: the artifact gives the last one's only")
        np.save(out, result)
        return {"rows": at}

    def operators(self, tokens: str, batch: int | None) -> dict[str, Any]:
        """With `batch`, one row is prefilled and decode is observed on that many copies of its cache."""
        import numpy as np

        with self.metering() as spent:
            phases = self.session.operators(np.load(tokens), batch)
        return {"phases": {phase: seen | {"gpu": spent["gpu"]} for phase, seen in phases.items()}}

    def bench(self, arguments: list[str]) -> dict[str, Any]:
        found: dict[str, Any] = self.runtime.bench(arguments)
        return found


BLOCK = 32
"""Rows of logits that are compared at a time: few enough to stay in the caches."""


def blocks(stream: Any) -> Any:
    """(offset in the window, at most BLOCK rows of logits) for the chunks of one window."""
    at = 0
    for logits in stream:
        for start in range(0, len(logits), BLOCK):
            yield at + start, logits[start : start + BLOCK]
        at += len(logits)


def log_softmax(logits: Any) -> Any:
    import numpy as np

    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def check_finite(logits: Any) -> None:
    import numpy as np

    if not np.isfinite(logits).all():
        raise FloatingPointError("logits hold NaN or infinity")


def serve(requests: Any, replies: Any) -> None:
    """Answer requests until `close` or end of file; an exception is an answer, not an end."""
    worker = Worker()
    for line in requests:
        request = json.loads(line)
        op = request.pop("op")
        if op == "close":
            break
        try:
            reply = {"ok": True} | getattr(worker, op)(**request)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            reply = {"ok": False, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]} ({where})"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
    if worker.session is not None:
        worker.session.close()


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a runtime prints must not disturb the protocol
    serve(sys.stdin, channel)
    os._exit(0)  # runtimes may hang in their own tear-down
