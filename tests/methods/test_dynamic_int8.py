"""Dynamic INT8: what a scale of its own is worth to every token, and who may write which scheme."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantadvisor.documents.errors import CandidateFailed
from quantadvisor.methods import dynamic_int8
from quantadvisor.methods.affine import fake_activations, fake_tokens
from quantadvisor.methods.schemes import scheme

from .conftest import operators


def test_one_loud_token_costs_the_others_nothing_where_each_has_its_own_scale() -> None:
    """One token of 32 a hundred times as loud: with one range for all, the others are left a few codes."""
    x = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    quiet = [float(np.square(rounding(x)[1:] - x[1:]).mean()) for rounding in (fake_tokens, fake_activations)]
    x[0] *= 100
    loud = [float(np.square(rounding(x)[1:] - x[1:]).mean()) for rounding in (fake_tokens, fake_activations)]
    assert loud[0] == quiet[0]
    assert loud[1] > 1000 * quiet[1]
    assert loud[1] > 1000 * loud[0]


@pytest.mark.parametrize(("name", "fused"), [("w8a8", 0), ("w8a8-tensor", 6)])
def test_per_tensor_is_onnxruntimes_own_operator_and_per_token_is_not(
    name: str, fused: int, llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path
) -> None:
    """DynamicQuantizeMatMul has one range for all tokens: what is per token must never be fused into it."""
    assert dynamic_int8.apply(llama, scheme(name), "onnxruntime", tokens, tmp_path / "out", base=base) == ()
    found = operators(tmp_path / "out", tmp_path)
    assert found.get("DynamicQuantizeMatMul", 0) == fused
    assert found["MatMulIntegerToFloat"] == 10 - fused


def test_refusals(llama: Path, tmp_path: Path) -> None:
    for name, runtime in (("w8a8", "onnxruntime"), ("w7a8", "onnxruntime-genai"), ("w8a8-bf16", "vllm"), ("w8a8-bf16", "triton")):
        assert dynamic_int8.refuse(llama, scheme(name), runtime) is None
    assert "is for vllm and triton only" in str(dynamic_int8.refuse(llama, scheme("w8a8"), "vllm"))
    assert "is for vllm and triton only" in str(dynamic_int8.refuse(llama, scheme("w8a8-bf16"), "onnxruntime"))
    assert "does not offer w8a8-static" in str(dynamic_int8.refuse(llama, scheme("w8a8-static"), "onnxruntime"))
    for runtime in ("onnxruntime", "vllm"):
        assert "INT4 activations" in str(dynamic_int8.refuse(llama, scheme("w4a4"), runtime))
    with pytest.raises(CandidateFailed, match="INT4 activations"):
        dynamic_int8.apply(llama, scheme("w4a4"), "onnxruntime", np.zeros((1, 8), np.int64), tmp_path / "out")
    assert "writes nothing for llama.cpp" in str(dynamic_int8.refuse(llama, scheme("w8a8"), "llama.cpp"))
