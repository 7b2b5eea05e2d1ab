"""Static W8A8 as QDQ: integers as numpy rounds them, the graph of ONNX Runtime's own quantize_static, and what it is fused to."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from quantadvisor.advisor import stored_graphs
from quantadvisor.methods.affine import affine_grid, quantize, quantize_channels
from quantadvisor.methods.formats import onnx, onnx_qdq, onnx_weights
from quantadvisor.methods.formats.onnx_base import Reader, linears, load_graph
from quantadvisor.methods.observe import load
from quantadvisor.methods.static_int8 import Range, ranges
from quantadvisor.profiling.runtimes import onnxruntime

from ..conftest import operators, run, session

LINEARS = 10
"""Of the tiny model's two layers: qkv, o, gate, up, down."""


@pytest.fixture(scope="module")
def found(llama: Path, tokens: np.ndarray) -> list[Range]:
    return ranges(load(llama), tokens)


@pytest.fixture(scope="module")
def folder(base: Path, found: list[Range], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("qdq") / "out"
    onnx.quantize_static_w8a8(base, out, found)
    return out


def seen(folder: Path, row: np.ndarray, *names: str) -> dict[str, np.ndarray]:
    """Values of tensors inside a folder's graph on one sample; `names` become outputs of a graph beside it."""
    import onnx as library

    graph = load_graph(folder)
    graph.graph.output.extend(library.helper.make_tensor_value_info(name, library.TensorProto.FLOAT, None) for name in names)
    (folder / "seen.onnx").write_bytes(graph.SerializeToString())
    opened = session(folder, "seen.onnx")
    past = {value.name: np.zeros((1, value.shape[1], 0, 16), np.float32) for value in opened.get_inputs()
            if value.name.startswith("past")}  # fmt: skip
    fed = {"input_ids": row[None], "attention_mask": np.ones_like(row)[None], **past}
    return dict(zip(names, opened.run(list(names), fed), strict=True))


@pytest.mark.parametrize("most", [63, 127])
def test_integers_are_numpys(
    most: int, base: Path, found: list[Range], tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half the range is clipped. Integer products and sums, and the two scales: every linear, whatever it is fused to. Codes of
    8 bits are about 128 here where products with int8 ones would saturate."""
    monkeypatch.setattr(onnx_qdq, "most_exact", lambda: most)
    narrow = [(readers, low / 2, high / 2) for readers, low, high in found]
    onnx.quantize_static_w8a8(base, tmp_path / "out", narrow)
    nodes, plain = linears(load_graph(base)), Reader(base)
    sources = {name: node.input[0] for name, node in nodes.items()}
    del sources["lm_head"]
    targets = {name: nodes[name].output[0] for name in sources}
    assert len(sources) == LINEARS
    values = seen(tmp_path / "out", tokens[0], *dict.fromkeys((*sources.values(), *targets.values())))
    clipped = 0
    for readers, low, high in narrow:
        scale, zero = affine_grid(np.array(low, np.float32), np.array(high, np.float32), 0, 255)
        for name in dict.fromkeys(onnx.onnx_linear(reader, sources) for reader in readers):
            x = quantize(values[sources.pop(name)][0], scale, zero, 0, 255)
            w, row_scales = quantize_channels(np.ascontiguousarray(plain.tensor(nodes[name].input[1]).T), most)
            exact = (x - zero).astype(np.int64) @ w.T.astype(np.int64)
            expected = exact * (scale * row_scales).astype(np.float64)
            np.testing.assert_allclose(values[targets[name]][0], expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
            clipped += np.count_nonzero((x == 0) | (x == 255))
    assert not sources
    assert clipped > 100


def test_like_quantize_static(
    base: Path, found: list[Range], tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: onnxruntime.quantization.quantize_static on the same graph and ranges, lm_head and what linears write left out.
    It writes int8 weights of 8 bits whatever the CPU. Scales may differ in their last bit: it divides in float64."""
    import onnx as library
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data

    monkeypatch.setattr(onnx_qdq, "most_exact", lambda: 127)
    monkeypatch.setattr(onnx_weights, "saturates", lambda: False)
    onnx.quantize_static_w8a8(base, tmp_path / "ours", found)
    graph, theirs = load_graph(base), tmp_path / "theirs"
    nodes = linears(graph)
    del nodes["lm_head"]
    sources = {nodes[onnx.onnx_linear(readers[0], nodes)].input[0]: (np.float32(low), np.float32(high))
               for readers, low, high in found}  # fmt: skip
    for name in sources:  # ONNX's own inference stops at ONNX Runtime's operators
        graph.graph.value_info.append(library.helper.make_tensor_value_info(name, library.TensorProto.FLOAT, None))
    theirs.mkdir()
    (theirs / "plain.onnx").write_bytes(graph.SerializeToString())
    shutil.copyfile(base / "model.onnx.data", theirs / "model.onnx.data")
    save_tensors_data(TensorsData(CalibrationMethod.MinMax, sources), theirs / "ranges.json")
    quantize_static(
        theirs / "plain.onnx", theirs / "scoring.onnx", op_types_to_quantize=["MatMul"], per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, nodes_to_quantize=[node.name for node in nodes.values()],
        calibration_cache_path=theirs / "ranges.json",
        extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["MatMul"]},
    )  # fmt: skip
    made, mine = library.load(theirs / "scoring.onnx"), Reader(tmp_path / "ours")
    stored = {tensor.name: library.numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    for name in sources:
        np.testing.assert_allclose(mine.tensor(f"{name}_scale"), stored[f"{name}_scale"], rtol=1e-6)
        assert mine.tensor(f"{name}_zero_point") == stored[f"{name}_zero_point"]
    for node in nodes.values():
        weight = node.input[1]
        np.testing.assert_allclose(mine.tensor(f"{weight}_scale"), stored[f"{weight}_scale"], rtol=1e-6)
        assert np.array_equal(mine.tensor(f"{weight}_quantized"), stored[f"{weight}_quantized"])
        assert np.array_equal(mine.tensor(f"{weight}_zero_point"), stored[f"{weight}_zero_point"])
    assert sorted(node.op_type for node in made.graph.node) == sorted(node.op_type for node in mine.model.graph.node)
    np.testing.assert_allclose(run(tmp_path / "ours", tokens[0]), run(theirs, tokens[0]), atol=1e-3)


def test_onnxruntime_fuses_every_linear(folder: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    """In the optimised graph, and in what the profile of a run counts: no weight is dequantized, lm_head alone stays float."""
    fused = operators(folder, tmp_path)
    assert fused["MatMulIntegerToFloat"] == LINEARS
    assert fused["MatMul"] == 1
    assert fused["QuantizeLinear"] == 8  # one for q, k and v together, o, gate and up together, down
    assert "DequantizeLinear" not in fused
    onnxruntime.warm_imports()
    for phase in onnxruntime.open_session(str(folder), (), 1).operators(tokens[:1], None).values():
        assert (phase["linears"], phase["quantized_linears"]) == (LINEARS + 1, LINEARS)


def test_a_checkpoint_is_recognised(folder: Path) -> None:
    stored = stored_graphs.of_onnx(folder)
    assert stored["scheme"].name == "w8a8-static"
    assert (stored["linears"], stored["stored_quantized"]) == (LINEARS + 1, LINEARS)


@pytest.mark.parametrize(("most", "beyond"), [(63, 0), (127, LINEARS)])
def test_7_bits_where_8_saturate(
    most: int, beyond: int, base: Path, found: list[Range], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both in int8 about 0, as NPUs take them."""
    monkeypatch.setattr(onnx_qdq, "most_exact", lambda: most)
    monkeypatch.setattr(onnx_weights, "saturates", lambda: False)
    onnx.quantize_static_w8a8(base, tmp_path / "out", found)
    assert stored_graphs.beyond_exact(tmp_path / "out") == beyond
    stored = Reader(tmp_path / "out")
    codes = [stored.tensor(name) for name in stored.old if name.endswith(".weight_quantized")]
    assert {(code.dtype.name, int(np.abs(code.astype(int)).max())) for code in codes} == {("int8", most)}
