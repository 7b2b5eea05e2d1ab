"""Bridges between formats of integer weights: the integers of one are written as those of another, bit for bit.

    read          GPTQ, AWQ, pack-quantized, MatMulNBits (ONNX) or OpenVINO folder -> integers by Hugging Face names
    dequantized   a GPTQ, AWQ or pack-quantized folder -> a plain float32 one: what the other runtimes' exporters read
    carry         such a folder -> an artifact of another runtime, with the same integers and no rounding of its own

Codes and zeros come through unchanged, scales too: float16 and bfloat16 are exact in float32. Only lm_head, which these
checkpoints leave in 16 bit, is rounded to 8 where the other format asks for it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from quantadvisor.documents.errors import BadInput

from ..affine import Grouped, dequantize_groups
from . import awq, gptq, huggingface, pack_quantized

LinearFormat = tuple[int, int, bool]
"""(bits, group size, symmetric)"""
CHECKPOINTS = {"gptq": gptq, "awq": awq, "compressed-tensors": pack_quantized}


def read(folder: Path) -> tuple[dict[str, Grouped], LinearFormat]:
    """Integers of every linear of the decoder by Hugging Face names; BadInput for a folder that holds none."""
    if (folder / "scoring.onnx").exists():
        from .onnx_weights import read_integers as read_onnx

        return read_onnx(folder)
    if (folder / "openvino_model.xml").exists():
        from .openvino import read_integers as read_openvino

        return read_openvino(folder)
    return checkpoint_format(folder).read(folder)  # type: ignore[no-any-return]


def checkpoint_format(folder: Path) -> Any:
    """The module that reads a Hugging Face folder."""
    kind = huggingface.settings_of(folder).get("quant_method") if (folder / "config.json").exists() else None
    if kind not in CHECKPOINTS:
        known = f"{', '.join(CHECKPOINTS)}, ONNX and OpenVINO"
        raise BadInput(str(folder), f"holds no integer weights that are read here (quant_method {kind})", f"read are {known}")
    return CHECKPOINTS[kind]


def dequantized(checkpoint: Path, out: Path) -> None:
    """Every linear as the float32 weights that its integers stand for; other tensors in float32."""
    import torch

    form = checkpoint_format(checkpoint)
    found: dict[str, Grouped]
    found, (_, group, _) = form.read(checkpoint)
    first = form.SUFFIXES[0]

    def change(name: str, value: Any) -> Iterable[tuple[str, Any]]:
        linear, _, suffix = name.rpartition(".")
        if linear not in found or suffix not in form.SUFFIXES:
            return [(name, value.float() if value.is_floating_point() else value)]
        return [(f"{linear}.weight", torch.from_numpy(dequantize_groups(*found[linear], group)))] if suffix == first else []

    huggingface.rewrite(checkpoint, out, change, {"dtype": "float32", "quantization_config": None})


def carry(checkpoint: Path, runtime: str, out: Path, base: Path | None = None) -> tuple[str, ...]:
    """The artifact of `runtime` with the checkpoint's integers; returns notes. `base`: the model's export, where there is one."""
    from ..artifact import base_folder, write_grouped
    from ..schemes import scheme

    found, (bits, group, symmetric) = read(checkpoint)
    wanted = scheme(f"w{bits}-g{group}")
    assert wanted.weights is not None
    wanted = wanted.model_copy(update={"weights": wanted.weights.model_copy(update={"symmetric": symmetric})})
    given = {name: partial(found.__getitem__, name) for name in found}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".bridge.") as scratch:
        plain = checkpoint
        if base is None:
            dequantized(checkpoint, plain := Path(scratch) / "plain")
        with base_folder(plain, runtime, out, base) as source:
            write_grouped(plain, source, wanted, runtime, out, given)
    return (f"{len(found)} linears with the integers of {checkpoint.name}; lm_head rounded to 8 bit",)
