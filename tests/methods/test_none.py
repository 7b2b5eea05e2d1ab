"""The null choice: the same weights under another name, or in another float type, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from quantadvisor.methods import none
from quantadvisor.methods.schemes import scheme


@pytest.mark.parametrize(("name", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
@pytest.mark.parametrize("runtime", ["torch", "vllm"])
def test_every_tensor_is_rounded_to_the_float_type_and_the_config_says_so(
    name: str, kind: torch.dtype, runtime: str, llama: Path, tokens: np.ndarray, tmp_path: Path
) -> None:
    assert none.apply(llama, scheme(name), runtime, tokens, tmp_path / "out") == ()
    exact, found = (load_file(folder / "model.safetensors") for folder in (llama, tmp_path / "out"))
    assert found.keys() == exact.keys()
    for tensor, value in exact.items():
        assert torch.equal(found[tensor], value.to(kind)), tensor
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == str(kind).removeprefix("torch.")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (llama / "tokenizer.json").read_bytes()


def test_fp32_is_the_same_files(llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    none.apply(llama, scheme("fp32"), "torch", tokens, tmp_path / "torch")
    none.apply(llama, scheme("fp32"), "onnxruntime", tokens, tmp_path / "onnx", base=base)
    for source, out in ((llama, "torch"), (base, "onnx")):
        names = {path.name for path in source.iterdir() if path.is_file()}
        assert {path.name for path in (tmp_path / out).iterdir()} == names
        assert all((tmp_path / out / name).samefile(source / name) for name in names)


def test_refusals(llama: Path) -> None:
    for name, runtime in (("fp32", "onnxruntime"), ("bf16", "torch"), ("fp16", "vllm"), ("bf16", "triton")):
        assert none.refuse(llama, scheme(name), runtime) is None
    assert "takes fp32" in str(none.refuse(llama, scheme("fp16"), "openvino"))
    assert "bf16 as an option" in str(none.refuse(llama, scheme("bf16"), "openvino"))
    assert "does not offer w8a8" in str(none.refuse(llama, scheme("w8a8"), "torch"))
