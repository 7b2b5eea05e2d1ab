"""Integers of every linear of the tiny Llama, in several widths and with every odd value: what formats must bring back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from quantadvisor.methods.affine import Grouped, quantize_groups
from quantadvisor.methods.linear_format import group_size
from quantadvisor.methods.rescale import pairs


def half(values: np.ndarray, kind: str) -> np.ndarray:
    """float32 rounded to float16 or bfloat16 and back."""
    import torch

    return torch.from_numpy(values).to(getattr(torch, kind)).float().numpy()


def integers(folder: Path, bits: int, group: int, symmetric: bool, kind: str) -> dict[str, Grouped]:
    """Rounded to nearest, with scales that `kind` (float16 or bfloat16) holds."""
    state = load_file(folder / "model.safetensors")
    names = [name for pair in pairs(json.loads((folder / "config.json").read_text())) for name in pair.targets]
    found = {}
    for name in names:
        w = state[f"{name}.weight"]
        codes, scales, zeros = quantize_groups(w, bits, group_size(group, w.shape[1]), symmetric)
        codes[0, :3], zeros[:1, :1] = (0, (1 << bits) - 1, 1), zeros[:1, :1]
        if not symmetric:
            zeros[0, 0], zeros[1, 0] = 0, (1 << bits) - 1
        found[name] = Grouped(codes, half(scales, kind), zeros)
    return found


def brought(found: dict[str, Grouped]) -> dict[str, Callable[[], Grouped]]:
    return {name: lambda one=one: one for name, one in found.items()}  # type: ignore[misc]


def same(a: dict[str, Grouped], b: dict[str, Grouped]) -> None:
    assert set(a) == set(b)
    for name, one in a.items():
        for mine, theirs, dtype in zip(one, b[name], (np.uint8, np.float32, np.uint8), strict=True):
            assert mine.dtype == theirs.dtype == dtype
            np.testing.assert_array_equal(mine, theirs, err_msg=name)


def weights(found: dict[str, Grouped], group: int) -> dict[str, np.ndarray]:
    from quantadvisor.methods.affine import dequantize_groups

    return {name: dequantize_groups(*one, group_size(group, one.codes.shape[1])) for name, one in found.items()}


def rounded_model(folder: Path, found: dict[str, np.ndarray], row: np.ndarray, dtype: str = "float32") -> np.ndarray:
    """Logits [S, V] of the model of `folder` in `dtype`, with `found` in the place of its linears."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, w in found.items():
            modules[name].weight.copy_(torch.from_numpy(w))
        return model(torch.from_numpy(row)[None]).logits[0].float().numpy()
