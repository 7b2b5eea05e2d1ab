"""A runtime in an environment of its own: who is asked whether it can run, and a worker that really runs there."""

from __future__ import annotations

import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest

from quantadvisor.profiling.environments import interpreter_of, refusal, versions_of
from quantadvisor.profiling.runtimes.registry import runtime_file
from quantadvisor.profiling.workers import RunningWorker

from ..methods.conftest import torch_logits, write_llama


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment without any package."""
    folder = tmp_path_factory.mktemp("bare") / "environment"
    venv.create(folder)
    return folder


def test_the_users_interpreter_is_taken_then_one_made_for_the_runtime_then_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert interpreter_of("vllm", "/somewhere/python") == "/somewhere/python"
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    assert interpreter_of("vllm") == sys.executable
    made = tmp_path / ".venv-vllm" / "bin" / "python"
    made.parent.mkdir(parents=True)
    made.touch()
    assert interpreter_of("vllm") == str(made)
    assert interpreter_of("openvino") == sys.executable


def test_an_environment_answers_for_itself(bare: Path) -> None:
    python = str(bare / "bin" / "python")
    here = refusal("torch", sys.executable, None, (), ())
    there = refusal("torch", python, None, (), ())
    assert here is None
    assert there == f"in {python}: torch is not installed: pip install torch"


def test_versions_are_those_of_the_environment(bare: Path) -> None:
    assert versions_of(sys.executable, ("numpy", "no-such-package")) == {"numpy": np.__version__}
    assert versions_of(str(bare / "bin" / "python"), ("numpy",)) == {}
    assert versions_of("/bin/true", ("numpy",)) == {}


def test_what_is_no_interpreter_is_a_reason() -> None:
    assert "does not run as a Python interpreter" in str(refusal("torch", "/bin/true", None, (), ()))
    assert "does not run as a Python interpreter" in str(refusal("torch", "/nowhere/python", None, (), ()))


def test_a_worker_runs_in_another_environment(bare: Path, tmp_path: Path) -> None:
    """The other environment sees our packages through a path file: same libraries, other interpreter and prefix."""
    site = next((bare / "lib").glob("python*/site-packages"))
    (site / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    folder, tokens = write_llama(tmp_path / "hf"), np.arange(3, 19, dtype=np.int64)
    with RunningWorker(runtime_file("torch"), folder, (), 2, python=str(bare / "bin" / "python")) as worker:
        executable = Path(f"/proc/{worker.pid}/cmdline").read_bytes().split(b"\0")[0].decode()
        made = worker.generate(tokens[None], 1)
    assert executable == str(bare / "bin" / "python")
    assert made.generated == [[int(torch_logits(folder, tokens)[-1].argmax())]]
