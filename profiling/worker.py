"""The child process that runs one candidate: one JSON request per line in, one JSON reply per line out.

Started as `python -P worker.py` with the interpreter of the runtime's own environment, so it imports only the standard
library, numpy and (by path) one file of `profiling/runtimes/`. Arrays travel as `.npy` files.

Requests (`op`), each answered by `{"ok": true, ...}` or `{"ok": false, "error": "..."}`:

    imports   runtime_file                                -> (the runtime's libraries are imported)
    load      path, options, threads                      -> load_s, base_bytes, loaded_bytes; what was loaded before is closed
    generate  tokens [B, S], output_tokens                -> ttft_s, itl_s[output_tokens - 1], peak_bytes, generated [B][n]
    steady    tokens [1, S], batch, steps                 -> prefill_row_s, itl_s[steps], peak_bytes, rows_equal
    reference tokens [W, S], out                          -> log-probabilities float16 [W * S, V] written to `out`
    score     tokens [W, S], reference, chunk, out        -> nll, kl, top1 per token, float64 [3, W * S], written to `out`
    operators tokens [B, S], batch                        -> what the session says really ran
    bench     arguments                                   -> times of requests, of a load generator in the runtime's place
    close
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any


def status_bytes(field: str) -> int:
    """A `VmXXX` line of /proc/self/status, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def reset_peak() -> None:
    """Peak resident size (VmHWM) starts again from the current one."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def return_free_memory() -> None:
    """What the allocator holds of freed memory goes back to the kernel (glibc's malloc_trim; others keep it)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def load_runtime(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"runtime_{Path(path).stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Worker:
    """Holds the session of one candidate between requests."""

    def __init__(self) -> None:
        self.runtime: Any = None
        self.session: Any = None
        self.base_bytes = 0

    def imports(self, runtime_file: str) -> dict[str, Any]:
        self.runtime = load_runtime(runtime_file)
        self.runtime.warm_imports()
        return {}

    def load(self, path: str, options: list[str], threads: int) -> dict[str, Any]:
        if self.session is not None:
            self.session.close()
            self.session = None
        gc.collect()
        return_free_memory()
        self.base_bytes = self.base_bytes or status_bytes("VmRSS")
        reset_peak()
        start = time.perf_counter()
        self.session = self.runtime.open_session(path, tuple(options), threads)
        load_s = time.perf_counter() - start
        return {
            "load_s": load_s,
            "base_bytes": self.base_bytes,
            "loaded_bytes": self.used()[0],
        }

    def used(self) -> tuple[int, int]:
        """Bytes now and at most: of the session's allocator where it has one (a GPU's), else of the process above its imports."""
        own: tuple[int, int] | None = getattr(self.session, "allocated", lambda: None)()
        return own or (status_bytes("VmRSS") - self.base_bytes, status_bytes("VmHWM") - self.base_bytes)

    def generate(self, tokens: str, output_tokens: int) -> dict[str, Any]:
        """Greedy generation of one static batch; all rows arrive at t = 0."""
        import numpy as np

        prompt = np.load(tokens)
        start = time.perf_counter()
        logits = self.session.prefill(prompt, prompt.shape[1] + output_tokens)
        token = logits.argmax(-1)[:, None].astype(np.int64)
        ttft_s = time.perf_counter() - start
        generated, itl_s = [token], []
        for _ in range(output_tokens - 1):
            start = time.perf_counter()
            logits = self.session.decode(token)
            token = logits.argmax(-1)[:, None].astype(np.int64)
            itl_s.append(time.perf_counter() - start)
            generated.append(token)
        check_finite(logits)
        rows = np.concatenate(generated, 1).tolist()
        return {
            "ttft_s": ttft_s,
            "itl_s": itl_s,
            "generated": rows,
            "peak_bytes": self.used()[1],
        }

    def steady(self, tokens: str, batch: int, steps: int) -> dict[str, Any]:
        """Decode of `batch` rows whose caches are copies of one really prefilled row: recorded keys and values."""
        import numpy as np

        prompt = np.load(tokens)
        start = time.perf_counter()
        logits = self.session.prefill(prompt[:1], prompt.shape[1] + steps)
        prefill_row_s = time.perf_counter() - start
        self.session.fill(batch, prompt.shape[1] + steps)
        token = np.repeat(logits.argmax(-1)[:, None].astype(np.int64), batch, 0)
        itl_s = []
        for _ in range(steps):
            start = time.perf_counter()
            logits = self.session.decode(token)
            token = logits.argmax(-1)[:, None].astype(np.int64)
            itl_s.append(time.perf_counter() - start)
        check_finite(logits)
        equal = bool((token == token[:1]).all())
        return {"prefill_row_s": prefill_row_s, "itl_s": itl_s, "peak_bytes": self.used()[1], "rows_equal": equal}

    def reference(self, tokens: str, out: str) -> dict[str, Any]:
        import numpy as np

        windows = np.load(tokens)
        store = None
        at = 0
        for window in windows:
            for _, logits in blocks(self.session.score(window, None)):
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

        return {"phases": self.session.operators(np.load(tokens), batch)}

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
