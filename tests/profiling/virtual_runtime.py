"""A runtime with known TTFT and ITL and with planted faults, loaded by the real worker; the option names the fault."""

import os
import subprocess
import sys
import time
from pathlib import Path

NAME = "virtual"
TTFT_S, ITL_S, VOCABULARY = 0.05, 0.01, 32
GARBAGE = {
    "garbage": b"<html>\n",
    "list": b"[1, 2]\n",
    "deep": b"[" * 100_000 + b"\n",
    "bytes": b"\xff\xfe\n",
    "partial": b'{"ok": tr',
}
GRANDCHILD = "kept = bytearray(b'x' * (400 << 20)); import time; time.sleep(600)"


def channel():
    """The pipe to the parent, which the worker keeps under another number than 1."""
    pipes = {int(fd.name): os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}
    return next(fd for fd, kind in pipes.items() if fd > 2 and kind.startswith("pipe:"))


def refuse(path, options, isa):
    return None


def on_gpu(options):
    return "gpu" in options


def warm_imports():
    import numpy  # noqa: F401


def open_session(path, options, threads):
    if "no-load" in options:
        raise ValueError("this artifact is made for another runtime")
    return VirtualSession(options)


class VirtualSession:
    def __init__(self, options):
        self.options = options
        self.rows = 0

    def allocated(self):
        return (111, 222) if "allocator" in self.options else None

    def logits(self, rows):
        import numpy as np

        made = np.zeros((rows, VOCABULARY), np.float32)
        made[:, 7] = np.nan if "nan" in self.options else 5.0
        return made

    def prefill(self, tokens, capacity):
        time.sleep(TTFT_S)
        if "crash" in self.options:
            os.kill(os.getpid(), 11)
        if "grandchild" in self.options:
            subprocess.Popen([sys.executable, "-c", GRANDCHILD])
            time.sleep(600)
        for option, said in GARBAGE.items():
            if option in self.options:
                os.write(channel(), said)
                time.sleep(600 if option == "partial" else 0)
        if "hang" in self.options:
            time.sleep(600)
        if "hog" in self.options:
            self.kept = bytearray(os.urandom(1 << 20) * 600)
            time.sleep(600)
        self.rows = len(tokens)
        return self.logits(self.rows)

    def decode(self, tokens):
        time.sleep(ITL_S)
        return self.logits(len(tokens))

    def fill(self, batch, capacity):
        self.rows = batch

    def score(self, tokens, chunk):
        import numpy as np

        step = chunk or len(tokens)
        for at in range(0, len(tokens), step):
            rows = len(tokens[at : at + step])
            yield np.tile(np.arange(VOCABULARY, dtype=np.float32) / 10, (rows, 1))

    def operators(self, tokens, batch):
        wall_s = float("nan") if "nan-time" in self.options else ITL_S
        parts = {"linears_s": ITL_S, "attention_s": 0.0, "cache_s": 0.0, "other_s": 0.0}
        phase = {"operators": [], "linears": 1, "quantized_linears": 0, "wall_s": wall_s, "notes": [], **parts}
        return {} if "no-phases" in self.options else {"prefill": phase, "decode": phase}

    def close(self):
        pass
