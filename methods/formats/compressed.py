"""compressed-tensors folders for vLLM: a Hugging Face folder in bfloat16 whose config says how its linears are stored.

export_base   Hugging Face folder -> the same, in float32
randomise     that folder -> the same with random weights: what ghosts are made of
quantize_w8a8 that folder -> int8 weights per output channel; activations int8 per token while it runs; lm_head bfloat16
write_w8a8    the same from integers that a method has rounded
quantize_fp8  the same in E4M3, scaled by rows, in squares of 128 or as a whole, static scales of activations beside
scale_cache   that folder -> in bfloat16, with a scale of the keys and one of the values of every layer for a cache in E4M3

Formats `int-quantized` and `float-quantized` of vllm-project/compressed-tensors 0.17: `weight` int8 or float8_e4m3fn
[N, K] and `weight_scale` [N, 1] beside it ([1] of a tensor, [N / 128, K / 128] of squares), and `input_scale` [1] where it is
fixed. The config declares every Linear so; those whose names end in `_proj` are all of them in the architectures of
rescale.MODEL_TYPES, and methods refuse the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..affine import Grouped, quantize_channels, signed_channels
from ..grids import LARGEST
from ..rescale import Pair, Scale
from .folders import link_folder
from .huggingface import Named, in_half, rewrite, write_integers


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


def write_w8a8(base: Path, out: Path, given: Mapping[str, Callable[[], Grouped]],
               scales: Iterable[tuple[Pair, Scale]] = ()) -> None:  # fmt: skip
    """Every linear of the decoder in integers of 8 bits about 128, one scale a row; `scales` are moved in the rest."""
    write_integers(base, out, given, stored_integers, "bfloat16", {"quantization_config": W8A8}, scales)


def stored_integers(given: Grouped) -> dict[str, Any]:
    codes, scale = signed_channels(given)
    return {"weight": codes, "weight_scale": scale[:, None]}


def quantize_fp8(base: Path, out: Path, kind: str = "channel", peaks: Mapping[str, float] | None = None) -> None:
    """`kind`: one of FP8. `peaks`: of `static`, the largest |x| that each linear reads."""
    stored = partial(stored_fp8, kind=kind, peaks=peaks or {})
    rewrite(base, out, stored, {"dtype": "bfloat16", "quantization_config": FP8[kind]})


def stored_fp8(name: str, weight: Any, kind: str, peaks: Mapping[str, float]) -> list[Named]:
    """A linear's weight in E4M3 with S = max|w| / 448 of each row, square or all of it; every other tensor in bfloat16."""
    import torch

    if not name.endswith("_proj.weight"):
        return [in_half(name, weight, "bfloat16")]
    stem, w = name.removesuffix("weight"), weight.float()
    size = {"channel": (1, w.shape[1]), "block": (BLOCK, BLOCK)}.get(kind, w.shape)
    rows, columns = (-(-length // each) for length, each in zip(w.shape, size, strict=True))
    whole = torch.nn.functional.pad(w, (0, columns * size[1] - w.shape[1], 0, rows * size[0] - w.shape[0]))
    parts = whole.reshape(rows, size[0], columns, size[1])
    scale = (parts.abs().amax((1, 3)).clamp_min(1e-12) / E4M3_MAX).to(torch.bfloat16)
    codes = (parts / scale.float()[:, None, :, None]).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    made = codes.reshape(whole.shape)[: w.shape[0], : w.shape[1]]
    found = [(name, made), (f"{stem}weight_scale", scale.reshape(1) if kind in ("tensor", "static") else scale)]
    if kind == "static":
        found.append((f"{stem}input_scale", torch.tensor([peaks[stem.removesuffix(".")] / E4M3_MAX]).to(torch.bfloat16)))
    return found


def scale_cache(base: Path, out: Path, keys: Mapping[int, float], values: Mapping[int, float]) -> None:
    """`keys` and `values`: by layer, the scale S of an E4M3 cache's codes: float32 [1] beside the layer's k_proj and v_proj."""
    import torch

    scales: dict[str, list[Named]] = {}
    for side, found in (("k", keys), ("v", values)):
        for layer, scale in found.items():
            stem = f"model.layers.{layer}.self_attn.{side}"
            scales[f"{stem}_proj.weight"] = [(f"{stem}_scale", torch.tensor([scale]))]

    def beside(name: str, weight: Any) -> list[Named]:
        return [in_half(name, weight, "bfloat16"), *scales.get(name, [])]

    rewrite(base, out, beside, {"dtype": "bfloat16", "quantization_config": FP8_CACHE})


E4M3_MAX = LARGEST["e4m3"]
BLOCK = 128
INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True}


def settings(format_name: str, number: dict[str, Any], weights: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """`quantization_config` of weights and activations so scaled, both in that number format."""
    return {
        "quant_method": "compressed-tensors",
        "format": format_name,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": number | weights | {"dynamic": False},
                "input_activations": number | inputs,
            }
        },
    }


CHANNEL, TENSOR, SQUARES = (
    {"strategy": "channel"},
    {"strategy": "tensor"},
    {"strategy": "block", "block_structure": [BLOCK, BLOCK]},
)
TOKEN, RUNS = {"strategy": "token", "dynamic": True}, {"strategy": "group", "group_size": BLOCK, "dynamic": True}
W8A8 = settings("int-quantized", INT8, CHANNEL, TOKEN)
FP8 = {
    "channel": settings("float-quantized", FLOAT8, CHANNEL, TOKEN),
    "tensor": settings("float-quantized", FLOAT8, TENSOR, TENSOR | {"dynamic": True}),
    "static": settings("float-quantized", FLOAT8, TENSOR, TENSOR | {"dynamic": False}),
    "block": settings("float-quantized", FLOAT8, SQUARES, RUNS),
}
FP8_CACHE = {
    "quant_method": "compressed-tensors",
    "format": "dense",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {},
    "kv_cache_scheme": FLOAT8 | {"strategy": "tensor", "dynamic": False},
}
"""Its words: https://github.com/vllm-project/compressed-tensors, quantization/quant_args.py and quant_config.py."""
