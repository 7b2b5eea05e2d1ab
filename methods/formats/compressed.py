"""compressed-tensors folders for vLLM: a Hugging Face folder in bfloat16 whose config says how its linears are stored.

export_base   Hugging Face folder -> the same, in float32
randomise     that folder -> the same with random weights: what ghosts are made of
quantize_w8a8 that folder -> int8 weights per output channel; activations int8 per token while it runs; lm_head bfloat16
quantize_fp8  the same in E4M3

Formats `int-quantized` and `float-quantized` of vllm-project/compressed-tensors 0.17: `weight` int8 or float8_e4m3fn
[N, K] and `weight_scale` [N, 1] beside it. The config declares every Linear so; those whose names end in `_proj` are all of them
in the architectures of rescale.MODEL_TYPES, and methods refuse the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..affine import quantize_channels
from ..rescale import Pair, Scale
from .folders import link_folder
from .huggingface import Named, in_half, rewrite


def export_base(model_folder: Path, out: Path) -> None:
    link_folder(model_folder, out)


def randomise(base: Path, out: Path, seed: int = 0) -> None:
    """N(0, 0.02) in the place of every matrix."""
    import torch

    draw = torch.Generator().manual_seed(seed)

    def drawn(name: str, w: Any) -> list[Named]:
        return [(name, torch.empty_like(w).normal_(0, 0.02, generator=draw) if w.ndim > 1 else w)]

    rewrite(base, out, drawn, {})


def quantize_w8a8(base: Path, out: Path, scales: Iterable[tuple[Pair, Scale]] = ()) -> None:
    """`scales` are moved first, as SmoothQuant found them."""
    rewrite(base, out, stored, {"dtype": "bfloat16", "quantization_config": W8A8}, scales)


def stored(name: str, weight: Any) -> list[Named]:
    """A linear's weight as its codes and scales; every other tensor in bfloat16."""
    import torch

    if not name.endswith("_proj.weight"):
        return [in_half(name, weight, "bfloat16")]
    codes, scale = quantize_channels(weight.float().numpy())
    stem = name.removesuffix("weight")
    return [(name, torch.from_numpy(codes)), (f"{stem}weight_scale", torch.from_numpy(scale[:, None]).to(torch.bfloat16))]


def quantize_fp8(base: Path, out: Path) -> None:
    rewrite(base, out, stored_fp8, {"dtype": "bfloat16", "quantization_config": FP8})


def stored_fp8(name: str, weight: Any) -> list[Named]:
    """A linear's weight in E4M3 with S = max|w| / 448 of each row; every other tensor in bfloat16."""
    import torch

    if not name.endswith("_proj.weight"):
        return [in_half(name, weight, "bfloat16")]
    scale = (weight.float().abs().amax(1, keepdim=True).clamp_min(1e-12) / E4M3_MAX).to(torch.bfloat16)
    codes = (weight.float() / scale.float()).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return [(name, codes), (f"{name.removesuffix('weight')}weight_scale", scale)]


E4M3_MAX = 448.0
INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True}


def settings(format_name: str, number: dict[str, Any]) -> dict[str, Any]:
    """`quantization_config` of weights per channel and activations per token, both in that number format."""
    return {
        "quant_method": "compressed-tensors",
        "format": format_name,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": number | {"strategy": "channel", "dynamic": False},
                "input_activations": number | {"strategy": "token", "dynamic": True},
            }
        },
    }


W8A8 = settings("int-quantized", INT8)
FP8 = settings("float-quantized", FLOAT8)
"""Its words: https://github.com/vllm-project/compressed-tensors, quantization/quant_args.py and quant_config.py."""
