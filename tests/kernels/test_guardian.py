"""Nobody is left over: trees of real processes, ended by us, by their own end, or by SIGKILL of whoever started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quantadvisor.kernels.guardian import Guarded, children, descendants

TREE = """
import os, subprocess, sys, time
code = "import os, sys, time; os.setsid(); os.write(1, b'%d%c' % (os.getpid(), 10)); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", code])       # leaves the process group, as engines of servers may
middle = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]])"
subprocess.run([sys.executable, "-c", middle, code])  # an orphan at once
os.write(1, b'%d%c' % (os.getpid(), 10))
time.sleep(float(sys.argv[1]))
sys.exit(7)
"""
OWNER = """
import os, subprocess, sys, time
from quantadvisor.kernels.guardian import Guarded
running = Guarded([sys.executable, "-c", sys.argv[1], "600"], os.environ)
time.sleep(600)
"""
POOL = """
import sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from quantadvisor.kernels.guardian import die_with_starter
with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=die_with_starter) as pool:
    pool.submit(Path(sys.argv[1]).touch).result()
    pool.submit(time.sleep, 600).result()
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def leaves_nobody(code: str, started: Path, *arguments: str) -> None:
    """A program that is killed by SIGKILL once what it started has made the file `started` leaves none of its processes."""
    owner = subprocess.Popen([sys.executable, "-c", code, *arguments])
    deadline = time.monotonic() + 60
    while not started.exists() and owner.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    pids = list(descendants(owner.pid))
    owner.kill()
    owner.wait()
    assert started.exists() and len(pids) >= 2, "a guardian and its child"
    deadline = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, pids))


def tree(seconds: float) -> tuple[Guarded, list[int]]:
    running = Guarded([sys.executable, "-c", TREE, str(seconds)], os.environ, stdout=subprocess.PIPE)
    assert running.stdout
    return running, [int(running.stdout.readline()) for _ in range(3)]


def test_all_descendants_are_gone_when_it_is_closed() -> None:
    running, pids = tree(600)
    assert running.pid in pids
    assert all(map(alive, pids))
    running.close()
    assert not any(map(alive, pids))


def test_descendants_do_not_outlive_the_process_that_started_them() -> None:
    running, pids = tree(0.1)
    assert running.wait() == 7
    assert not any(map(alive, pids))
    running.close()


@pytest.mark.parametrize("stopped", [False, True])
def test_nobody_is_left_when_we_are_killed(stopped: bool) -> None:
    """Also a stopped one, as workers are while another is measured."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER, TREE], stdout=subprocess.PIPE)
    assert owner.stdout
    pids = [int(owner.stdout.readline()) for _ in range(3)]
    guardians = children(owner.pid)
    assert len(guardians) == 1
    for pid in pids if stopped else ():
        os.kill(pid, signal.SIGSTOP)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 5
    while any(map(alive, pids + guardians)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, pids + guardians))


def test_a_killed_guardian_takes_its_child_along() -> None:
    running = Guarded([sys.executable, "-c", "import time; time.sleep(600)"], os.environ)
    running._guardian.kill()
    running.close()
    deadline = time.monotonic() + 5
    while alive(running.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(running.pid)


def test_a_signal_is_told_as_one_and_a_missing_program_by_name(tmp_path: Path) -> None:
    running = Guarded([sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"], os.environ)
    assert running.wait() == -signal.SIGSEGV
    running.close()
    with open(tmp_path / "said", "w+b") as said:
        missing = Guarded(["/nowhere/program"], os.environ, stderr=said)
        assert (missing.pid, missing.wait()) == (0, 127)
        missing.close()
    assert "/nowhere/program cannot be started: No such file or directory" in (tmp_path / "said").read_text()


def test_a_pool_dies_with_who_made_it(tmp_path: Path) -> None:
    leaves_nobody(POOL, tmp_path / "started", str(tmp_path / "started"))
