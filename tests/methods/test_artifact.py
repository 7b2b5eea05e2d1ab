"""What a build says of the calibration: how much of it was read, and that the rest was not."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantadvisor.advisor.builds import Build, applied
from quantadvisor.methods import awq, gptq, layerwise, llm_int8, registry, smoothquant_gptq
from quantadvisor.methods.artifact import tokens_read
from quantadvisor.methods.layerwise import evenly
from quantadvisor.methods.schemes import scheme


def test_samples_that_were_left_out_are_said() -> None:
    calibration = np.zeros((256, 128), np.int64)
    assert tokens_read(calibration, calibration) == "32768 calibration tokens"
    assert tokens_read(layerwise.evenly(calibration, layerwise.SAMPLES), calibration) == (
        "8192 calibration tokens (64 of 256 samples)"
    )


@pytest.mark.parametrize(
    ("method", "bound", "name"),
    [
        (gptq, (layerwise, "SAMPLES"), "w4-g32"),
        (awq, (awq, "SAMPLES"), "w4-g32"),
        (smoothquant_gptq, (layerwise, "SAMPLES"), "w8a8"),
        (llm_int8, (llm_int8, "SAMPLES"), "w8a8-outlier"),
    ],
)
def test_a_method_with_a_bound_of_its_own_says_what_it_left_out(
    method: Any, bound: tuple[Any, str], name: str, llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(*bound, 2)
    notes = method.apply(llama, scheme(name), "onnxruntime", tokens, tmp_path / "out", base=base)
    assert "64 calibration tokens (2 of 4 samples)" in notes[0]


@pytest.mark.parametrize(
    ("method", "bound", "name"), [(gptq, layerwise, "w4-g32"), (awq, awq, "w4-g32"), (smoothquant_gptq, layerwise, "w8a8")]
)
def test_a_number_that_the_user_gives_is_that_which_is_read(
    method: Any,
    bound: Any,
    name: str,
    llama: Path,
    base: Path,
    tokens: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Above the method's own bound and below the calibration: evenly drawn, like those that alone are given."""
    monkeypatch.setattr(bound, "SAMPLES", 2)
    notes = method.apply(llama, scheme(name), "onnxruntime", tokens, tmp_path / "out", base=base, samples=3)
    assert "96 calibration tokens (3 of 4 samples)" in notes[0]
    if method is smoothquant_gptq:  # its scales are of the first samples that it is given
        return
    method.apply(llama, scheme(name), "onnxruntime", evenly(tokens, 3), tmp_path / "same", base=base, samples=3)
    made = sorted(path.name for path in (tmp_path / "out").glob("*.onnx*"))
    assert made
    assert all((tmp_path / "out" / one).read_bytes() == (tmp_path / "same" / one).read_bytes() for one in made)


@pytest.mark.parametrize("name", ["gptq", "obq", "awq", "gguf_imatrix", "smoothquant_gptq"])
def test_a_build_tells_the_number_to_who_would_take_fewer(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, apply = [], registry.method(name).apply

    @wraps(apply)
    def listening(*_: Any, samples: int | None = None, **__: Any) -> tuple[str, ...]:
        told.append(samples)
        return ()

    monkeypatch.setattr(registry.method(name), "apply", listening)
    build = Build(method=name, scheme=scheme("w4-g64"), runtime="onnxruntime", model_folder=tmp_path, out=tmp_path / "out",
                  calibration=tmp_path / "tokens.npy", samples=256)  # fmt: skip
    applied(build, np.zeros((256, 8), np.int64))
    assert told == [256]
