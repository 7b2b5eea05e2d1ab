"""A process that runs kernels for us, started when first asked and again after it died."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import quantadvisor
from quantadvisor.documents import CandidateFailed

CHILD = Path(__file__).with_name("probe_child.py")
DIED = "its process died"
"""Beginning of the reason where a kernel ended its process."""
PACKAGE_ROOT = Path(quantadvisor.__file__).resolve().parents[1]


class ProbeProcess:
    """One child, one runtime, in the interpreter that the runtime lives in."""

    def __init__(
        self,
        threads: int,
        child: Path = CHILD,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._threads = threads
        self._environment = dict(environment or {})
        self._python = python
        self._child = child
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in __exit__)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()
        self._log.close()

    @property
    def running(self) -> bool:
        return self._process is not None

    def ask(self, request: Mapping[str, object], timeout_s: float) -> dict[str, Any]:
        """The child's answer; `CandidateFailed` with the reason where it dies or does not answer in time."""
        self.send(request)
        return self.receive(str(request.get("probe")), timeout_s)

    def send(self, request: Mapping[str, object]) -> None:
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise self._died("before it was asked") from None

    def receive(self, what: str, timeout_s: float) -> dict[str, Any]:
        """The answer to what was sent, which `what` names."""
        process = self._process
        if process is None:
            raise CandidateFailed(f"{DIED} before it answered")
        assert process.stdout is not None
        deadline, answer = time.monotonic() + timeout_s, b""
        while not answer.endswith(b"\n"):
            if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self._stop()
                raise CandidateFailed(f"no answer within {timeout_s:.0f} s")
            piece = os.read(process.stdout.fileno(), 1 << 16)
            if not piece:
                raise self._died(f"at {what}")
            answer += piece
        try:
            found: dict[str, Any] = json.loads(answer)
        except ValueError:
            self._stop()
            raise CandidateFailed(f"its process printed garbage: {answer[:80]!r}") from None
        return found

    def _start(self) -> subprocess.Popen[bytes]:
        paths = [str(PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "OMP_NUM_THREADS": str(self._threads),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            **self._environment,
        }
        self._process = subprocess.Popen(
            [self._python, "-P", str(self._child)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
        )
        return self._process

    def _died(self, when: str) -> CandidateFailed:
        """What to say of a child that is gone: its signal or exit status, and its last words."""
        code = self._process.wait(10) if self._process else 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        self._log.seek(0)
        words = [line.strip() for line in self._log.read().splitlines() if line.strip()]
        self._stop()
        return CandidateFailed(f"{DIED} {when} ({how})" + (f": {words[-1][:200]}" if words else ""))

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue
