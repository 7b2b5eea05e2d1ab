"""What a build says of the calibration: how much of it was read, and that the rest was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantadvisor.methods import awq, gptq, layerwise, llm_int8, smoothquant
from quantadvisor.methods.artifact import tokens_read
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
        (smoothquant, (smoothquant, "RANGE_SAMPLES"), "w8a8"),
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
