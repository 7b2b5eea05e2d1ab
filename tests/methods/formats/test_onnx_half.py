"""The float16 graph: no float32 is left in it, and through ONNX Runtime's CPU provider it computes what float32 does, rounded."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from quantadvisor.documents import CandidateFailed
from quantadvisor.methods.formats.onnx import half
from quantadvisor.methods.formats.onnx_base import Rewrite, load_graph
from quantadvisor.methods.registry import method
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.runtimes.registry import runtime_file
from quantadvisor.profiling.workers import RunningWorker

from ..conftest import run

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


@pytest.fixture(scope="module")
def in_half(base: Path, tokens: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("half") / "half"
    assert method("none").refuse(base, scheme("fp16"), "onnxruntime") is None
    method("none").apply(base, scheme("fp16"), "onnxruntime", tokens, out, base=base)
    return out


def test_nothing_is_left_in_float32(base: Path, in_half: Path) -> None:
    for name in ("model.onnx", "scoring.onnx"):
        before, after = load_graph(base, name).graph, load_graph(in_half, name).graph
        assert [node.op_type for node in before.node] == [node.op_type for node in after.node]
        assert {one.name: HALF if one.data_type == FLOAT else one.data_type for one in before.initializer} == {
            one.name: one.data_type for one in after.initializer
        }
        kinds = {value.name: value.type.tensor_type.elem_type for value in (*after.input, *after.output)}
        assert kinds.pop("input_ids") == kinds.pop("attention_mask") == onnx.TensorProto.INT64
        assert set(kinds.values()) == {HALF}
        assert {"logits", "past_key_values.0.key", "present.0.value"} <= set(kinds)
    sizes = [(folder / "model.onnx.data").stat().st_size for folder in (base, in_half)]
    assert abs(sizes[1] - sizes[0] / 2) < 4096 * len(load_graph(base).graph.initializer)


def test_weights_are_the_nearest_float16(base: Path, in_half: Path, tmp_path: Path) -> None:
    with Rewrite(base, tmp_path / "a") as old, Rewrite(in_half, tmp_path / "b") as new:
        for name in old.old:
            assert np.array_equal(new.tensor(name), old.tensor(name).astype(new.tensor(name).dtype)), name


def test_the_cpu_provider_computes_it_and_the_session_reads_it(
    base: Path, in_half: Path, tokens: np.ndarray, tmp_path: Path
) -> None:
    exact, found = (run(folder, tokens[0]).astype(np.float64) for folder in (base, in_half))
    assert 0 < np.abs(found - exact).max() < 100 * 2.0**-11 * np.abs(exact).max()
    with RunningWorker(runtime_file("onnxruntime"), base, (), 1) as worker:
        worker.write_reference(tokens[:1], tmp_path / "reference.npy")
    with RunningWorker(runtime_file("onnxruntime"), in_half, (), 1) as worker:
        assert worker.score(tokens[:1], tmp_path / "reference.npy", 5)[1].max() < 1e-3
        seen = worker.operators(tokens[:1])["decode"]
    attention = [row for row in seen["operators"] if "Attention" in row["name"]]
    assert attention and all(row["precision"] == "float16 cache" for row in attention)


def test_a_weight_beyond_float16_is_said(base: Path, tmp_path: Path) -> None:
    with Rewrite(base, tmp_path / "large") as edit:
        name = next(name for name in edit.old if name.endswith("layernorm.weight"))
        value = edit.tensor(name).copy()
        value[0] = 7e4
        edit.drop(name)
        edit.add(name, value)
    with pytest.raises(CandidateFailed, match=r"holds 7e\+04, beyond float16"):
        half(tmp_path / "large", tmp_path / "out")
    assert not (tmp_path / "out").exists()
