"""Where llama.cpp's build here puts quantized weights, and whether its kernel there survives: one product of each type, asked
of a process of its own.

Without the option `plain` weights go to the layout of a fast kernel: `AMX` tiles where the CPU has them, repacked rows
(`CPU_REPACK`), else `CPU`. Builds made by gcc 12 crash at their first product on AMX tiles, whatever the type: the compiler
drops half of the tile configuration. `plain` avoids it, at the speed of plain rows.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from quantadvisor.documents import CandidateFailed, Scheme

from .processes import CHILD, ProbeProcess, crashed

RUNTIME = "llama.cpp"
TYPES = ("q8_0", "q4_0")
REQUEST = {
    "m": 32, "shapes": [{"n": 64, "k": 256, "copies": 1}], "option": "", "threads": 2,
    "cold": False, "flush_bytes": 0, "rounds": 1, "limit_s": 1.0,
}  # fmt: skip
"""Rows enough for AMX's tiles, which a single one does not use."""
LIMIT_S = 60.0
REBUILD = (
    "build it with a compiler other than gcc 12: CC=clang CXX=clang++ CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-cache-dir "
    "--force-reinstall --no-deps --no-binary llama-cpp-python llama-cpp-python"
)


@lru_cache
def layouts(python: str = sys.executable, child: Path = CHILD) -> Mapping[str, str]:
    """Type -> the buffer that holds its weights, or how its kernel ended the process; without a type that could not be asked."""
    found = {}
    with ProbeProcess(REQUEST["threads"], child, python) as process:  # type: ignore[arg-type]
        for kind in TYPES:
            try:
                answer = process.ask({"probe": f"{kind}_llama_cpp", **REQUEST}, LIMIT_S)
            except CandidateFailed as error:
                found[kind] = str(error)
                continue
            if "timings" in answer:
                found[kind] = str(answer["timings"][0]["operator"]).rpartition(" in ")[2]
    return found


def crash(scheme: Scheme, runtime: str, options: tuple[str, ...], isa: tuple[str, ...], python: str) -> str | None:
    """Why the scheme's weights cannot run in llama.cpp's AMX layout here, with the option that avoids it; None elsewhere: on a
    GPU (`cuda`) they are in none."""
    if runtime != RUNTIME or {"plain", "cuda"} & {*options} or scheme.weights is None or "amx_int8" not in isa:
        return None
    words = next((where for where in layouts(python).values() if crashed(where)), None)
    return words and f"its AMX path crashes in this build ({words}): the option plain avoids it, or {REBUILD}"
