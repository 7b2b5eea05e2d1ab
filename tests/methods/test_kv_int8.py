"""The INT8 cache as a method: it leaves every weight of the folder that it goes on top of as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantadvisor.methods import kv_int4, kv_int8
from quantadvisor.methods.fake import Fake, applied, cache_peaks
from quantadvisor.methods.observe import load
from quantadvisor.methods.schemes import scheme

from .conftest import kl, run, session, torch_logits


def test_alone_it_shares_the_weights_of_the_base(llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    notes = kv_int8.apply(llama, scheme("fp32-kv8"), "onnxruntime", tokens[:2], tmp_path / "out", base=base)
    assert notes == ("INT8 cache: one scale per channel (keys: per rotary pair), from 64 calibration tokens",)
    assert (tmp_path / "out" / "model.onnx.data").samefile(base / "model.onnx.data")
    inputs = session(tmp_path / "out", "model.onnx").get_inputs()
    kinds = [value.type for value in inputs if value.name.startswith("past_key_values")]
    assert kinds == ["tensor(int8)"] * 4  # keys and values of two layers


@pytest.mark.parametrize(("cache", "name"), [(kv_int8, "fp32-kv8"), (kv_int4, "fp32-kv4")])
def test_it_says_how_far_it_is(cache: Any, name: str, llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    heard: list[str] = []
    cache.apply(llama, scheme(name), "onnxruntime", tokens[:3], tmp_path / "out", base=base, say=heard.append)
    assert [line.split(",")[0] for line in heard] == [f"sample {number} of 3 read" for number in (1, 2, 3)]
    assert [" s left" in line for line in heard] == [True, True, False]


def test_the_runtime_rounds_as_the_grid_says(llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    """torch with the same grid in its cache: max / 127 of transformers' own keys, by rotary pairs, and values."""
    model = load(llama)
    keys, values = cache_peaks(model, tokens[:2], kv_int4.pair_peaks, kv_int4.channel_peaks)
    made = Fake(model, keys=kv_int4.on_grid(keys, 127), values=kv_int4.on_grid(values, 127), chunk=8)
    with applied(made) as logits:
        theirs = logits(tokens[3]).numpy()
    kv_int8.apply(llama, scheme("fp32-kv8"), "onnxruntime", tokens[:2], tmp_path / "out", base=base)
    ours, exact = run(tmp_path / "out", tokens[3], 8), torch_logits(llama, tokens[3])
    assert kl(theirs, ours) < kl(exact, ours) / 20
    assert 0 < kl(exact, ours) < 0.01


def test_refusals(llama: Path) -> None:
    assert kv_int8.refuse(llama, scheme("fp32-kv8"), "onnxruntime") is None
    assert "writes nothing for openvino" in str(kv_int8.refuse(llama, scheme("fp32-kv8"), "openvino"))
    for name in ("fp32", "w8a8", "fp32-kv4", "w8-g64-kv8"):
        assert f"does not offer {name}" in str(kv_int8.refuse(llama, scheme(name), "onnxruntime"))
