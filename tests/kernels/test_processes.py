"""A probing child that misbehaves is a reason, never a traceback and never a wait without end."""

from pathlib import Path

import pytest

from quantadvisor.documents import CandidateFailed
from quantadvisor.kernels.processes import ProbeProcess

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
