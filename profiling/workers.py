"""The parent's side of the worker protocol: start, ask, pause, kill.

A worker that is not answering is stopped (SIGSTOP): idle thread pools of one runtime spin and would slow another
(measured: up to 3x). A crash, a time limit or a memory limit becomes `CandidateFailed` with its reason.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from quantadvisor.documents import CandidateFailed, Finite, OperatorCount
from quantadvisor.kernels.guardian import Guarded
from quantadvisor.kernels.machine import process_memory

from .environments import WORKER
from .memory import PROCESS
from .nvml import Summary

LONGEST_REPLY = 1 << 28
"""Bytes of one line."""


class Reply(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Loaded(Reply):
    """`memory_from`: who told the bytes, see profiling/memory.py."""

    load_s: Finite
    base_bytes: int
    loaded_bytes: int
    memory_from: str = PROCESS


class Generated(Reply):
    """`itl_s`: gaps between tokens, seconds; `generated`: [batch][output_tokens]."""

    ttft_s: Finite
    itl_s: list[Finite]
    generated: list[list[int]]
    peak_bytes: int
    memory_from: str = PROCESS
    gpu: Summary | None = None
    """What the GPU did meanwhile; None on a CPU."""


class Spent(Reply):
    """Energy of a part of a request: joules of the CPU packages (RAPL), and what the GPU did; None where it cannot be read."""

    cpu_j: Finite | None = None
    gpu: Summary | None = None


class Steady(Reply):
    """`prefill_row`: of the prefill of the one row; `decode`: of the steps after the first, which warms up."""

    prefill_row_s: Finite
    itl_s: list[Finite]
    peak_bytes: int
    rows_equal: bool
    prefill_row: Spent = Spent()
    decode: Spent = Spent()
    memory_from: str = PROCESS
    gpu: Summary | None = None


class Chunked(Reply):
    seconds: Finite


class Observed(Reply):
    """One phase as docs/architecture.md has it; parts of the time in seconds per forward pass."""

    model_config = ConfigDict(extra="allow")

    operators: list[OperatorCount]
    linears: int
    quantized_linears: int
    wall_s: Finite
    walls_s: list[Finite] = []
    linears_s: Finite
    attention_s: Finite
    cache_s: Finite
    other_s: Finite
    cache: str = ""
    notes: list[str]
    gpu: Summary | None = None
    """What the GPU did while both phases were looked at."""


class Phases(Reply):
    prefill: Observed
    decode: Observed


ReplyKind = TypeVar("ReplyKind", bound=Reply)


class Allowance:
    """The seconds that one candidate may keep us waiting in all, whatever is asked of how many of its processes. `mend`: what
    gives it more."""

    def __init__(self, seconds: float = math.inf, mend: str = "") -> None:
        self.seconds, self.mend, self.left_s = seconds, mend, seconds

    @contextmanager
    def spending(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.left_s -= time.monotonic() - began

    def over(self, what: str) -> str:
        """What to say of `what`, which they were not enough for."""
        return f"{what} was not done when the {self.seconds:.0f} s of one candidate were over; {self.mend}"


class RunningWorker:
    """One child process for one candidate. Made: it starts and imports its runtime. Entered (a context manager): it
    loads the artifact. Left: the process ends."""

    def __init__(
        self,
        runtime_file: Path,
        artifact: Path,
        options: tuple[str, ...],
        threads: int,
        *,
        python: str = sys.executable,
        time_limit_s: float = 300.0,
        allowance: Allowance | None = None,
        memory_limit_bytes: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`time_limit_s`: of one request; `allowance`: of all that its candidate is asked (None: as much as it takes);
        `memory_limit_bytes`: of the process with all that it starts (None: what one may have of this machine)."""
        self.time_limit_s = time_limit_s
        self.allowance = allowance or Allowance()
        self.memory_limit_bytes = memory_limit_bytes or process_memory()
        self._folder = tempfile.TemporaryDirectory(prefix="quantadvisor-")
        self._log = open(Path(self._folder.name) / "stderr", "w+b")  # noqa: SIM115 (closed in close)
        self._process = Guarded(
            [python, "-P", str(WORKER)],
            worker_environment(threads) | dict(environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self._unread = b""
        self._arrays = 0
        self._load: dict[str, Any] = {"path": str(artifact), "options": options, "threads": threads}
        self._ready = False
        with suppress(CandidateFailed):  # of a worker that is gone already `ready` tells the reason
            self._send("imports", runtime_file=str(runtime_file))

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self) -> None:
        """Wait until the runtime is imported."""
        if not self._ready:
            self._ready = True
            self._answer("imports")

    def __enter__(self) -> Self:
        try:
            self.ready()
            self.loaded = self.load(**self._load)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def load(self, path: str, options: tuple[str, ...], threads: int) -> Loaded:
        """Load an artifact; one that the worker held goes. Peaks are counted above what was there before the first."""
        return self._read(Loaded, self.ask("load", path=path, options=options, threads=threads))

    def generate(self, tokens: np.ndarray, output_tokens: int) -> Generated:
        """tokens: int64 [B, S]."""
        reply = self.ask("generate", tokens=self._array(tokens), output_tokens=output_tokens)
        return self._read(Generated, reply)

    def steady(self, tokens: np.ndarray, batch: int, steps: int, at: int = 0) -> Steady:
        """tokens: int64 [B, S], of which the first row is prefilled. `at`: tokens that each of `batch` rows holds before the
        first of `steps` decode steps; 0: S."""
        return self._read(Steady, self.ask("steady", tokens=self._array(tokens), batch=batch, steps=steps, at=at))

    def chunked(self, tokens: np.ndarray, chunk: int) -> float:
        """Seconds of a prefill of int64 [B, S], `chunk` tokens of every row at a time; of runtimes whose session has `append`."""
        return self._read(Chunked, self.ask("chunked", tokens=self._array(tokens), chunk=chunk)).seconds

    def write_reference(self, windows: np.ndarray, out: Path, chunk: int | None = None) -> None:
        """Log-probabilities of every position of int64 [W, S], float16 [W * S, V], to `out`; `chunk` tokens a pass, each of
        which reads the cache of those before (None: a window in one)."""
        self.ask("reference", tokens=self._array(windows), out=str(out), chunk=chunk)

    def score(self, windows: np.ndarray, reference: Path, chunk: int | None) -> np.ndarray:
        """float64 [3, W * S]: negative log-likelihood (NaN at a window's last token), KL, top-1 agreement."""
        out = Path(self._folder.name) / "score.npy"
        self.ask("score", tokens=self._array(windows), reference=str(reference), chunk=chunk, out=str(out))
        return np.asarray(np.load(out))

    def operators(self, tokens: np.ndarray, batch: int | None = None) -> dict[str, Any]:
        """Of a prefill and of a decode step: what `Observed` holds."""
        phases = self.ask("operators", tokens=self._array(tokens), batch=batch).get("phases")
        return self._read(Phases, phases).model_dump()

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """One request and its reply; raises CandidateFailed on an error, a crash, a hang or too much memory."""
        self._send(op, **fields)
        return self._answer(op)

    def _send(self, op: str, **fields: Any) -> None:
        assert self._process.stdin
        self._process.signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps({"op": op, **fields}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise CandidateFailed(self._post_mortem()) from None

    def _answer(self, op: str) -> dict[str, Any]:
        with self.allowance.spending():
            line = self._await(op)
        self._process.signal(signal.SIGSTOP)
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict) or "ok" not in reply:
            raise CandidateFailed(f"the worker printed garbage: {line[:80]!r}")
        if not reply.pop("ok"):
            raise CandidateFailed(str(reply.get("error", "no reason given")))
        return reply

    def close(self) -> None:
        self._process.close()
        self._log.close()
        self._folder.cleanup()

    def _await(self, op: str) -> bytes:
        """The next line of the worker; what follows it is kept for the next time."""
        assert self._process.stdout
        began, left_s = time.monotonic(), self.allowance.left_s
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            waited_s = time.monotonic() - began
            if waited_s > min(self.time_limit_s, left_s):
                self._process.signal(signal.SIGKILL)  # it would disturb whoever is measured next
                raise CandidateFailed(self._late(op, waited_s > left_s))
            if select.select([descriptor], [], [], 0.1)[0]:
                piece = os.read(descriptor, 1 << 16)
                if not piece:
                    raise CandidateFailed(self._post_mortem())
                self._unread += piece
                if len(self._unread) > LONGEST_REPLY:
                    raise CandidateFailed(f"the worker printed garbage: {self._unread[:80]!r}")
            self._check_memory(op)
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _late(self, op: str, for_good: bool) -> str:
        return self.allowance.over(op) if for_good else f"no answer to {op} within {self.time_limit_s:.0f} s"

    def _check_memory(self, op: str) -> None:
        if reason := self._process.outgrown(self.memory_limit_bytes):
            raise CandidateFailed(f"{op} {reason}")

    def _post_mortem(self) -> str:
        code = self._process.wait()
        self._log.flush()
        self._log.seek(0)
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        died = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"the worker died ({died})" + (f": {lines[-1][:300]}" if lines else "")

    def _array(self, array: np.ndarray) -> str:
        self._arrays += 1
        path = Path(self._folder.name) / f"array{self._arrays % 2}.npy"
        np.save(path, np.ascontiguousarray(array, dtype=np.int64))
        return str(path)

    @staticmethod
    def _read(kind: type[ReplyKind], reply: object) -> ReplyKind:
        try:
            return kind.model_validate(reply)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "it"
            raise CandidateFailed(f"the worker's reply is not valid: {where}: {first['msg']}") from None


def worker_environment(threads: int) -> dict[str, str]:
    """The environment of a worker: thread counts pinned alike for every runtime, no hub, no GPU surprise."""
    pinned = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    quiet = {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    return os.environ | pinned | quiet | {"PYTHONWARNINGS": "ignore"}
