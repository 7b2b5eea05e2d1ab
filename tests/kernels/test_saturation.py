"""Which CPUs saturate, by their flags; and what ONNX Runtime gives on this one, against integers in numpy."""

from pathlib import Path

import numpy as np
import pytest

from quantadvisor.kernels.saturation import saturates


@pytest.mark.parametrize(("flags", "expected"), [
    ("fpu avx avx2 fma", True), ("avx2 avx512f avx512bw", True), ("avx2 avx_vnni", False), ("avx2 avx512f avx512_vnni", False),
    ("avx2 amx_int8", False), ("asimd asimddp", False),
])  # fmt: skip
def test_by_flags(tmp_path: Path, flags: str, expected: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\nmodel name\t: a CPU\nflags\t\t: {flags}\nbugs\t: none\n")
    assert saturates(cpuinfo) is expected


def test_no_cpuinfo_is_no_x86(tmp_path: Path) -> None:
    assert saturates(tmp_path / "nowhere") is False


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_the_weights_that_this_cpu_takes_are_multiplied_exactly(rows: int) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 256, (rows, 256)).astype(np.uint8), rng.integers(-127, 128, (256, 64))
    kind, middle = (np.uint8, 128) if saturates() else (np.int8, 0)
    tensor = onnx.numpy_helper.from_array
    make = onnx.helper
    graph = make.make_graph(
        [make.make_node("MatMulInteger", ["x", "w", "x_zero", "w_zero"], ["y"])], "product",
        [make.make_tensor_value_info("x", onnx.TensorProto.UINT8, x.shape)],
        [make.make_tensor_value_info("y", onnx.TensorProto.INT32, (rows, 64))],
        [tensor((w + middle).astype(kind), "w"), tensor(np.array(100, np.uint8), "x_zero"),
         tensor(np.full(64, middle, kind), "w_zero")],
    )  # fmt: skip
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 21)], ir_version=10)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], (x.astype(np.int64) - 100) @ w)
