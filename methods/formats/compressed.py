"""compressed-tensors folders for vLLM: a Hugging Face folder in bfloat16 whose config says how its linears are stored.

export_base   Hugging Face folder -> the same, in float32
randomise     that folder -> the same with random weights: what ghosts are made of
quantize_w8a8 that folder -> int8 weights per output channel; activations int8 per token while it runs; lm_head bfloat16

Format `int-quantized` of vllm-project/compressed-tensors 0.17: `weight` int8 [N, K] and `weight_scale` [N, 1] beside it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..affine import quantize_channels
from ..rescale import Pair, Scale, move
from .folders import link_folder, new_folder

State = dict[str, Any]
"""torch tensors by Hugging Face names."""


def export_base(model_folder: Path, out: Path) -> None:
    link_folder(model_folder, out)


def randomise(base: Path, out: Path, seed: int = 0) -> None:
    """N(0, 0.02) in the place of every matrix."""
    import torch

    draw = torch.Generator().manual_seed(seed)

    def drawn(state: State) -> State:
        return {n: torch.empty_like(w).normal_(0, 0.02, generator=draw) if w.ndim > 1 else w for n, w in state.items()}

    rewrite(base, out, drawn, {})


def quantize_w8a8(base: Path, out: Path, scales: Iterable[tuple[Pair, Scale]] = ()) -> None:
    """`scales` are moved first, as SmoothQuant found them."""
    moves = list(scales)

    def quantized(state: State) -> State:
        for pair, scale in moves:
            move(state, pair, scale)
        return in_bf16({name: tensor for n, w in state.items() for name, tensor in stored(n, w)})

    rewrite(base, out, quantized, {"dtype": "bfloat16", "quantization_config": W8A8})


def stored(name: str, weight: Any) -> Iterable[tuple[str, Any]]:
    """A linear's weight as its codes and scales; every other tensor as it is."""
    import torch

    if not name.endswith("_proj.weight"):
        return [(name, weight)]
    codes, scale = quantize_channels(weight.float().numpy())
    stem = name.removesuffix("weight")
    return [(name, torch.from_numpy(codes)), (f"{stem}weight_scale", torch.from_numpy(np.float32(scale[:, None])))]


def in_bf16(state: State) -> State:
    import torch

    return {name: value.to(torch.bfloat16) if value.is_floating_point() else value for name, value in state.items()}


def rewrite(source: Path, out: Path, change: Callable[[State], State], settings: dict[str, Any]) -> None:
    """The folder again: its tensors through `change`, whole, in one file, its config with `settings`."""
    from safetensors.torch import load_file, save_file

    with new_folder(out) as work:
        state: State = {}
        for path in sorted(source.iterdir()):
            if path.suffix == ".safetensors":
                state |= load_file(path)
            elif path.name == "config.json":
                config = json.loads(path.read_text()) | settings
                (work / path.name).write_text(json.dumps(config, indent=2) + "\n")
            elif path.is_file() and path.name not in ("model.safetensors.index.json", "built.json"):
                shutil.copyfile(path, work / path.name)
        save_file(change(state), work / "model.safetensors", metadata={"format": "pt"})


INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
W8A8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": INT8 | {"strategy": "channel", "dynamic": False},
            "input_activations": INT8 | {"strategy": "token", "dynamic": True},
        }
    },
}
"""Its words: https://github.com/vllm-project/compressed-tensors, quantization/quant_args.py and quant_config.py."""
