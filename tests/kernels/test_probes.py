"""Every probe against the product in float64 of the weights that it was given, at shapes that fit no block size."""

from typing import Any

import pytest

from quantadvisor.documents import Device
from quantadvisor.kernels.problem import Problem
from quantadvisor.kernels.registry import PROBES

CPU = Device(name="x", cores=2, threads=2, memory_bytes=1 << 34, fingerprint="x")
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2, "int8": 1.5e-2}
"""Relative error allowed for the arithmetic: rounding to 8 bits of mantissa (bf16), or of the range (int8)."""
# Rounding x to INT8 over 4.2 sigma on either side: step 4.2 / 127, error step / sqrt(12) = 0.0095 of sigma.

SHAPES = [Problem(m=1, n=40, k=192, threads=2), Problem(m=7, n=33, k=200, threads=2, copies=3),
          Problem(m=5, n=65, k=128, threads=1, copies=2)]  # fmt: skip
CASES = [(name, option) for name, probe in PROBES.items() for option in probe.options]


def error(found: Any, true: Any) -> float:
    import numpy as np

    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "option"), CASES)
def test_probe_multiplies_what_it_says(name: str, option: str, shape: Problem) -> None:
    probe = PROBES[name]
    shape = Problem(**{**vars(shape), "option": option})
    if reason := probe.refuse(CPU, shape):
        assert "not available" in reason or "no multiple" in reason
        return
    prepared = probe.prepare(shape)
    true = probe.reference(shape)()
    assert prepared.run().shape == (shape.m, shape.n)
    assert error(prepared.run(), true) <= TOLERANCE[probe.arithmetic(option, ())]
    prepared()
    assert prepared.operator()


@pytest.mark.parametrize(("name", "operator"), [
    ("fp32_onnxruntime", "MatMul"), ("w4_onnxruntime", "MatMulNBits"), ("w8_onnxruntime", "MatMulNBits"),
    ("w8a8_onnxruntime", "DynamicQuantizeMatMul"),
])  # fmt: skip
def test_onnxruntime_runs_the_operator_itself(name: str, operator: str) -> None:
    assert PROBES[name].prepare(SHAPES[0]).operator() == operator


def test_int8_arithmetic_leaves_its_trace() -> None:
    """Compressed weights under OpenVINO's f32 hint: an error far above fp32's is the proof of INT8 activations."""
    import numpy as np

    for name in ("w4_openvino", "w8_openvino", "w4_onnxruntime"):
        probe = PROBES[name]
        shape = Problem(m=3, n=64, k=192, option=probe.options[0], threads=2)
        assert np.isfinite(found := error(probe.prepare(shape).run(), probe.reference(shape)()))
        assert found > 1e-4 or name.endswith("openvino")  # without VNNI OpenVINO multiplies in fp32


def test_registered_probes_have_their_own_file() -> None:
    from pathlib import Path

    for name, probe in PROBES.items():
        assert Path(probe.__file__).stem == name  # type: ignore[attr-defined]
