"""What the tests of servers share."""

import venv
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An environment whose only package is a stand-in of vLLM."""
    folder = tmp_path_factory.mktemp("fake") / "environment"
    venv.create(folder)
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "fake.pth").write_text(f"{Path(__file__).with_name('fake_vllm')}\n")
    return str(folder / "bin" / "python")
