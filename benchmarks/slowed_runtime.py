"""ONNX Runtime whose decode is slower by a share of its own time: the planted regression of `make bench-gate`.

The real session runs every kernel; after each decode step this one burns time in proportion (`OPTION` 0.05: 5 %). What was
planted is written to a file of its own for each process: seconds of real decode, seconds burnt; two doubles.
Loaded by path in a worker: only the standard library at the top.
"""

from __future__ import annotations

import mmap
import os
import runpy
import struct
import time
from pathlib import Path
from typing import Any

PROFILING = Path(__file__).resolve().parent.parent / "profiling"
OPTION = "slowed"
TOTALS = struct.Struct("dd")


def real() -> Any:
    """As a worker loads it."""
    return runpy.run_path(str(PROFILING / "worker.py"))["load_file"](PROFILING / "runtimes" / "onnxruntime.py")


def warm_imports() -> None:
    real().warm_imports()


def open_session(path: str, options: tuple[str, ...], threads: int) -> SlowedSession:
    """`options`: slowed=SHARE=FOLDER."""
    _, share, folder = options[0].split("=", 2)
    return SlowedSession(real().open_session(path, options[1:], threads), float(share), Path(folder))


class SlowedSession:
    def __init__(self, session: Any, share: float, folder: Path) -> None:
        self.session, self.share = session, share
        self.decoding_s = self.burnt_s = 0.0
        file = folder / f"{os.getpid()}.totals"
        file.write_bytes(bytes(TOTALS.size))
        with file.open("r+b") as opened:
            self.totals = mmap.mmap(opened.fileno(), TOTALS.size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def decode(self, tokens: Any) -> Any:
        start = time.perf_counter()
        logits = self.session.decode(tokens)
        done = time.perf_counter()
        until = done + self.share * (done - start)
        while (now := time.perf_counter()) < until:
            pass
        self.decoding_s += done - start
        self.burnt_s += now - done
        TOTALS.pack_into(self.totals, 0, self.decoding_s, self.burnt_s)
        return logits


def planted(folder: Path) -> float:
    """Share by which decode was slowed, over all processes that wrote into `folder`."""
    totals = [TOTALS.unpack(path.read_bytes()) for path in folder.glob("*.totals")]
    decoding_s = sum(decoding for decoding, _ in totals)
    return sum(burnt for _, burnt in totals) / decoding_s if decoding_s else 0.0
