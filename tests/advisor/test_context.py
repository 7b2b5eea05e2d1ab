"""What a build is told: the kernels' times, once they are known, where the method weighs widths."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantadvisor.advisor import pipeline
from quantadvisor.advisor.context import Context
from quantadvisor.advisor.stages import Quiet
from quantadvisor.documents import SourceCheckpoint
from quantadvisor.methods.schemes import scheme

from .documents import workload
from .test_diagnose import INVENTORY
from .test_predict import four_bits, kernels


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
