"""The INT4 cache as ONNX Runtime reads it, against torch with the same grid in its cache."""

from pathlib import Path

import numpy as np
import pytest
import torch

from quantadvisor.methods import kv_int4, kv_int8, rtn
from quantadvisor.methods.schemes import scheme

from .conftest import kl, session, torch_logits


def run4(folder: Path, row: np.ndarray, chunk: int) -> np.ndarray:
    """Logits [positions, V]; the cache between chunks is what the graph gave: two codes in a byte."""
    opened = session(folder, "scoring.onnx")
    past = {v.name: np.zeros((1, v.shape[1], 0, v.shape[3]), np.uint8) for v in opened.get_inputs() if v.name.startswith("past")}
    names, parts = [value.name for value in opened.get_outputs()], []
    for start in range(0, len(row), chunk):
        part = row[start : start + chunk]
        mask = np.ones((1, start + len(part)), np.int64)
        found = dict(zip(names, opened.run(names, {"input_ids": part[None], "attention_mask": mask, **past}), strict=True))
        parts.append(found["logits"][0])
        past = {key: found[key.replace("past_key_values", "present")] for key in past}
    assert all(value.dtype == np.uint8 and value.shape[3] == 8 for value in past.values())
    return np.concatenate(parts)


def test_the_runtime_rounds_as_the_grid_says(llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    """The simulation, whose scales are by torch from transformers' own cache."""
    from quantadvisor.methods.fake import applied
    from quantadvisor.methods.observe import load

    notes = kv_int4.apply(llama, scheme("fp32-kv4"), "onnxruntime", tokens[:2], tmp_path / "out", base=base)
    assert "INT4 cache" in notes[0]
    made = kv_int4.fake(load(llama), scheme("fp32-kv4"), tokens[:2])
    with applied(made._replace(chunk=8)) as logits:
        theirs = logits(tokens[3]).numpy()
    ours, exact = run4(tmp_path / "out", tokens[3], 8), torch_logits(llama, tokens[3])
    assert kl(theirs, ours) < kl(exact, ours) / 20
    assert 0 < kl(exact, ours) < 0.5


def test_scales_are_the_artifacts(llama: Path, base: Path, tokens: np.ndarray) -> None:
    """A value of a multiple of its scale stays, and seven is the most: bounds as ONNX Runtime's prefills say."""
    from quantadvisor.methods.formats import onnx
    from quantadvisor.methods.observe import load

    bounds = onnx.calibrate_cache(base, tokens[:2])
    made = kv_int4.fake(load(llama), scheme("fp32-kv4"), tokens[:2])
    for kind, rounded in (("key", made.keys), ("value", made.values)):
        assert rounded is not None
        top = torch.from_numpy(bounds[f"past_key_values.1.{kind}"]).reshape(1, 2, 1, 16)
        steps = torch.arange(-7, 8).reshape(1, 1, -1, 1)
        torch.testing.assert_close(rounded(1, top * steps / 7), top * steps / 7, rtol=1e-4, atol=0)
        torch.testing.assert_close(rounded(1, top * 3.4 / 7), top * 3 / 7, rtol=1e-4, atol=0)
        torch.testing.assert_close(rounded(1, top * 2), top, rtol=1e-4, atol=0)


def test_each_token_of_a_head_has_its_own_range(llama: Path) -> None:
    from quantadvisor.methods.observe import load

    made = kv_int4.fake(load(llama), scheme("bf16-kv4-head"), np.zeros((0, 0), np.int64))
    x = torch.tensor([[[[0.0, 1.0, 15.0], [0.0, 0.1, 1.5]]]])
    assert made.keys is not None
    torch.testing.assert_close(made.keys(0, x), x)


def test_it_takes_half_the_bytes_and_costs_more(llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    from .conftest import run

    rtn.apply(llama, scheme("w8-g64"), "onnxruntime", tokens[:2], tmp_path / "plain", base=base)
    for module, name, out in ((kv_int4, "w8-g64-kv4", "four"), (kv_int8, "w8-g64-kv8", "eight")):
        module.apply(llama, scheme(name), "onnxruntime", tokens[:2], tmp_path / out, base=tmp_path / "plain")
    exact = torch_logits(llama, tokens[3])
    assert kl(exact, run4(tmp_path / "four", tokens[3], 8)) > kl(exact, run(tmp_path / "eight", tokens[3], 8))


@pytest.mark.parametrize("runtime", ["torch", "openvino", "llama.cpp", "onnxruntime-genai"])
def test_refusals(runtime: str, llama: Path) -> None:
    assert "writes nothing for" in str(kv_int4.refuse(llama, scheme("fp32-kv4"), runtime))
