"""Of which build a timing is: what is installed in an interpreter, asked there."""

import stat
import sys
from pathlib import Path

import pytest

from quantadvisor.documents import Device
from quantadvisor.kernels.timing_cache import builds, place, versions


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """An interpreter with llama-cpp-python 7 in it."""
    made = tmp_path / "site" / "llama_cpp_python-7.dist-info"
    made.mkdir(parents=True)
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 7\n")
    (made / "RECORD").write_text("llama_cpp/lib/libllama.so,sha256=old,1\n")
    return written(tmp_path / "python", f'PYTHONPATH={tmp_path / "site"} exec {sys.executable} "$@"')


def written(path: Path, command: str) -> Path:
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_another_build_of_the_same_version_is_another(other: Path, tmp_path: Path) -> None:
    assert versions("llama.cpp", str(other)) == {"llama-cpp-python": "7"}
    before = builds("llama.cpp", str(other))
    (tmp_path / "site/llama_cpp_python-7.dist-info/RECORD").write_text("llama_cpp/lib/libllama.so,sha256=new,1\n")
    rebuilt = written(tmp_path / "again", other.read_text().splitlines()[1])
    after = builds("llama.cpp", str(rebuilt))
    assert before != after and {one.split()[0] for made in (before, after) for one in made.values()} == {"7"}


@pytest.mark.parametrize("command", ["exec /bin/true", f'echo a banner; exec {sys.executable} "$@"', "exit 3"])
def test_what_prints_something_else_has_nothing_installed(tmp_path: Path, command: str) -> None:
    assert versions("torch", str(written(tmp_path / "python", command))) == {}


def test_ours_is_not_asked() -> None:
    assert versions("torch")["torch"].startswith("2.") and builds("torch")["torch"].startswith("2.")


def test_a_timing_of_cold_weights_is_of_how_many_were_touched(tmp_path: Path) -> None:
    """Of a shallow model's that stay in the cache it says nothing of a deep one's, and the other way round."""
    device = Device(name="x", isa=(), cores=2, threads=2, memory_bytes=1 << 34, fingerprint="x")
    found = {place(tmp_path, device, "w8_torch", {}, "", 1, 64, 64, touched) for touched in (0, 4096, 8192)}
    assert len(found) == 3
