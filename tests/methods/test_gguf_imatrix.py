"""The importance matrix against the inputs that transformers' own hooks see, and llama.cpp's rounding with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantadvisor.methods import gguf, gguf_imatrix
from quantadvisor.methods.observe import load, weight
from quantadvisor.methods.schemes import scheme

from .conftest import write_llama
from .test_stream import inputs_of


def test_mean_squares_of_what_linears_read(half: bool, llama: Path, tokens: np.ndarray) -> None:
    found = gguf_imatrix.importances(llama, tokens)
    for name, x in inputs_of(load(llama), tokens, half).items():
        np.testing.assert_allclose(found[name], np.square(x).mean(axis=0), rtol=1e-3)


def test_refusals(llama: Path, tmp_path: Path) -> None:
    assert "writes nothing for onnxruntime" in str(gguf_imatrix.refuse(llama, scheme("q4_0"), "onnxruntime"))
    assert gguf_imatrix.refuse(llama, scheme("q4_k"), "llama.cpp") is None
    assert "does not offer q8_0" in str(gguf_imatrix.refuse(llama, scheme("q8_0"), "llama.cpp"))
    assert gguf_imatrix.refuse(llama, scheme("q4_0"), "llama.cpp") is None


def weighed_error(w: np.ndarray, rounded: np.ndarray, importance: np.ndarray) -> float:
    return float((importance * np.square(rounded - w)).sum())


def test_llama_cpp_weighs_inputs_in_the_file_as_we_simulate_it(llama: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama.cpp is not here: make runtime-llama")
    import gguf as library

    from quantadvisor.methods.formats import gguf as formats

    gguf_imatrix.apply(llama, scheme("q4_0"), "llama.cpp", tokens[:2], tmp_path / "out")
    simulated = gguf_imatrix.rounded(llama, scheme("q4_0"), tokens[:2])
    stored = {
        t.name: library.dequantize(t.data, t.tensor_type) for t in library.GGUFReader(tmp_path / "out" / formats.FILE).tensors
    }
    importance, model = gguf_imatrix.importances(llama, tokens[:2]), load(llama)
    for layer in (0, 1):
        name, place = f"model.layers.{layer}.mlp.up_proj", f"blk.{layer}.ffn_up.weight"
        np.testing.assert_allclose(simulated[name], stored[place], atol=1e-6)
        w = weight(model, name)
        plain = formats.round_rows(w, "q4_0")
        assert weighed_error(w, stored[place], importance[name]) < weighed_error(w, plain, importance[name])


def test_super_blocks(tmp_path: Path, tokens: np.ndarray) -> None:
    """Hidden 256: every linear gets its super-blocks, with the errors that N(0, 1) has in each type (method_oracles, 17)."""
    pytest.importorskip("llama_cpp", reason="llama.cpp is not here: make runtime-llama")
    import gguf as library

    from quantadvisor.methods.formats import gguf as formats

    folder = write_llama(tmp_path / "hf", hidden_size=256, intermediate_size=512)
    formats.export_base(folder, tmp_path / "base")
    model = load(folder)
    w = weight(model, "model.layers.0.mlp.gate_proj")
    for name, expected in (("q2_k", 0.085449), ("q3_k", 0.022792), ("q4_k", 0.005001), ("q5_k", 0.001304), ("q6_k", 0.000310)):
        assert gguf.refuse(folder, scheme(name), "llama.cpp") is None
        formats.quantize(tmp_path / "base", tmp_path / name, name)
        tensors = {t.name: t for t in library.GGUFReader(tmp_path / name / formats.FILE).tensors}
        found = tensors["blk.0.ffn_gate.weight"]
        assert found.tensor_type.name == name.upper()
        error = np.square(library.dequantize(found.data, found.tensor_type) - w).mean() / w.var()
        assert error == pytest.approx(expected, rel=0.15), name
