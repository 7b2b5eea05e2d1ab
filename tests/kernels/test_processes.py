"""A child that misbehaves is a reason, never a traceback and never a wait without end; and nobody outlives us."""

import os
import sys
from pathlib import Path

import pytest

from quantadvisor.documents import CandidateFailed
from quantadvisor.kernels import processes
from quantadvisor.kernels.processes import ProbeProcess, run

from .test_guardian import alive, leaves_nobody

HOG = "kept = bytearray(b'x' * (400 << 20)); import time; time.sleep(600)"
READ = "import sys, time\nsys.stdin.readline()\n"


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("print('hello')", "printed garbage: b'hello"),
        ("print('{\"half\":', end='', flush=True); time.sleep(30)", "no answer within 1 s"),
        ("print('{\"half\":', end='', flush=True); sys.exit(3)", "died at w8a8 .exit status 3"),
        ("time.sleep(30)", "no answer within 1 s"),
        ("import os; os.kill(os.getpid(), 11)", "died at w8a8 .signal SIGSEGV"),
    ],
)
def test_a_child_that_misbehaves(behaviour: str, said: str, tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    child.write_text(READ + behaviour)
    with ProbeProcess(1, child) as process:
        with pytest.raises(CandidateFailed, match=said):
            process.ask({"probe": "w8a8"}, 1.0)
        assert not process.running


def test_an_answer_in_pieces(tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    child.write_text(READ + "print('{\"ok\": ', end='', flush=True); time.sleep(0.1); print('1}', flush=True)")
    with ProbeProcess(1, child) as process:
        assert process.ask({"probe": "w8a8"}, 5.0) == {"ok": 1}


@pytest.mark.parametrize("whose", ["its own", "of a process that it started"])
def test_too_much_memory_is_killed_by_our_limit(whose: str, tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    starts = f"import subprocess; subprocess.run([sys.executable, '-c', {HOG!r}])"
    child.write_text(READ + (HOG if whose == "its own" else starts))
    with ProbeProcess(1, child, memory_limit_bytes=300 << 20) as process:
        with pytest.raises(CandidateFailed, match=r"w8a8 used .* more than its limit of 0.29 GiB"):
            process.ask({"probe": "w8a8"}, 60.0)
        assert not process.running


def test_the_next_child_is_not_blamed_with_the_last_words_of_the_one_before(tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    child.write_text("import sys\nif 'first' in sys.stdin.readline(): print('bad tile', file=sys.stderr)\nsys.exit(3)")
    with ProbeProcess(1, child) as process:
        for asked, said in (("first", r"\(exit status 3\): bad tile$"), ("second", r"\(exit status 3\)$")):
            with pytest.raises(CandidateFailed, match=said):
                process.ask({"probe": asked}, 60.0)


def test_nobody_is_left_when_we_are_killed_while_a_kernel_runs(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(READ + f"open({str(tmp_path / 'started')!r}, 'w').close(); time.sleep(600)")
    code = (
        "import sys; from pathlib import Path; from quantadvisor.kernels.processes import ProbeProcess\n"
        "with ProbeProcess(1, Path(sys.argv[1])) as process: process.ask({'probe': 'w8a8'}, 600.0)"
    )
    leaves_nobody(code, tmp_path / "started", str(tmp_path / "child.py"))


def test_a_command_is_run_to_its_end() -> None:
    code = "import os, sys; print('out', os.getcwd()); print('no', file=sys.stderr); sys.exit(3)"
    assert run([sys.executable, "-c", code], os.environ, 60.0, Path("/")) == (3, "out /\n", "no\n")
    assert run(["/nowhere/program"], os.environ, 60.0).code == 127


@pytest.mark.parametrize(
    ("code", "said"), [("time.sleep(600)", "it did not end within 1 s"), (HOG, r"it used .* more than its limit of 0.29 GiB")]
)
def test_a_command_ends_at_its_limits(code: str, said: str, tmp_path: Path) -> None:
    """With what it started, where a shell is between."""
    tells = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); {code}"
    limit_s = 60.0 if code is HOG else 1.0
    with pytest.raises(CandidateFailed, match=said):
        run(["/bin/sh", "-c", f'{sys.executable} -c "{tells}"; true'], os.environ, limit_s, memory_limit_bytes=300 << 20)
    assert not alive(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("shared", [True, False])
def test_another_interpreter_finds_our_package_alone(shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed among others, ours is linked into a folder of its own; a checkout holds nothing else."""
    root = tmp_path / ("site-packages" if shared else "src")
    for name in ("quantadvisor", "numpy"):
        (root / name).mkdir(parents=True)
        (root / name / "__init__.py").write_text("")
    monkeypatch.setattr(processes, "PACKAGE_ROOT", root)
    theirs = processes.package_root("/another/bin/python")
    assert processes.package_root(sys.executable) == root
    assert (sorted(path.name for path in theirs.iterdir()) == ["quantadvisor"]) is shared
    assert (theirs / "quantadvisor").resolve() == root / "quantadvisor"
