"""LLM.int8() against what bitsandbytes 0.50.2 gave for these inputs (int8_vectorwise_quant), and on planted outliers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from quantadvisor.methods import llm_int8
from quantadvisor.methods.formats import onnx
from quantadvisor.methods.schemes import scheme

from .conftest import fake_kl, interrupt, kl, operators, run, torch_logits

A = [[0.5, -1, 2, 7], [1, 0.25, -3, -0.5]]
BITSANDBYTES = [
    (A, 0.0, [[9, -18, 36, 127], [42, 11, -127, -21]], [7, 3], []),
    (A, 6.0, [[32, -64, 127, 0], [42, 11, -127, 0]], [2, 3], [3]),
    ([[1, 7], [1, 3]], 6.0, [[127, 0], [42, 0]], [1, 3], [1]),
]
"""The last one tells: a token's scale leaves out outlier elements, not whole outlier columns (else 127 and 1 in row 2)."""


@pytest.mark.parametrize(("x", "threshold", "codes", "bound", "columns"), BITSANDBYTES)
def test_golden_of_bitsandbytes(x: list[list[float]], threshold: float, codes: object, bound: object, columns: object) -> None:
    ours = llm_int8.vector_wise(torch.tensor(x), threshold)
    assert ours[0].int().tolist() == codes
    assert ours[1].flatten().tolist() == bound
    assert ours[2].nonzero().flatten().tolist() == columns


def test_outlier_columns_come_through_untouched() -> None:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 50, 32)).astype(np.float32))
    x[1, 7, 4] = 80
    rounded = llm_int8.rounded(x)
    assert torch.equal(rounded[..., 4], x[..., 4])
    rest = [j for j in range(32) if j != 4]
    bound = x.where(x.abs() < 6, 0).abs().amax(-1, keepdim=True) / 127
    assert ((rounded - x).abs() <= bound * 0.5001)[..., rest].all()


def test_planted_channels_are_found(planted: Path, tokens: np.ndarray) -> None:
    found = llm_int8.outlier_channels(planted, tokens)
    assert len(found) == 14
    assert all({5, 17} <= set(columns.tolist()) for name, columns in found.items() if not name.endswith(("o_proj", "down_proj")))


def test_interrupted_while_it_is_written_no_layer_runs_again(
    llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = llama, scheme("w8a8-outlier"), "onnxruntime", tokens
    llm_int8.apply(*settings, tmp_path / "whole", base=base)

    with monkeypatch.context() as patch:
        patch.setattr(onnx, "quantize_w8a8_outliers", interrupt)
        with pytest.raises(KeyboardInterrupt):
            llm_int8.apply(*settings, tmp_path / "out", base=base)
    heard: list[str] = []
    notes = llm_int8.apply(*settings, tmp_path / "out", base=base, say=heard.append)
    assert "8 tensors taken from an interrupted run" in notes and not heard
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


def test_it_earns_its_place_on_planted_outliers(planted: Path, tokens: np.ndarray) -> None:
    from quantadvisor.methods.fake import Fake
    from quantadvisor.methods.grids import symmetric
    from quantadvisor.methods.observe import load

    model = load(planted)
    ours = fake_kl(llm_int8.fake(model, scheme("w8a8-outlier"), tokens), planted, tokens[:2])
    for dim in (None, -1):  # one scale for all, one per token
        plain = Fake(model, weight=lambda _, w: symmetric(w, 8), inputs=lambda _, x, dim=dim: symmetric(x, 8, dim))
        assert ours < fake_kl(plain, planted, tokens[:2]) / 4


def test_the_artifact_is_the_sum_of_two_products(planted: Path, planted_base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    from quantadvisor.methods import dynamic_int8

    notes = llm_int8.apply(planted, scheme("w8a8-outlier"), "onnxruntime", tokens[:2], tmp_path / "out", base=planted_base)
    assert "outlier channels" in notes[0]
    exact = torch_logits(planted, tokens[3])
    ours = kl(exact, run(tmp_path / "out", tokens[3], chunk=8))
    dynamic_int8.apply(planted, scheme("w8a8"), "onnxruntime", tokens[:2], tmp_path / "plain", base=planted_base)
    assert ours < kl(exact, run(tmp_path / "plain", tokens[3])) / 4
    assert operators(tmp_path / "out", tmp_path)["MatMulIntegerToFloat"] >= 8


def test_refusals(tmp_path: Path, llama: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma2"}')
    assert "gemma2" in str(llm_int8.refuse(tmp_path, scheme("w8a8-outlier"), "onnxruntime"))
    assert llm_int8.refuse(llama, scheme("w8a8-outlier"), "onnxruntime") is None
    assert "writes nothing for openvino" in str(llm_int8.refuse(llama, scheme("w8a8-outlier"), "openvino"))


def test_its_ghost_has_random_weights_and_the_models_own_outlier_channels(
    planted: Path, planted_base: Path, tokens: np.ndarray, tmp_path: Path
) -> None:
    from quantadvisor.methods.formats import onnx
    from quantadvisor.methods.formats.onnx_base import load_graph

    onnx.randomise(planted_base, tmp_path / "random")
    llm_int8.apply(planted, scheme("w8a8-outlier"), "onnxruntime", tokens, tmp_path / "ghost", base=tmp_path / "random")
    llm_int8.apply(planted, scheme("w8a8-outlier"), "onnxruntime", tokens, tmp_path / "real", base=planted_base)
    shapes = [
        {tensor.name: tuple(tensor.dims) for tensor in load_graph(tmp_path / name).graph.initializer}
        for name in ("ghost", "real")
    ]
    assert shapes[0] == shapes[1]
    assert any(name.endswith("_outlier_rows") for name in shapes[0])
