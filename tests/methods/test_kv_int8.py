"""The INT8 cache as a method: alone it leaves every weight as it is; on top of others it is their own artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantadvisor.methods import dynamic_int8, kv_int8, rtn
from quantadvisor.methods.schemes import scheme

from .conftest import session


def test_alone_it_shares_the_weights_of_the_base(llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    notes = kv_int8.apply(llama, scheme("fp32-kv8"), "onnxruntime", tokens[:2], tmp_path / "out", base=base)
    assert notes == ("INT8 cache: one scale per channel (keys: per rotary pair), from 64 calibration tokens",)
    assert (tmp_path / "out" / "model.onnx.data").samefile(base / "model.onnx.data")
    inputs = session(tmp_path / "out", "model.onnx").get_inputs()
    kinds = [value.type for value in inputs if value.name.startswith("past_key_values")]
    assert kinds == ["tensor(int8)"] * 4  # keys and values of two layers


@pytest.mark.parametrize(("other", "name"), [(rtn, "w8-g64-kv8"), (dynamic_int8, "w8a8-kv8")])
def test_on_top_of_another_it_writes_what_that_one_writes(
    other: Any, name: str, llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path
) -> None:
    for module, out in ((kv_int8, "ours"), (other, "theirs")):
        module.apply(llama, scheme(name), "onnxruntime", tokens[:2], tmp_path / out, base=base)
    for path in (tmp_path / "theirs").iterdir():
        assert path.read_bytes() == (tmp_path / "ours" / path.name).read_bytes(), path.name


def test_refusals(llama: Path) -> None:
    for name in ("fp32-kv8", "w8-g64-kv8", "w8a8-kv8"):
        assert kv_int8.refuse(llama, scheme(name), "onnxruntime") is None
        assert "writes nothing for openvino" in str(kv_int8.refuse(llama, scheme(name), "openvino"))
    for name in ("fp32", "w8a8", "fp32-kv4", "w3-g64-kv8"):
        assert f"does not offer {name}" in str(kv_int8.refuse(llama, scheme(name), "onnxruntime"))
