"""The runtimes, one file each. A worker loads the file by path; the parent asks it only `refuse`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol

FOLDER = Path(__file__).parent

RUNTIMES = {
    "torch": "torch.py",
    "onnxruntime": "onnxruntime.py",
    "onnxruntime-genai": "onnxruntime_genai.py",
    "openvino": "openvino.py",
    "llama.cpp": "llama_cpp.py",
    "vllm": "vllm.py",
    "triton": "triton.py",
}


class RuntimeModule(Protocol):
    @property
    def NAME(self) -> str: ...

    def refuse(self, path: str | None, options: tuple[str, ...], isa: tuple[str, ...]) -> str | None: ...


def runtime_file(name: str) -> Path:
    return FOLDER / RUNTIMES[name]


def runtime(name: str) -> RuntimeModule:
    module: RuntimeModule = importlib.import_module(f"quantadvisor.profiling.runtimes.{Path(RUNTIMES[name]).stem}")
    return module
