"""The profile's stages, with what measures taken out."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantadvisor.advisor import survey

from .documents import workload


def test_kernels_are_probed_in_the_interpreter_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own build of a runtime says nothing of the user's."""
    theirs = tmp_path / "python"
    theirs.symlink_to(sys.executable)
    seen: dict[str, Any] = {}

    def probe_kernels(*_: Any, **options: Any) -> tuple[()]:
        seen.update(options)
        return ()

    monkeypatch.setattr(survey, "probe_kernels", probe_kernels)
    asked = workload(runtimes=["onnxruntime", {"name": "openvino", "python": str(theirs)}])
    context: Any = SimpleNamespace(workload=asked, inventory=SimpleNamespace(linears=()), cache=tmp_path)
    survey.probe(context, SimpleNamespace())  # type: ignore[arg-type]
    assert (seen["pythons"]["openvino"], seen["pythons"]["onnxruntime"]) == (str(theirs), sys.executable)
