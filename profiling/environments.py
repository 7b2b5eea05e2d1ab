"""Which interpreter a runtime lives in: this one, one that the project made beside it, or one that the user names.

A worker starts with any of them; only whether a runtime can run has to be asked inside.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from quantadvisor.documents import BadInput, CandidateFailed
from quantadvisor.kernels import processes
from quantadvisor.kernels.timing_cache import installed_in

from .runtimes.registry import RUNTIMES, runtime, runtime_file

WORKER = Path(__file__).with_name("worker.py")
APART = ("vllm",)
"""Runtimes whose pins conflict with ours: `make runtime-NAME` makes `.venv-NAME` beside our environment."""
LIMIT_S = 60.0
"""An answer of another environment."""
ASK = """
import json, runpy, sys
module = runpy.run_path(sys.argv[1])["load_file"](sys.argv[2])
path, options, isa = json.loads(sys.argv[3])
print(json.dumps(module.refuse(path, tuple(options), tuple(isa))))
"""


def interpreter_of(name: str, chosen: str | None = None) -> str:
    """The user's, else the one made for it where that is there, else ours."""
    apart = Path(f"{sys.prefix}-{name}") / "bin" / "python"
    return chosen or (str(apart) if name in APART and apart.exists() else sys.executable)


def check_runtime(where: str, name: str) -> None:
    """BadInput where no runtime is called so."""
    if name not in RUNTIMES:
        raise BadInput(where, f"unknown runtime {name!r}", f"known here: {', '.join(RUNTIMES)}")


def named_interpreter(where: str, python: str) -> str:
    """Where what the user named lies, from any folder (a virtual environment's link stays one), or BadInput."""
    found = shutil.which(python)
    if found is None:
        raise BadInput(where, f"{python} is not an executable", "give the path of a Python interpreter")
    return os.path.abspath(found)


def answer_of(python: str, program: str, *arguments: str) -> Any:
    """The JSON that `program` prints in that environment; CandidateFailed where it does not."""
    ended = processes.run([python, "-P", "-c", program, *arguments], os.environ, LIMIT_S)
    if ended.code:
        raise CandidateFailed(f"exit code {ended.code}")
    try:
        return json.loads(ended.out)
    except ValueError:
        raise CandidateFailed("what it prints is no JSON") from None


def versions_of(python: str, packages: tuple[str, ...]) -> dict[str, str]:
    """The versions of those packages that are installed in that environment; none where it does not answer."""
    return {name: version for name, (version, _) in installed_in(python, packages).items()}


def refusal(name: str, python: str, path: str | None, options: tuple[str, ...], isa: tuple[str, ...]) -> str | None:
    """Why the runtime cannot run in that environment; None where it can."""
    if python == sys.executable:
        return runtime(name).refuse(path, options, isa)
    return asked_there(name, python, path, options, isa)


@lru_cache
def asked_there(name: str, python: str, path: str | None, options: tuple[str, ...], isa: tuple[str, ...]) -> str | None:
    try:
        answer = answer_of(python, ASK, str(WORKER), str(runtime_file(name)), json.dumps([path, options, isa]))
    except CandidateFailed as error:
        return f"{python} does not run as a Python interpreter ({error})"
    return None if answer is None else f"in {python}: {answer}"
