"""Takes the repository root off `sys.path`, where `python -m pytest` puts it: a folder there must shadow nobody. And what
the tests of several folders share."""

import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment whose only package is a stand-in of vLLM."""
    folder = tmp_path_factory.mktemp("fake") / "environment"
    venv.create(folder)
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "fake.pth").write_text(f"{Path(__file__).parent / 'profiling' / 'fake_vllm'}\n")
    return str(folder / "bin" / "python")
