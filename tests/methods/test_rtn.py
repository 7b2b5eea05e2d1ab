"""What RTN writes: in every group the nearest integers, on a grid that the group fills; lm_head in 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from quantadvisor.methods import awq, gptq, rtn
from quantadvisor.methods.affine import dequantize_groups
from quantadvisor.methods.formats import bridges
from quantadvisor.methods.formats.onnx_base import load_graph
from quantadvisor.methods.schemes import group_format, scheme


@pytest.mark.parametrize(("name", "form"), [("w4-g32", (4, 32, False)), ("w4-g64-sym", (4, 64, True)), ("w8-g64", (8, 64, True))])
def test_the_artifact_holds_the_nearest_integers(
    name: str, form: tuple[int, int, bool], llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path
) -> None:
    """Every weight within half a step of what its code stands for; the step is the group's range over the codes there are."""
    bits, group, symmetric = form
    assert rtn.apply(llama, scheme(name), "onnxruntime", tokens, tmp_path / "out", base=base) == ()
    found, written = bridges.read(tmp_path / "out")
    assert written == form
    exact = load_file(llama / "model.safetensors")
    assert {f"{linear}.weight" for linear in found} == {key for key in exact if key.endswith("_proj.weight")}
    for linear, one in found.items():
        w = exact[f"{linear}.weight"]
        groups = w.reshape(len(w), -1, group)
        low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
        step = np.maximum(-low, high) / (2 ** (bits - 1) - 1) if symmetric else (high - low) / (2**bits - 1)
        np.testing.assert_allclose(one.scales, step, rtol=1e-5)
        error = np.abs(dequantize_groups(*one, group) - w)
        assert (error <= np.repeat(step, group, 1) * 0.501).all(), linear


def test_golden_of_symmetric_4_bit() -> None:
    """Halves from -3.5 on: steps of max|w| / 7, codes about 8, ties to even; 0 is no code, and a group of zeros steps by 1."""
    w = np.zeros((2, 256), np.float32)
    w[0, :8] = (-3.5, -0.5, 0, 0.25, 0.75, 1.5, 3, 3.4)
    w[1, 128:131] = (14, -13, -1)
    codes, scales, zeros = rtn.integers(lambda: w, group_format(scheme("w4-g128-sym").weights))  # type: ignore[arg-type]
    np.testing.assert_array_equal(scales, [[0.5, 1], [1, 2]])
    assert (zeros == 8).all()
    np.testing.assert_array_equal(codes[0, :9], (1, 7, 8, 8, 10, 11, 14, 15, 8))
    np.testing.assert_array_equal(codes[1, 127:132], (8, 15, 2, 8, 8))
    assert codes.min() == 1


def test_rows_that_128_does_not_divide(llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    """Rows of 64: ONNX Runtime takes a short last group, and the note says so; the others refuse. Groups of 64 suit them all."""
    said = "groups of 128 do not divide hidden_size = 64"
    assert "is shorter" in rtn.apply(llama, scheme("w4-g128-sym"), "onnxruntime", tokens, tmp_path / "out", base=base)[0]
    found, written = bridges.read(tmp_path / "out")
    assert written == (4, 128, True)
    assert {one.scales.shape[1] for one in found.values()} == {1}
    for module in (rtn, gptq, awq):
        assert module.refuse(llama, scheme("w4-g128-sym"), "onnxruntime") is None
        assert module.refuse(llama, scheme("w4-g128-sym"), "openvino") == said
        assert module.refuse(llama, scheme("w4-g128-sym-bf16"), "vllm") == said
        assert (
            module.refuse(llama, scheme("w4-g64-sym-bf16"), "vllm")
            is None
            is module.refuse(llama, scheme("w4-g64-sym"), "openvino")
        )
        assert "is not for vllm" in str(module.refuse(llama, scheme("w4-g64-sym"), "vllm"))


def test_lm_head_takes_eight_bits(llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    rtn.apply(llama, scheme("w4-g32"), "onnxruntime", tokens, tmp_path / "out", base=base)
    bits = {
        node.name: next(entry.i for entry in node.attribute if entry.name == "bits")
        for node in load_graph(tmp_path / "out").graph.node
        if node.op_type == "MatMulNBits"
    }
    assert {name: width for name, width in bits.items() if width == 8}.keys() == {name for name in bits if "lm_head" in name}
    assert sorted(set(bits.values())) == [4, 8]
