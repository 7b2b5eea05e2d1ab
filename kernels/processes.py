"""Processes that work for us under a guardian and within limits: one that answers, and one that runs to its end.

The first is started when first asked, and again after it died. A crash, a time limit or a memory limit is `CandidateFailed` with
its reason.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import quantadvisor
from quantadvisor.documents import CandidateFailed

from .guardian import Guarded
from .machine import process_memory

CHILD = Path(__file__).with_name("probe_child.py")
DIED = "its process died"
"""Beginning of the reason where a kernel ended its process."""
SIGNAL = "(signal "
"""In that reason where the process did not end itself, as one does whose imports fail."""
PACKAGE_ROOT = Path(quantadvisor.__file__).resolve().parents[1]
SHARED_ROOTS = ("site-packages", "dist-packages")
LOOK_S = 0.1
"""Between two looks at a process's memory and time."""


def package_root(python: str) -> Path:
    """The folder from which an interpreter imports our package. Where it is installed among others, another interpreter would
    find those before its own: it gets a folder that holds ours alone."""
    if python == sys.executable or PACKAGE_ROOT.name not in SHARED_ROOTS:
        return PACKAGE_ROOT
    return Path(_alone(PACKAGE_ROOT).name)


@cache
def _alone(root: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder with nothing but a link to our package; it goes when this process ends."""
    folder = tempfile.TemporaryDirectory(prefix="quantadvisor-package-")
    (Path(folder.name) / quantadvisor.__name__).symlink_to(root / quantadvisor.__name__)
    return folder


class ProbeProcess:
    """One child, one runtime, in the interpreter that the runtime lives in."""

    def __init__(
        self,
        threads: int,
        child: Path = CHILD,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        memory_limit_bytes: int | None = None,
    ) -> None:
        """`memory_limit_bytes`: of the child with all that it starts; None: what a process may have of this machine."""
        self._threads = threads
        self._environment = dict(environment or {})
        self._python = python
        self._child = child
        self._memory_limit_bytes = memory_limit_bytes or process_memory()
        self._process: Guarded | None = None
        self._unread, self._asked = b"", 0.0
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        self._log.close()

    @property
    def running(self) -> bool:
        return self._process is not None

    def resident_bytes(self) -> int:
        """Of the child and all that it started; 0 where it does not run."""
        return self._process.resident_bytes() if self._process else 0

    def ask(self, request: Mapping[str, object], timeout_s: float) -> dict[str, Any]:
        """The child's answer; `CandidateFailed` with the reason where it dies, is late or takes too much memory."""
        self.send(request)
        return self.receive(str(request.get("probe")), timeout_s)

    def send(self, request: Mapping[str, object]) -> None:
        process = self._process or self._start()
        assert process.stdin is not None
        self._asked = time.monotonic()
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise self._died("before it was asked") from None

    def receive(self, what: str, timeout_s: float) -> dict[str, Any]:
        """The answer to what was sent, which `what` names."""
        deadline = time.monotonic() + timeout_s
        while (answer := self.look(what, deadline)) is None:
            continue
        return answer

    def look(self, what: str, deadline: float) -> dict[str, Any] | None:
        """The answer to what was sent, which `what` names, or None where it is not there within LOOK_S; CandidateFailed as `ask`,
        late from `deadline` (time.monotonic) on."""
        process = self._process
        if process is None:
            raise CandidateFailed(f"{DIED} before it answered")
        assert process.stdout is not None
        if select.select([process.stdout], [], [], min(LOOK_S, max(0.0, deadline - time.monotonic())))[0]:
            piece = os.read(process.stdout.fileno(), 1 << 16)
            if not piece:
                raise self._died(f"at {what}")
            self._unread += piece
            if self._unread.endswith(b"\n"):
                return self._answer()
        if reason := process.outgrown(self._memory_limit_bytes):
            self.stop()
            raise CandidateFailed(f"{what} {reason}")
        if time.monotonic() > deadline:
            self.stop()
            raise CandidateFailed(f"no answer within {deadline - self._asked:.0f} s")
        return None

    def stop(self) -> None:
        """End the child; what is asked next starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def _answer(self) -> dict[str, Any]:
        line, self._unread = self._unread, b""
        try:
            found: dict[str, Any] = json.loads(line)
        except ValueError:
            self.stop()
            raise CandidateFailed(f"its process printed garbage: {line[:80]!r}") from None
        return found

    def _start(self) -> Guarded:
        paths = [str(package_root(self._python)), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "OMP_NUM_THREADS": str(self._threads),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            **self._environment,
        }
        self._unread = b""
        self._log.seek(0)
        self._log.truncate()
        self._process = Guarded(
            [self._python, "-P", str(self._child)],
            environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        return self._process

    def _mend(self, last: str) -> str:
        """The command that brings a module which the child did not find."""
        missing = re.match(r"ModuleNotFoundError: No module named '(\w+)", last)
        return f": {self._python} -m pip install {missing[1]}" if missing else ""

    def _died(self, when: str) -> CandidateFailed:
        """What to say of a child that is gone: its signal or exit status, and its last words."""
        code = self._process.wait() if self._process else 0
        how = f"{SIGNAL}{signal.Signals(-code).name})" if code < 0 else f"(exit status {code})"
        words = [line.strip() for line in text_of(self._log).splitlines() if line.strip()]
        self.stop()
        return CandidateFailed(f"{DIED} {when} {how}" + (f": {words[-1][:200]}{self._mend(words[-1])}" if words else ""))


def crashed(words: str) -> bool:
    """Does the reason tell of code that crashed? Being killed (no memory) says nothing of it."""
    return f"{DIED} at" in words and SIGNAL in words and "SIGKILL" not in words


def text_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


class Ended(NamedTuple):
    """What came of a command: its exit code, negative for a signal, and what it printed."""

    code: int
    out: str
    errors: str


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    time_limit_s: float,
    cwd: Path | None = None,
    memory_limit_bytes: int | None = None,
) -> Ended:
    """The command, run to its end; `memory_limit_bytes` as of a ProbeProcess. CandidateFailed where a limit ended it."""
    limit, deadline = memory_limit_bytes or process_memory(), time.monotonic() + time_limit_s
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = Guarded(command, environment, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, cwd=cwd)
        try:
            while (code := process.poll()) is None:
                if reason := process.outgrown(limit):
                    raise CandidateFailed(f"it {reason}")
                if time.monotonic() > deadline:
                    raise CandidateFailed(f"it did not end within {time_limit_s:.0f} s")
                time.sleep(LOOK_S)
        finally:
            process.close()
        return Ended(code, text_of(out), text_of(errors))
