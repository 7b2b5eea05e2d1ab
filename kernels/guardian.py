"""A child process under a guardian: whatever it starts, engines of a server too, ends with it and with us, however we end.

The guardian (this file, run as a program: standard library only) is the subreaper of its child's descendants
(PR_SET_CHILD_SUBREAPER, prctl(2)): an orphan among them becomes the guardian's own child, so none is lost. It holds one end
of a socket; when the other closes, which the kernel does even for a process that was killed by SIGKILL, or when the child
ends, it kills all that is left. Elsewhere than on Linux it ends the child's process group.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO

Stream = int | IO[bytes] | None
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


class Guarded:
    """A started process. `pid` is its own, 0 where it could not be started: then the guardian's last words say why."""

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        *,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        cwd: Path | None = None,
    ) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._guardian = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, str(theirs.fileno()), *command],
                stdin=stdin, stdout=stdout, stderr=stderr, env=env, cwd=cwd, pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
        self._line = ours
        self.stdin, self.stdout = self._guardian.stdin, self._guardian.stdout
        self.pid = int(ours.recv(32) or 0)

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._guardian.poll()

    def wait(self) -> int:
        return self._guardian.wait()

    def signal(self, number: signal.Signals) -> None:
        """To the process and what it started, unless that left its process group."""
        if self.pid and self.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def resident_bytes(self) -> int:
        """Of the process and all its descendants; pages that they share count for each."""
        return sum(map(resident_bytes, [self.pid, *descendants(self.pid)])) if self.pid else 0

    def outgrown(self, limit_bytes: int) -> str | None:
        """What to say of a process that uses more than that with its descendants: it is killed. None where it does not."""
        used = self.resident_bytes()
        if used <= limit_bytes:
            return None
        self.signal(signal.SIGKILL)
        return f"used {used / 2**30:.2f} GiB, more than its limit of {limit_bytes / 2**30:.2f} GiB"

    def close(self) -> None:
        """Everything is ended, and gone when this returns."""
        self._line.close()
        self._guardian.wait()
        for pipe in (self.stdin, self.stdout):
            if pipe:
                with suppress(BrokenPipeError):
                    pipe.close()


def children(pid: int) -> list[int]:
    """Processes that `pid` started, and orphans that were given to it; none where the system does not say."""
    found = []
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def descendants(pid: int) -> Iterator[int]:
    for child in children(pid):
        yield child
        yield from descendants(child)


def resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGKILL when the process `parent`, which started this one, ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def die_with_starter() -> None:
    """In a process that multiprocessing started (the initializer of a pool): `die_with_parent`."""
    from multiprocessing import parent_process  # most that load this file start none

    starter = parent_process()
    assert starter and starter.pid
    die_with_parent(starter.pid)


def guard(line: socket.socket, command: Sequence[str]) -> int:
    """Run `command` until it ends or `line` closes; then nothing of it is left. Its exit code."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        child = subprocess.Popen(command, start_new_session=True, preexec_fn=partial(die_with_parent, os.getpid()))
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}", file=sys.stderr)
        return 127
    line.sendall(str(child.pid).encode())
    ours = line.fileno()
    while child.poll() is None and ours not in (ready := select.select([ours, woken], [], [])[0]):
        if woken in ready:
            os.read(woken, 4096)
    code = child.poll()
    end_all(child.pid)
    return -signal.SIGKILL if code is None else code


def end_all(child: int) -> None:
    """Kill until nobody is left: a killed process leaves its own children to us."""
    while True:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        for pid in children(os.getpid()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def end_as(code: int) -> None:
    """Exit with `code`, or of the signal that it stands for, without a second core file."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError):  # SIGKILL has no handler to reset
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as our_line:
        our_code = guard(our_line, sys.argv[2:])
    end_as(our_code)
