"""What RTN writes: in every group the nearest integers, on a grid that the group fills; lm_head in 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from quantadvisor.methods import rtn
from quantadvisor.methods.affine import dequantize_groups
from quantadvisor.methods.formats import bridges
from quantadvisor.methods.formats.onnx_base import load_graph
from quantadvisor.methods.schemes import scheme


@pytest.mark.parametrize(("name", "form"), [("w4-g32", (4, 32, False)), ("w8-g64", (8, 64, True))])
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


def test_lm_head_takes_eight_bits(llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    rtn.apply(llama, scheme("w4-g32"), "onnxruntime", tokens, tmp_path / "out", base=base)
    bits = {
        node.name: next(entry.i for entry in node.attribute if entry.name == "bits")
        for node in load_graph(tmp_path / "out").graph.node
        if node.op_type == "MatMulNBits"
    }
    assert {name: width for name, width in bits.items() if width == 8}.keys() == {name for name in bits if "lm_head" in name}
    assert sorted(set(bits.values())) == [4, 8]
