"""Every method by name. A module is imported when it is first asked for, so that the list costs nothing."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol, cast

from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.errors import BadInput
from quantadvisor.documents.scheme import Scheme

METHODS: dict[str, str] = {
    "none": "quantadvisor.methods.none",
    "rtn": "quantadvisor.methods.rtn",
    "gptq": "quantadvisor.methods.gptq",
    "awq": "quantadvisor.methods.awq",
    "obq": "quantadvisor.methods.obq",
    "kbit": "quantadvisor.methods.kbit",
    "fpq": "quantadvisor.methods.fpq",
    "mixed": "quantadvisor.methods.mixed",
    "dynamic_int8": "quantadvisor.methods.dynamic_int8",
    "static_int8": "quantadvisor.methods.static_int8",
    "smoothquant": "quantadvisor.methods.smoothquant",
    "smoothquant_gptq": "quantadvisor.methods.smoothquant_gptq",
    "gguf": "quantadvisor.methods.gguf",
    "gguf_imatrix": "quantadvisor.methods.gguf_imatrix",
    "kv_int8": "quantadvisor.methods.kv_int8",
    "kv_int4": "quantadvisor.methods.kv_int4",
    "turboquant": "quantadvisor.methods.turboquant",
    "kivi": "quantadvisor.methods.kivi",
    "kv_fp8": "quantadvisor.methods.kv_fp8",
    "llm_int8": "quantadvisor.methods.llm_int8",
    "zeroquant": "quantadvisor.methods.zeroquant",
    "fp8": "quantadvisor.methods.fp8",
    "fpq_activations": "quantadvisor.methods.fpq_activations",
    "rotation": "quantadvisor.methods.rotation",
    "lkd": "quantadvisor.methods.lkd",
    "qlora": "quantadvisor.methods.qlora",
    "qlora_merged": "quantadvisor.methods.qlora_merged",
    "gptq_lora": "quantadvisor.methods.gptq_lora",
    "llm_qat": "quantadvisor.methods.llm_qat",
}


class Method(Protocol):
    """What a module in this folder offers; see docs/architecture.md. Where COST begins with "training", `apply` also takes
    `train_s`, the seconds that it may train. That of a method which takes long has `say`, which is told how far it is. One
    that reads few samples by itself has `samples`, the user's number. One of `advisor/context.py:WEIGHING` takes `linear_s`."""

    NAME: str
    TARGET: Target
    COST: str
    """What applying takes, in words: passes over the weights or the calibration samples, operations, training."""

    def schemes(self) -> tuple[Scheme, ...]: ...

    def refuse(self, model_folder: Path, scheme: Scheme, runtime: str) -> str | None: ...

    def apply(self, model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
              base: Path | None = None) -> tuple[str, ...]: ...  # fmt: skip


def method(name: str) -> Method:
    if name not in METHODS:
        raise BadInput("method", f"{name!r} is unknown", f"known are {', '.join(METHODS)}")
    module: Any = importlib.import_module(METHODS[name])
    return cast(Method, module)


def trains(name: str) -> bool:
    """A method that trains says so first in its `COST`, and takes `train_s` and `say`."""
    return name in METHODS and method(name).COST.startswith("training")
