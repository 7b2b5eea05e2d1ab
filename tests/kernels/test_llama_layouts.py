"""Is a build that crashes in its AMX path found before a model runs, and left alone where there is no AMX?"""

import sys
from pathlib import Path

import pytest

from quantadvisor.kernels import llama_layouts
from quantadvisor.kernels.llama_layouts import TYPES, crash, layouts
from quantadvisor.methods.schemes import scheme

AMX = ("avx2", "amx_tile", "amx_int8")
PLACED = """
import json, sys
for line in sys.stdin:
    timing = {"samples": [1.0], "operator": "MUL_MAT " + json.loads(line)["probe"] + " in AMX"}
    print(json.dumps({"timings": [timing]}), flush=True)
"""
TILES_LOST = """
import os, signal, sys
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGSEGV)
"""
MISSING = 'import sys\nfor line in sys.stdin: print(\'{"refused": "ModuleNotFoundError: llama_cpp"}\', flush=True)'


def asked_of(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on every build is asked through this child."""
    child = folder / "child.py"
    child.write_text(text)
    monkeypatch.setattr(llama_layouts, "layouts", lambda python: layouts(python, child))


def test_a_build_that_dies_on_tiles_is_refused_and_the_option_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_of(TILES_LOST, tmp_path, monkeypatch)
    found = str(crash(scheme("q4_0"), "llama.cpp", ("fa",), AMX, sys.executable))
    assert "SIGSEGV" in found and "the option plain avoids it" in found and "gcc 12" in found
    place = ("llama.cpp", ("fa",), AMX, sys.executable)
    assert crash(scheme("bf16"), *place) is None  # floats go on no tiles
    assert crash(scheme("q4_0"), "llama.cpp", ("fa", "plain"), AMX, sys.executable) is None
    assert crash(scheme("q4_0"), "llama.cpp", ("cuda", "fa"), AMX, sys.executable) is None  # nor does what a GPU holds
    assert crash(scheme("w8-g64"), "onnxruntime", (), AMX, sys.executable) is None


def test_a_build_that_survives_and_one_that_is_not_there_are_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, found in ((PLACED, dict.fromkeys(TYPES, "AMX")), (MISSING, {})):
        asked_of(text, tmp_path, monkeypatch)
        layouts.cache_clear()
        assert llama_layouts.layouts(sys.executable) == found
        assert crash(scheme("q8_0"), "llama.cpp", (), AMX, sys.executable) is None


def test_without_amx_no_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_layouts, "layouts", lambda python: pytest.fail("asked a build that has no tiles"))
    assert crash(scheme("q8_0"), "llama.cpp", (), ("avx2", "avx512_vnni"), sys.executable) is None


@pytest.mark.runtime
def test_this_build_s_layouts() -> None:
    pytest.importorskip("llama_cpp", reason="llama.cpp is not here: make runtime-llama")
    found = layouts(sys.executable)
    assert set(found) == set(TYPES)
    assert all(where.startswith(("CPU", "AMX", "its process died")) for where in found.values())
