"""Every probe against the product in float64 of the weights that it was given, at shapes that fit no block size."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from quantadvisor.documents import Device, LinearShape
from quantadvisor.kernels.point import module_of
from quantadvisor.kernels.probe import probe_kernels
from quantadvisor.kernels.problem import Problem, inputs, output
from quantadvisor.kernels.processes import DIED, PACKAGE_ROOT
from quantadvisor.kernels.registry import PROBES
from quantadvisor.profiling.device import describe_device
from quantadvisor.profiling.environments import interpreter_of

CPU = Device(name="x", isa=describe_device().isa, cores=2, threads=2, memory_bytes=1 << 34, fingerprint="x")
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2, "int8": 1.5e-2}
"""Relative error allowed for the arithmetic: rounding to 8 bits of mantissa (bf16), or of the range (int8)."""
# Rounding x to INT8 over 4.2 sigma on either side: step 4.2 / 127, error step / sqrt(12) = 0.0095 of sigma.

SHAPES = [Problem(m=1, n=40, k=192, threads=2), Problem(m=7, n=33, k=200, threads=2, copies=3),
          Problem(m=5, n=65, k=128, threads=2, copies=2)]  # fmt: skip
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
        assert any(words in reason for words in ("not available", "no multiple", "needs a CPU"))
        return
    pytest.importorskip(module_of(probe.runtime), reason=f"{probe.runtime} is not in this environment")
    prepared = probe.prepare(shape)
    true = probe.reference(shape)()
    found = output(prepared, shape)
    assert found.shape == (shape.m, shape.n)
    assert error(found, true) <= TOLERANCE[probe.arithmetic(option, ())]
    assert prepared.operator()


@pytest.mark.parametrize("name", ["fp32_torch", "w4_onnxruntime", "w8_openvino"])
def test_one_preparation_serves_every_number_of_rows(name: str) -> None:
    """Two bound at once do not disturb each other."""
    few, many = (Problem(m=m, n=40, k=192, threads=2, copies=2) for m in (2, 9))
    prepared = PROBES[name].prepare(few)
    bound = [prepared.bind(inputs(shape.m, shape.k)) for shape in (few, many)]
    for one in bound:
        one.call()
    for one, shape in zip(bound, (few, many), strict=True):
        assert error(one.output(), PROBES[name].reference(shape)()) <= TOLERANCE["int8"]


@pytest.mark.parametrize(("name", "operator"), [
    ("fp32_onnxruntime", "MatMul"), ("w4_onnxruntime", "MatMulNBits"), ("w8_onnxruntime", "MatMulNBits"),
    ("w8a8_onnxruntime", "DynamicQuantizeMatMul"), ("w4_acc0_onnxruntime", "MatMulNBits"),
    ("w8a8_qdq_onnxruntime", "QuantizeLinear+QLinearMatMul+DequantizeLinear"),
])  # fmt: skip
def test_onnxruntime_runs_the_operator_itself(name: str, operator: str) -> None:
    assert PROBES[name].prepare(SHAPES[0]).operator() == operator


def test_the_share_of_operators_that_only_round_is_read_from_the_profile() -> None:
    """Beside products of 64 terms they are much, beside those of 2,048 little."""
    short, long = (Problem(m=256, n=2048, k=k, threads=1) for k in (64, 2048))
    much, little = (PROBES["w8a8_qdq_onnxruntime"].prepare(shape).rounding_share(256) for shape in (short, long))
    assert much is not None and little is not None
    assert 0 < little < much < 1
    assert PROBES["w8a8_onnxruntime"].prepare(SHAPES[0]).rounding_share(4) is None


def test_openvino_s_bf16_is_refused_where_it_would_be_f32() -> None:
    """What it runs says so: without the instructions both options are one kernel, which would be timed twice."""
    old = CPU.model_copy(update={"isa": ("avx2",)})
    shape = Problem(m=1, n=64, k=128, option="bf16")
    assert "needs a CPU with amx_bf16" in str(PROBES["w8_openvino"].refuse(old, shape))
    assert PROBES["w8_openvino"].refuse(old.model_copy(update={"isa": ("amx_bf16",)}), shape) is None
    assert PROBES["w8_openvino"].refuse(old, replace(shape, option="f32")) is None


def test_torch_s_own_integer_products() -> None:
    """INT4 at widths that it packs; INT8 is refused where torch reads past a row's end (K = 200 crashed the process)."""
    shape = Problem(m=7, n=48, k=192, option="int4pack", threads=2, copies=2)
    probe = PROBES["w4_torch"]
    assert probe.refuse(CPU, shape) is None
    assert error(output(probe.prepare(shape), shape), probe.reference(shape)()) <= TOLERANCE["bf16"]
    assert "K = 200 is no multiple of 16" in str(PROBES["w8_torch"].refuse(CPU, replace(shape, k=200)))


def test_int8_arithmetic_leaves_its_trace() -> None:
    """Compressed weights under OpenVINO's f32 hint: an error far above fp32's is the proof of INT8 activations, which OpenVINO
    multiplies where the CPU has VNNI; elsewhere in fp32."""
    import numpy as np

    for name in ("w4_openvino", "w8_openvino", "w4_onnxruntime"):
        probe = PROBES[name]
        shape = Problem(m=3, n=64, k=192, option=probe.options[0], threads=2)
        assert np.isfinite(found := error(output(probe.prepare(shape), shape), probe.reference(shape)()))
        if not name.endswith("openvino") or {"avx512_vnni", "avx_vnni"} & {*CPU.isa}:
            assert found > 1e-4


def test_registered_probes_have_their_own_file() -> None:
    from pathlib import Path

    for name, probe in PROBES.items():
        assert Path(probe.__file__).stem == name  # type: ignore[attr-defined]


@pytest.mark.runtime
def test_llama_cpp_s_kernels_in_a_process_of_their_own() -> None:
    """Each is right where it runs. Some builds crash in the AMX layout: that is found here, and `plain` runs all the same."""
    pytest.importorskip("llama_cpp")
    found = probe_kernels(
        [LinearShape(name="x", n=64, k=256, count=2)], [1, 40], CPU, probes=["q4_0_llama_cpp", "q8_0_llama_cpp"], budget_s=60
    )
    plain = [timing for timing in found if timing.option == "plain"]
    assert len(plain) == 4
    assert all(timing.operator.endswith("in CPU") for timing in plain)
    for timing in (timing for timing in found if timing.option == ""):
        assert timing.time_s or DIED in str(timing.refused), timing


@pytest.mark.runtime
def test_vllm_s_kernels_in_its_own_interpreter() -> None:
    """Timed through the process protocol, and right: the check runs there too."""
    python = interpreter_of("vllm")
    if python == sys.executable and importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm has no environment here: make runtime-vllm")
    names = ["bf16_vllm", "w8a8_vllm"]
    shape = LinearShape(name="x", n=64, k=256, count=2)
    found = probe_kernels([shape], [1, 40], CPU, probes=names, budget_s=120, pythons={"vllm": python})
    assert [timing.refused for timing in found] == [None] * 4
    assert {timing.operator for timing in found} <= {
        "onednn_mm",
        "weight_packed_linear",
        "int8_scaled_mm_with_quant",
        "onednn_scaled_mm",
    }
    check = """
import sys
import numpy as np
from quantadvisor.kernels.problem import Problem, output
from quantadvisor.kernels.processes import DIED, PACKAGE_ROOT
from quantadvisor.kernels.registry import PROBES
from quantadvisor.profiling.environments import interpreter_of
for m, n, k in ((1, 40, 192), (7, 33, 200), (40, 64, 256)):
    shape = Problem(m=m, n=n, k=k, threads=2, copies=2)
    for name, most in (("bf16_vllm", 1e-2), ("w8a8_vllm", 1.5e-2)):
        true = PROBES[name].reference(shape)()
        error = np.linalg.norm(output(PROBES[name].prepare(shape), shape) - true) / np.linalg.norm(true)
        assert error < most, (name, m, n, k, error)
"""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE_ROOT)}
    done = subprocess.run([python, "-P", "-c", check], env=environment, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr[-500:]
