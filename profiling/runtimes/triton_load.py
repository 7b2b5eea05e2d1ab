"""A checkpoint as a transformers model on our Triton kernels: quantized linears and attention swapped in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def settings(path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    return found


def quantization(path: str) -> dict[str, Any]:
    """Of a folder's config; empty where it has none."""
    return settings(path).get("quantization_config") or {}


def swapped(path: str, device: str) -> Any:
    """The model in 16 bits on the device, each quantized linear by a kernel."""
    import torch
    from safetensors.torch import load_file
    from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

    from quantadvisor.kernels import triton_modules

    # by name at each call, so that who observes it can wrap it
    AttentionInterface.register(triton_modules.NAME, lambda *given, **more: triton_modules.attention(*given, **more))
    config = AutoConfig.from_pretrained(path)
    stored = quantization(path)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    dtype = torch.float16 if settings(path).get("dtype", settings(path).get("torch_dtype")) == "float16" else torch.bfloat16
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=triton_modules.NAME)
    state: dict[str, Any] = {}
    for file in sorted(Path(path).glob("*.safetensors")):
        state |= load_file(file)
    for name in sorted(one.removesuffix(mark) for one in state for mark in triton_modules.MARKS if one.endswith(mark)):
        own = {key.removeprefix(f"{name}."): state.pop(key).to(device) for key in list(state) if key.startswith(f"{name}.")}
        bias = own.pop("bias", None)
        parent, _, last = name.rpartition(".")
        made = triton_modules.linear_of(own, stored, None if bias is None else bias.to(dtype), dtype)
        setattr(model.get_submodule(parent), last, made)
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if unexpected or set(missing) - tied:
        raise ValueError(
            f"{path}: tensors do not fit the model: missing {sorted(set(missing) - tied)[:3]}, more {unexpected[:3]}"
        )
    model.tie_weights()
    return model.to(device).eval()


def problems_of(model: Any, kind: str) -> list[tuple[str, tuple[int, int, int]]]:
    """What is timed on a GPU that has not met it before: each linear and its cache's attention, at several numbers of rows."""
    from quantadvisor.kernels.triton_tuning import ATTENDING, ATTENTION_ROWS, ROWS

    config = model.config
    heads, held = config.num_attention_heads, config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    linears = dict.fromkeys(problem for one in model.modules() if (problem := getattr(one, "problem", None)))
    attending = [] if kind == "16 bit" else [(f"{ATTENDING}{kind}", (rows, heads // held, width)) for rows in ATTENTION_ROWS]
    return [*((name, (rows, n, k)) for name, n, k in linears for rows in ROWS), *attending]
