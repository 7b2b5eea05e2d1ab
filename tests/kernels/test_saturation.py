"""Which CPUs saturate, by their flags; and what ONNX Runtime gives on this one, against integers in numpy."""

from pathlib import Path

import numpy as np
import pytest

from quantadvisor.kernels.saturation import LARGEST_EXACT, saturates


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


def multiplied(x: np.ndarray, w: np.ndarray, kind: type, middle: int) -> np.ndarray:
    """(x - 100) @ w, int32 [M, N], by ONNX Runtime with weights stored as `kind` about `middle`; x: uint8 [M, K]."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    rows, columns = len(x), w.shape[1]
    tensor = onnx.numpy_helper.from_array
    make = onnx.helper
    graph = make.make_graph(
        [make.make_node("MatMulInteger", ["x", "w", "x_zero", "w_zero"], ["y"])], "product",
        [make.make_tensor_value_info("x", onnx.TensorProto.UINT8, x.shape)],
        [make.make_tensor_value_info("y", onnx.TensorProto.INT32, (rows, columns))],
        [tensor((w + middle).astype(kind), "w"), tensor(np.array(100, np.uint8), "x_zero"),
         tensor(np.full(columns, middle, kind), "w_zero")],
    )  # fmt: skip
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 21)], ir_version=10)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_the_weights_that_this_cpu_takes_are_multiplied_exactly(rows: int) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 256, (rows, 256)).astype(np.uint8), rng.integers(-127, 128, (256, 64))
    kind, middle = (np.uint8, 128) if saturates() else (np.int8, 0)
    np.testing.assert_array_equal(multiplied(x, w, kind, middle), (x.astype(np.int64) - 100) @ w)


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_the_largest_weights_that_cannot_saturate_are_exact_in_int8_and_larger_ones_only_on_other_cpus(rows: int) -> None:
    """The worst case: all inputs 255, all weights of one sign at the bound, or 1 beyond it."""
    x = np.full((rows, 256), 255, np.uint8)
    for sign in (1, -1):
        for bound, exact in ((LARGEST_EXACT, True), (LARGEST_EXACT + 1, not saturates())):
            w = np.full((256, 64), sign * bound)
            found = multiplied(x, w, np.int8, 0)
            # -255 * 65 * 2 is -33,150, below the least of 16 bits too
            assert np.array_equal(found, (x.astype(np.int64) - 100) @ w) is exact
