"""What a build is told: the kernels' times, once they are known, where the method weighs widths."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quantadvisor.advisor import builds, pipeline, risk, serve
from quantadvisor.advisor.builds import make
from quantadvisor.advisor.context import CANDIDATE_LIMIT_S, Context
from quantadvisor.advisor.stages import Quiet
from quantadvisor.documents import Device, Gpu, SourceCheckpoint
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling import gpus
from quantadvisor.profiling.device import describe_device
from quantadvisor.profiling.inventory import inventory_from_config

from ..methods.conftest import write_llama
from .documents import workload
from .test_diagnose import INVENTORY
from .test_predict import four_bits, kernels
from .test_serve import served_by


def context_in(out: Path) -> Context:
    (out / "work").mkdir(parents=True)
    (out / "work" / "calibration-128.npy").touch()
    device: Any = SimpleNamespace(kind="cpu")
    return Context(workload(), device, INVENTORY, SourceCheckpoint(model="m", path="p", sha256="0" * 64), out, out, Quiet())


def test_the_times_of_the_kernels_reach_the_build_of_a_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the profile's stages, whose results are planted."""
    run = pipeline.Run.__new__(pipeline.Run)
    run.context = context_in(tmp_path / "out")
    planted: dict[str, Any] = {
        "peaks": run.context.device,
        "statistics": SimpleNamespace(activations=None),
        "baseline": SimpleNamespace(memory=None, phases=()),
        "kernels": SimpleNamespace(timings=(*kernels(), *four_bits()), calibration=None),
    }
    stages: Any = SimpleNamespace(run=lambda name, *_: planted[name])
    run.stages = stages
    for name in ("Profile", "Surveyed"):
        monkeypatch.setattr(pipeline, name, SimpleNamespace)
    monkeypatch.setattr(pipeline, "baseline_name", lambda *_: "none-fp32@onnxruntime")
    monkeypatch.setattr(pipeline, "catalogue_of", lambda _: ())
    monkeypatch.setattr(pipeline, "diagnose", lambda *_: None)

    assert run.context.build("mixed", scheme("w4w8-g64"), "onnxruntime").linear_s == {}
    run.survey()
    for runtime in ("onnxruntime", "onnxruntime-genai"):
        assert run.context.build("mixed", scheme("w4w8-g64"), runtime).linear_s.keys() == {(64, 64, 4), (64, 64, 8)}
    assert run.context.build("rtn", scheme("w4-g64"), "onnxruntime").linear_s == {}


@pytest.mark.parametrize(("spec", "drawn", "told"), [({}, 128, None), ({"samples": 128}, 128, 128), ({"samples": 256}, 256, 256)])
def test_the_number_of_samples_of_the_spec_reaches_the_build(
    spec: dict[str, int], drawn: int, told: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the spec leaves open stays open: each method then takes its own number of the 128."""
    tokens = np.arange(256 * 4).reshape(256, 4)
    monkeypatch.setattr("quantadvisor.advisor.context.calibration_tokens", lambda _, samples, *__: (tokens[:samples], None))
    context = replace(context_in(tmp_path / "out"), workload=workload(calibration=spec))
    (tmp_path / "out" / "work" / "calibration-128.npy").unlink()
    build = context.build("gptq", scheme("w4-g64"), "onnxruntime")
    assert (build.samples, len(np.load(build.calibration))) == (told, drawn)
    assert context.build("gptq", scheme("w4-g64"), "onnxruntime", ghost=True).samples is None


def test_a_candidate_has_one_allowance_and_a_build_the_seconds_of_the_spec(tmp_path: Path) -> None:
    context = context_in(tmp_path / "out")
    mine = context.allowance("rtn-w8-g64@onnxruntime")
    assert mine.seconds == CANDIDATE_LIMIT_S > context.workload.budget.advise_s
    assert replace(context, linear_s={}).allowance("rtn-w8-g64@onnxruntime") is mine
    assert context.allowance("rtn-w4-g64@onnxruntime") is not mine
    patient = replace(context, workload=workload(budget={"advise_s": 9000, "apply_s": 7}), allowances={})
    assert patient.allowance("rtn-w8-g64@onnxruntime").seconds == 9000
    assert patient.build("rtn", scheme("w8-g64"), "onnxruntime").apply_s == 7


@pytest.mark.parametrize(
    ("budget", "most"),
    [({}, {}), ({"linears_ms": 40}, {"most_s": 0.04}), ({"weights_mib": 1}, {"most_bytes": 2**20 - 4 * 64 - 100 * (64 + 4)})],
)
def test_the_bound_of_the_spec_reaches_the_mixture(budget: dict[str, float], most: dict[str, float], tmp_path: Path) -> None:
    """Bytes without what else the scheme stores: 64 other parameters, a tied table of 100 rows of 64 in 8 bit."""
    inventory = INVENTORY.model_copy(update={"other_parameters": 64, "vocabulary": 100, "hidden": 64, "tied_embeddings": True})
    context = replace(context_in(tmp_path / "out"), workload=workload(budget=budget), inventory=inventory)
    assert context.build("mixed", scheme("w4w8-g64"), "onnxruntime").most == most
    assert context.build("mixed", scheme("w4w8-g64-kv8"), "onnxruntime").most == {}
    below = context.build("mixed", scheme("w4w8-g64-kv8"), "onnxruntime").below
    assert below is not None
    assert below.most == most
    assert context.build("rtn", scheme("w4-g64"), "onnxruntime").most == {}


@pytest.mark.slow
def test_a_mixture_keeps_the_bytes_that_the_spec_gives_all_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And wastes less of them than its largest linear gains by 8 bits."""
    import onnx

    monkeypatch.setenv("QUANTADVISOR_CACHE", str(tmp_path / "cache"))
    hf = write_llama(tmp_path / "hf")
    source = SourceCheckpoint(model=str(hf), path=str(hf), sha256="0" * 64)
    inventory = inventory_from_config(json.loads((hf / "config.json").read_text()))
    context = Context(workload(budget={"weights_mib": 0.08}), describe_device(), inventory, source, hf, tmp_path / "out", Quiet())
    build = context.build("mixed", scheme("w4w8-g64"), "onnxruntime")
    for one in (context.build("none", scheme("fp32"), "onnxruntime"), build):
        make(one, np.load(build.calibration))
    tensors = onnx.load(build.out / "scoring.onnx").graph.initializer
    stored = sum(onnx.numpy_helper.to_array(one).nbytes for one in tensors if not one.name.endswith(("cos_cache", "sin_cache")))
    assert 0.08 * 2**20 - 64 * 128 / 2 < stored <= 0.08 * 2**20


SEEING = """
import json, os, sys
for line in sys.stdin:
    print(json.dumps({"failed" if "build" in json.loads(line) else "nothing": os.environ["CUDA_VISIBLE_DEVICES"]}), flush=True)
"""
"""A child that gives what it sees as its reason."""


def test_builds_simulations_and_serve_commands_see_the_device_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "child.py").write_text(SEEING)
    for module in (builds, risk):
        monkeypatch.setattr(module, "CHILD", tmp_path / "child.py")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    gpu = Gpu(name="g", memory_bytes=1 << 36, place="3")
    device = gpus.on_gpu(Device(name="c", cores=1, threads=1, memory_bytes=1 << 36, gpus=(gpu, gpu), fingerprint="f"), 1)
    context = replace(context_in(tmp_path / "out"), device=device)
    build = context.build("rtn", scheme("w8-g64"), "onnxruntime")
    assert context.build_all([build])[build.out].failed == "3"
    seen = gpus.environment(device)
    (simulated,) = risk.simulate_all([risk.Job(tmp_path, {})], np.zeros((1, 8), np.int64), tmp_path, "text", seen)
    assert simulated.nothing == "3"
    says = "import os; print('The capital of France is', os.environ['CUDA_VISIBLE_DEVICES'])"
    monkeypatch.setitem(serve.COMMANDS, "torch", says)
    choice = served_by("torch", "bf16", "cuda")
    served = serve.try_serve("torch", tmp_path / "artifact", choice, sys.executable, "3", seen)
    assert served.verified, served.reason
