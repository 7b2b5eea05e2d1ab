"""Which inputs the proxy keeps, by hand, and what the method refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from quantadvisor.documents.errors import CandidateFailed
from quantadvisor.methods import codebooks, kbit
from quantadvisor.methods.observe import load, weight
from quantadvisor.methods.schemes import scheme

from .conftest import kl, operators, run, torch_logits
from .test_awq import with_weights


def test_names_are_number_types() -> None:
    np.testing.assert_array_equal(kbit.codebook_of("nf4-b64"), codebooks.normal_floats(4))
    np.testing.assert_array_equal(kbit.codebook_of("int3-b64-p2"), codebooks.integers(3))
    np.testing.assert_array_equal(kbit.codebook_of("e3m0-b32-c"), codebooks.floats(3, 0))
    np.testing.assert_array_equal(kbit.codebook_of("quantile4-b64"), codebooks.quantiles(4))
    np.testing.assert_array_equal(kbit.codebook_of("dynamic8-b64"), codebooks.dynamic(8))
    with pytest.raises(ValueError, match="no number type"):
        kbit.codebook_of("w4-g64")


def test_the_loudest_on_a_toy_matrix() -> None:
    """Rows of the writer with deviations 1, 3, 0 and 2: half of four inputs are 1 and 3."""
    writer = np.array([[1, -1], [3, -3], [5, 5], [2, -2]], np.float32)
    assert kbit.loudest(writer.std(axis=1), 50).tolist() == [1, 3]
    assert kbit.loudest(writer.std(axis=1), 0).tolist() == []
    w = np.ones((2, 4), np.float32)
    assert kbit.quiet(w, np.array([1, 3])).tolist() == [[1, 0, 1, 0]] * 2
    assert w.all()


def test_writers_of_a_model(llama: Path) -> None:
    """Norms read what was written last; o_proj what v_proj writes, each key head's part once per query head."""
    model = load(llama)
    found = {pair.targets[0]: deviations for pair, deviations in kbit.writers(llama, model)}
    root = "model.layers.1"
    np.testing.assert_allclose(found["model.layers.0.self_attn.q_proj"], weight(model, "model.embed_tokens").std(axis=0))
    np.testing.assert_allclose(found[f"{root}.self_attn.q_proj"], weight(model, "model.layers.0.mlp.down_proj").std(axis=1))
    np.testing.assert_allclose(found[f"{root}.mlp.gate_proj"], weight(model, f"{root}.self_attn.o_proj").std(axis=1))
    np.testing.assert_allclose(found[f"{root}.mlp.down_proj"], weight(model, f"{root}.mlp.up_proj").std(axis=1))
    values = weight(model, f"{root}.self_attn.v_proj").std(axis=1).reshape(2, 16)
    np.testing.assert_allclose(found[f"{root}.self_attn.o_proj"], values.repeat(2, axis=0).reshape(-1))


@pytest.mark.parametrize("name", ["nf4-b64", "int3-b32-p2", "e2m1-b64-c"])
def test_every_linear_is_rounded(name: str, llama: Path, tokens: np.ndarray) -> None:
    model = load(llama)
    found = kbit.rounded(llama, scheme(name), tokens)
    assert len(found) == 14
    for linear, value in found.items():
        w = weight(model, linear)
        kept = (np.abs(value - w) <= np.abs(w) * 2.0**-10).all(axis=0)
        assert kept.sum() == (round(0.02 * w.shape[1]) if name.endswith("p2") else 0), linear
        assert 0 < np.square(value - w).mean() < 0.1 * w.var()


def test_refusals_say_that_no_kernel_reads_them(llama: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    assert "codebook" in str(kbit.refuse(llama, scheme("int4-b64"), "onnxruntime"))
    assert "codebook" in str(kbit.refuse(llama, scheme("nf4-b64"), "openvino"))
    assert "does not offer" in str(kbit.refuse(llama, scheme("w4-g64"), "onnxruntime"))
    with pytest.raises(CandidateFailed, match="codebook"):
        kbit.apply(llama, scheme("nf4-b64"), "openvino", tokens, tmp_path / "out")
    assert scheme("nf4-b64-kv8").quantizes_cache


def test_kernels_read_whole_blocks_of_each_row(llama: Path, tmp_path: Path) -> None:
    """bitsandbytes' blocks are flat; its kernel on a CPU goes row by row, as ours does, and is wrong where one ends in a row."""
    assert kbit.refuse(llama, scheme("nf4-b64-bf16"), "triton") is None
    config = json.loads((llama / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    for runtime in ("triton", "torch"):
        assert "groups of 64 do not divide intermediate_size = 96" in str(kbit.refuse(tmp_path, scheme("nf4-b64-bf16"), runtime))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("int3-b128", "codebook"),
        ("quantile8-b1024-c", "codebook"),
        ("e3m0-b32-c-p2", "codebook"),
        ("nf3-b64", "codebook"),
        ("int4-b16", "takes blocks of 32 to 1024 weights: int4-b16 has 16"),
        ("int4-b2048", "takes blocks of 32 to 1024"),
        ("e5m6-b64", "up to 8 bits: e5m6-b64 has 12"),
        ("nf4-b64-c-dq", "of plain blocks only"),
        ("nf4-b64-dq-p2", "of plain blocks only"),
        ("nf4-b64-kv8", "does not offer"),
    ],
)
def test_every_number_type_that_can_be_rounded_is_known(name: str, reason: str, llama: Path) -> None:
    """Listed or not: what is known lacks a kernel, what is not known is said to be none."""
    assert reason in str(kbit.refuse(llama, scheme(name), "onnxruntime"))
    w = np.random.default_rng(0).standard_normal((4, 128)).astype(np.float32)
    if reason == "codebook":
        assert 0 < np.square(kbit.on_codebook(w, scheme(name)) - w).mean() < 0.2


@pytest.mark.parametrize("name", ["nf4-b64", "nf4-b64-dq"])
def test_nf4_runs_in_onnxruntime(name: str, llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    """The graph gives what transformers gives on the rounded weights (lm_head in 8 bits is all that differs)."""
    assert kbit.refuse(llama, scheme(name), "onnxruntime") is None
    notes = kbit.apply(llama, scheme(name), "onnxruntime", tokens, tmp_path / "out", base=base)
    assert any("0.127" in note for note in notes) == name.endswith("-dq")
    expected = with_weights(llama, kbit.rounded(llama, scheme(name), tokens), tokens[3])
    exact = torch_logits(llama, tokens[3])
    assert kl(expected, run(tmp_path / "out", tokens[3])) < 0.02 * kl(exact, expected)
    found = operators(tmp_path / "out", tmp_path)
    assert (found["MatMulBnb4"], found["MatMulNBits"], found.get("MatMul", 0)) == (10, 1, 0)


def test_double_quantization_moves_little(llama: Path, tokens: np.ndarray) -> None:
    plain, twice = (kbit.rounded(llama, scheme(name), tokens) for name in ("nf4-b64", "nf4-b64-dq"))
    for name, w in plain.items():
        assert 0 < np.abs(twice[name] - w).max() < 0.05 * np.abs(w).max()


@pytest.mark.parametrize("name", kbit.BITSANDBYTES)
def test_on_torch_it_is_a_folder_of_bitsandbytes(name: str, llama: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    """With the codes that are simulated; elsewhere refused, and said to be readable only where bitsandbytes is."""
    from quantadvisor.methods.formats import bitsandbytes

    kbit.apply(llama, scheme(name), "torch", tokens, tmp_path / "out")
    found, simulated = bitsandbytes.read(tmp_path / "out"), kbit.rounded(llama, scheme(name), tokens)
    assert set(found) == set(simulated)
    for linear, w in found.items():
        np.testing.assert_allclose(
            w, simulated[linear], rtol=2e-3, atol=1e-7, err_msg=linear
        )  # scales in the middle fall to either
    assert "read by torch and triton only" in str(kbit.refuse(llama, scheme(name), "onnxruntime"))
    assert "codebook" in str(kbit.refuse(llama, scheme("nf4-b64"), "torch"))
    assert "bitsandbytes holds" in str(kbit.refuse(llama, scheme("int4-b64-bf16"), "torch"))


def test_bitsandbytes_may_be_missing(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantadvisor.methods import refusals

    monkeypatch.setattr(refusals, "find_spec", lambda name: None)
    assert "pip install bitsandbytes" in str(kbit.refuse(llama, scheme("nf4-b64-bf16"), "torch"))
