"""Integers between all operators: against torch that rounds where the graph does, and ONNX Runtime's own calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quantadvisor.kernels.saturation import LARGEST_EXACT, saturates
from quantadvisor.methods.affine import affine_grid, quantize
from quantadvisor.methods.formats import onnx, onnx_integer
from quantadvisor.methods.formats.onnx_base import Reader, Rewrite, load_graph
from quantadvisor.methods.observe import load
from quantadvisor.profiling.runtimes import onnxruntime

from ..conftest import operators, run, torch_logits

LINEARS = 11
"""Of the tiny model's two layers: qkv, o, gate, up, down; and lm_head."""


@pytest.fixture(scope="module")
def folder(base: Path, tokens: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, heard = tmp_path_factory.mktemp("integer") / "out", list[str]()
    onnx.quantize_integer_w8a8(base, out, tokens, say=heard.append)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert [line.split(",")[0] for line in heard] == [f"sample {number} of 4 read" for number in (1, 2, 3, 4)]
    assert [" s left" in line for line in heard] == [True, True, True, False]
    return out


@contextmanager
def between_modules(model: Any, change: Any) -> Iterator[None]:
    """`change(name, x) -> x` on what every linear, norm, activation and the embedding writes, on what o_proj and down_proj
    read, and on the sigmoid inside SiLU."""

    class Silu(torch.nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * change(f"{self.name}.sigmoid", torch.sigmoid(x))

    handles = []
    for layer, part in enumerate(model.model.layers):
        part.mlp.act_fn = Silu(f"{layer}.act_fn")
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding, Silu)) or "norm" in name:
            handles.append(module.register_forward_hook(lambda _, args, out, name=name: change(name, out)))
        if name.endswith(("o_proj", "down_proj")):
            handles.append(module.register_forward_pre_hook(lambda _, args, name=f"{name}.read": (change(name, args[0]),)))
    yield
    for handle in handles:
        handle.remove()


def simulated(llama: Path, tokens: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Logits, by row of tokens, of torch's model with its weights and every tensor above on 256 levels between its extremes in
    `tokens`; q, k and v share their levels, as the export fuses them. What has 16 bits is left alone. Weights have 7 bits where
    sums of 8 saturate."""
    from quantadvisor.methods.affine import quantize_channels

    model = load(llama)
    bounds: dict[str, tuple[float, float]] = {}

    def shared(name: str) -> str:
        return name.replace("q_proj", "qkv").replace("k_proj", "qkv").replace("v_proj", "qkv")

    def widen(name: str, x: torch.Tensor) -> torch.Tensor:
        low, high = bounds.get(shared(name), (0.0, 0.0))
        bounds[shared(name)] = min(low, float(x.min())), max(high, float(x.max()))
        return x

    def rounded(name: str, x: torch.Tensor) -> torch.Tensor:
        if name == "model.embed_tokens":
            return x
        scale, zero = affine_grid(*(np.array(bound, np.float32) for bound in bounds[shared(name)]), 0, 255)
        return torch.from_numpy((quantize(x.numpy(), scale, zero, 0, 255) - zero).astype(np.float32) * scale)

    with torch.no_grad():
        with between_modules(model, widen):
            for sample in tokens:
                model(torch.from_numpy(sample)[None])
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                codes, scales = quantize_channels(module.weight.numpy(), LARGEST_EXACT if saturates() else 127)
                module.weight.copy_(torch.from_numpy(codes * scales[:, None]))

    def logits(row: np.ndarray) -> np.ndarray:
        with torch.no_grad(), between_modules(model, rounded):
            return model(torch.from_numpy(row)[None]).logits[0].numpy()

    return logits


def test_like_torch_that_rounds_there(llama: Path, folder: Path, tokens: np.ndarray) -> None:
    """Tokens alone, most of them to the last level. A value in the middle between two levels falls to either, after which all
    that depends on it may differ: in a row whatever reads it."""
    like, step = simulated(llama, tokens), np.ptp(torch_logits(llama, tokens[3])) / 255
    alone = [np.abs(run(folder, one) - like(one)).max() / step for one in tokens[:, :8].reshape(-1, 1)]
    assert np.mean(np.array(alone) < 0.01) > 0.5
    got = run(folder, tokens[3])
    assert np.median(np.abs(got - like(tokens[3]))) <= 1.01 * step
    np.testing.assert_array_equal(run(folder, tokens[3], chunk=8), got)


def test_every_linear_is_one_of_integers(folder: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    """As ONNX Runtime optimises it: from codes to codes, without a float weight; SiLU and its products too."""
    fused = operators(folder, tmp_path)
    assert (fused["QLinearMatMul"], fused["QLinearSigmoid"], fused["QLinearMul"]) == (LINEARS, 2, 4)
    assert not {"MatMul", "MatMulIntegerToFloat", "Mul", "Sigmoid", "QuickGelu"} & set(fused)
    onnxruntime.warm_imports()
    for phase in onnxruntime.open_session(str(folder), (), 1).operators(tokens[:1], None).values():
        assert (phase["linears"], phase["quantized_linears"]) == (LINEARS, LINEARS)


def test_integers_on_both_sides(folder: Path) -> None:
    """Of every operator with floats: inputs from DequantizeLinear, outputs to QuantizeLinear. Attention's cache and rotary tables
    stay float; the table of the embedding is lm_head's, turned."""
    graph = load_graph(folder)
    makers = {name: node.op_type for node in graph.graph.node for name in node.output}
    readers: dict[str, set[str]] = {}
    for node in graph.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    checked = 0
    for node in graph.graph.node:
        if node.op_type not in (*onnx_integer.ROUNDED, "GroupQueryAttention") or "attn_mask" in node.name:
            continue
        attention, floats = node.op_type == "GroupQueryAttention", node.input[:1] if node.op_type == "Gather" else node.input
        read = [makers[name] for name in (node.input[:1] if attention else floats)]
        assert set(read) <= {"DequantizeLinear", "Transpose"}, node.name
        written = [name for name in node.output[: 1 if attention else None] if name]
        table = node.op_type == "Transpose"
        assert all(readers[name] == {"Gather" if table else "QuantizeLinear"} for name in written), node.name
        checked += 1
    assert checked == 2 + 2 + 5 + LINEARS + 2 + 4  # attention, the embedding, norms, linears, sigmoids, products


def test_what_has_sixteen_bits(folder: Path) -> None:
    """The residual stream and the norms' weights; 8 everywhere else."""
    stored = Reader(folder)
    wide = {name.removesuffix("_zero_point") for name in stored.old
            if name.endswith("_zero_point") and stored.tensor(name).dtype == np.uint16}  # fmt: skip
    residual = {"/model/embed_tokens/Gather/output_0", *(name for name in wide if name.endswith("output_3"))}
    assert wide == residual | {name for name in wide if name.endswith("layernorm.weight")}
    assert len(residual) == 4
    assert len(wide) == 4 + 5


def test_ranges_like_onnxruntimes_own(base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    """Oracle: its MinMax calibrator, to which zero is no extreme."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

    with Rewrite(base, tmp_path / "plain"):
        pass
    onnx_integer.typed(tmp_path / "plain")
    found = onnx_integer.tensor_ranges(tmp_path / "plain", tokens)

    class Samples(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            sides = [f"past_key_values.{layer}.{side}" for layer in (0, 1) for side in ("key", "value")]
            past = dict.fromkeys(sides, np.zeros((1, 2, 0, 16), np.float32))
            self.rows = iter([{"input_ids": row[None], "attention_mask": np.ones_like(row)[None], **past} for row in tokens])

        def get_next(self) -> Any:
            return next(self.rows, None)

    calibrator = create_calibrator(
        tmp_path / "plain" / "scoring.onnx", list(onnx_integer.ROUNDED), tmp_path / "plain" / "augmented.onnx",
        CalibrationMethod.MinMax, use_external_data_format=True,
    )  # fmt: skip
    calibrator.collect_data(Samples())
    theirs = calibrator.compute_data().data
    assert set(found) <= set(theirs)
    assert len(found) >= 2 * LINEARS
    for name, (low, high) in found.items():
        lowest, highest = (float(np.squeeze(bound)) for bound in theirs[name].range_value)
        np.testing.assert_allclose((low, high), (min(lowest, 0), max(highest, 0)), rtol=1e-5, err_msg=name)


def test_seven_bits_where_eight_saturate(base: Path, tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for inexact, most in ((True, 64), (False, 127)):
        monkeypatch.setattr(onnx_integer, "saturates", lambda answer=inexact: answer)
        onnx.quantize_integer_w8a8(base, tmp_path / "out", tokens[:1])
        stored = Reader(tmp_path / "out")
        codes = [stored.tensor(name) for name in stored.old if name.endswith("MatMul.weight_quantized")]
        assert len(codes) == LINEARS
        assert {(code.dtype.name, int(np.abs(code.astype(int)).max())) for code in codes} == {("int8", most)}
