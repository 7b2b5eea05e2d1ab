"""Takes the repository root off `sys.path`, where `python -m pytest` puts it: a folder there must shadow nobody. And what
the tests of several folders share.

The tests' own process computes on one thread: on tensors this small more threads wait for each other, which takes most of
the time of a busy machine (measured: test_dead_channels_never_give_nan[fpq] takes 7.4 s of CPU time on two, 0.4 on one).
Workers, builds and probes are told their number by what starts them. The variable is read when numpy and torch are loaded,
which is later.
"""

import os
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment whose only package is a stand-in of vLLM."""
    folder = tmp_path_factory.mktemp("fake") / "environment"
    venv.create(folder)
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "fake.pth").write_text(f"{Path(__file__).parent / 'profiling' / 'fake_vllm'}\n")
    return str(folder / "bin" / "python")
