"""The ledger's bytes of weights against artifacts that the methods wrote: 1 % is the bar. (GPTQ, AWQ and others choose other
integers in the layout of round to nearest.)"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantadvisor.kernels.gpu_schemes import gpu_scheme
from quantadvisor.methods import dynamic_int8, gguf, rtn
from quantadvisor.methods.artifact import format_of
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.gpu_memory import weight_bytes
from quantadvisor.profiling.inventory import inventory_from_config
from quantadvisor.profiling.ledger import bytes_of_weights
from quantadvisor.profiling.shard import shard_of

from .conftest import write_llama

NOTHING = np.zeros((1, 8), np.int64)
SIZES = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3,
         "max_position_embeddings": 8192}  # fmt: skip
"""SmolLM2-135M's, two layers of it."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("smol") / "hf", **SIZES)


def in_safetensors(folder: Path) -> int:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "np") as file:
        return sum(np.prod(part.get_shape(), dtype=int) * BYTES[part.get_dtype()] for part in map(file.get_slice, file.keys()))


BYTES = {"BF16": 2, "I8": 1, "F32": 4}


def in_onnx(folder: Path) -> int:
    """Of the initializers, without the tables of rotary positions, which are no weights."""
    import onnx

    found = onnx.load(folder / "model.onnx").graph.initializer
    return sum(len(one.raw_data) for one in found if not one.name.endswith(("cos_cache", "sin_cache")))


def in_openvino(folder: Path) -> int:
    return (folder / "openvino_model.bin").stat().st_size


def in_gguf(folder: Path) -> int:
    from gguf import GGUFReader

    return sum(int(tensor.n_bytes) for tensor in GGUFReader(folder / "model.gguf").tensors)


READ: dict[str, Callable[[Path], int]] = {
    "vllm": in_safetensors, "onnxruntime": in_onnx, "openvino": in_openvino, "llama.cpp": in_gguf,
}  # fmt: skip


@pytest.fixture(scope="module")
def bases(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def base(runtime: str) -> Path:
        if runtime not in made:
            made[runtime] = tmp_path_factory.mktemp(runtime) / "base"
            format_of(runtime).export_base(model, made[runtime])
        return made[runtime]

    return base


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "name", "runtime"),
    [
        (dynamic_int8, "w8a8-bf16", "vllm"),
        (dynamic_int8, "w8a8", "onnxruntime"),
        (rtn, "w4-g32", "onnxruntime"),
        (rtn, "w4-g64", "onnxruntime"),
        (rtn, "w8-g64", "onnxruntime"),
        (rtn, "w4-g64", "openvino"),
        (rtn, "w8-g64", "openvino"),
        *((gguf, name, "llama.cpp") for name in ("q8_0", "q4_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k")),
    ],
)
def test_weights_on_disk(
    model: Path, bases: Callable[[str], Path], tmp_path: Path, method: object, name: str, runtime: str
) -> None:
    if runtime == "llama.cpp" and importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama.cpp's own rounding needs llama_cpp: make runtime-llama")
    made = scheme(name)
    method.apply(model, made, runtime, NOTHING, tmp_path / "out", base=bases(runtime))  # type: ignore[attr-defined]
    config = json.loads((model / "config.json").read_text())
    stored = READ[runtime](tmp_path / "out")
    assert bytes_of_weights(inventory_from_config(config), made) == pytest.approx(stored, rel=0.01)
    if runtime == "vllm":
        assert weight_bytes(shard_of(config), gpu_scheme("w8a8-int8")) == pytest.approx(stored, rel=0.01)
