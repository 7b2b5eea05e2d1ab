"""Each method end to end on the tiny model: what it offers, what it refuses, how close its artifact stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quantadvisor.documents.errors import BadInput
from quantadvisor.methods.registry import METHODS, method
from quantadvisor.methods.schemes import scheme

from .conftest import kl, run, torch_logits

ONNX_CASES = [
    ("none", "fp32", 1e-6), ("rtn", "w4-g32", 0.2), ("rtn", "w4-g64", 0.3), ("rtn", "w8-g64", 0.01),
    ("rtn", "w2-g64", 8), ("gptq", "w4-g64", 0.2), ("gptq", "w8-g64", 0.01), ("awq", "w4-g64", 0.2),
    ("mixed", "w4w8-g64", 0.2), ("mixed", "w4w8-g32", 0.2),
    ("dynamic_int8", "w8a8", 0.05), ("static_int8", "w8a8-static", 0.1),
    ("smoothquant", "w8a8", 0.02), ("smoothquant_gptq", "w8a8", 0.02), ("kv_int8", "fp32-kv8", 0.01),
]  # fmt: skip


@pytest.mark.parametrize(("name", "wanted", "budget"), ONNX_CASES)
def test_artifact_stays_close(
    name: str, wanted: str, budget: float, llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path
) -> None:
    module = method(name)
    assert module.refuse(llama, scheme(wanted), "onnxruntime") is None
    notes = module.apply(llama, scheme(wanted), "onnxruntime", tokens[:2], tmp_path / "out", base=base)
    assert isinstance(notes, tuple)
    exact = torch_logits(llama, tokens[3])
    assert -1e-9 < kl(exact, run(tmp_path / "out", tokens[3], chunk=8)) < budget
    np.testing.assert_allclose(
        run(tmp_path / "out", tokens[3], name="model.onnx")[0], run(tmp_path / "out", tokens[3])[-1], atol=0.2
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("name", "wanted", "budget"),
    [("rtn", "w8-g64", 0.02), ("mixed", "w4w8-g32", 0.2), ("smoothquant", "w8a8", 0.03), ("dynamic_int8", "w8a8", 0.05)],
)
def test_an_int8_cache_goes_on_top(
    name: str, wanted: str, budget: float, llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path
) -> None:
    method(name).apply(llama, scheme(wanted), "onnxruntime", tokens[:2], tmp_path / "weights", base=base)
    made = scheme(f"{wanted}-kv8")
    method("kv_int8").apply(llama, made, "onnxruntime", tokens[:2], tmp_path / "out", base=tmp_path / "weights")
    exact, alone = torch_logits(llama, tokens[3]), run(tmp_path / "weights", tokens[3], chunk=8)
    both = run(tmp_path / "out", tokens[3], chunk=8)
    assert 1e-9 < kl(exact, both) < budget
    assert kl(alone, both) > 1e-9


def test_the_base_is_exported_when_none_is_given(llama: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    method("rtn").apply(llama, scheme("w8-g64"), "onnxruntime-genai", tokens, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert kl(torch_logits(llama, tokens[0]), run(tmp_path / "out", tokens[0])) < 0.01


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_torch_folders(wanted: str, llama: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    method("none").apply(llama, scheme(wanted), "torch", tokens, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[wanted]
    assert kl(torch_logits(llama, tokens[0]), torch_logits(tmp_path / "out", tokens[0])) < 0.01


@pytest.mark.parametrize(
    ("name", "wanted", "runtime", "reason"),
    [
        ("none", "bf16", "onnxruntime", "torch, vllm, triton and llama.cpp"),
        ("rtn", "w4-g32", "torch", "is not for torch"),
        ("rtn", "w4-g64-kv8", "openvino", "does not offer w4-g64-kv8"),
        ("rtn", "w8a8", "onnxruntime", "does not offer w8a8"),
        ("dynamic_int8", "w8a8", "openvino", "writes nothing for openvino"),
        ("kv_int8", "w8-g64", "onnxruntime", "does not offer w8-g64"),
        ("mixed", "w4w8-g64", "openvino", "writes nothing for openvino"),
        ("rtn", "w3-g64", "onnxruntime", "onnxruntime has no kernel for 3-bit weights in groups; it has 2, 4, 8"),
        ("rtn", "w2-g64", "openvino", "openvino has no kernel for 2-bit"),
    ],
)
def test_refusals_name_the_reason(name: str, wanted: str, runtime: str, reason: str, llama: Path) -> None:
    assert reason in str(method(name).refuse(llama, scheme(wanted), runtime))


def test_groups_that_do_not_divide_are_refused_for_openvino(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 576, "intermediate_size": 100}')
    assert "intermediate_size = 100" in str(method("rtn").refuse(tmp_path, scheme("w4-g64"), "openvino"))


def test_every_method_is_one_file_and_has_a_test_of_the_same_stem() -> None:
    for name, module in METHODS.items():
        assert module == f"quantadvisor.methods.{name}"
        assert name == method(name).NAME
        assert (Path(__file__).parent / f"test_{name}.py").is_file(), name


def test_unknown_methods_list_the_known() -> None:
    with pytest.raises(BadInput, match="known are none, rtn"):
        method("hqq")


def test_importing_loads_no_framework() -> None:
    """One module after another in one process: the first that loads a framework is named."""
    names = [*METHODS.values(), "quantadvisor.methods.registry", "quantadvisor.methods.formats.onnx"]
    code = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    loaded = [m for m in ("torch", "onnx", "onnxruntime", "transformers") if m in sys.modules]
    assert not loaded, f"{name} loads {loaded}"
print(len(sys.argv[1:]))
"""
    source = Path(__file__).resolve().parents[2] / "src"
    command = [sys.executable, "-c", code, *names]
    done = subprocess.run(command, env={"PYTHONPATH": str(source)}, capture_output=True, text=True)
    assert done.stdout.strip() == str(len(names)), done.stderr
