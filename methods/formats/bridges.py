"""Bridges between formats of quantized weights: the codes of one are written as those of another, bit for bit.

    read          GPTQ, AWQ, pack-quantized, MatMulNBits (ONNX) or OpenVINO folder -> integers by Hugging Face names
    dequantized   a GPTQ, AWQ, pack-quantized or bitsandbytes folder -> a plain float32 one: what other runtimes' exporters read
    carry         a folder -> an artifact of another runtime, with the same codes and no rounding of its own (llama.cpp: symmetric
                  ones only, as Q4_0 or Q8_0)
    convert       a folder -> a Hugging Face folder in another layout, likewise; adapters beside its integers come along

Codes and zeros come through unchanged, scales too: float16 and bfloat16 are exact in float32. Only lm_head, which these
checkpoints leave in 16 bit, is rounded to 8 where the other format asks for it. bitsandbytes' NF4 codes are no integers: ONNX
Runtime's MatMulBnb4 takes them, with the same max|w| of each block, and no other format here does.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from quantadvisor.documents.errors import BadInput
from quantadvisor.kernels.bitsandbytes_nf4 import NF4

from ..adapters import FOLDER as ADAPTERS
from ..affine import Floats, Grouped, dequantize_groups
from ..linear_format import OTHERWISE, ROW, LinearFormat, check, group_size, target_of
from ..refusals import ONNX, config
from . import awq, bitsandbytes, gptq, huggingface, pack_quantized

LAYOUTS = {"gptq": gptq, "awq": awq, "compressed-tensors": pack_quantized}
"""Of integers in groups in Hugging Face folders, by quant_method."""
CHECKPOINTS: dict[str, Any] = {**LAYOUTS, "bitsandbytes": bitsandbytes}
GROUPS = (128, 64, 32)
"""That one scale a row is repeated for, where a graph holds groups only: the first that divides every row."""


def read(folder: Path) -> tuple[dict[str, Grouped], LinearFormat]:
    """Integers of every linear of the decoder by Hugging Face names; BadInput for a folder that holds none."""
    if (folder / "scoring.onnx").exists():
        from .onnx_weights import read_integers as read_onnx

        return read_onnx(folder)
    if (folder / "openvino_model.xml").exists():
        from .openvino import read_integers as read_openvino

        return read_openvino(folder)
    form = checkpoint_format(folder)
    if form is bitsandbytes:
        raise BadInput(str(folder), "holds bitsandbytes' codes, which are no integers in groups", "carry NF4 to onnxruntime")
    return form.read(folder)  # type: ignore[no-any-return]


def checkpoint_format(folder: Path) -> Any:
    """The module that reads a Hugging Face folder."""
    kind = huggingface.settings_of(folder).get("quant_method") if (folder / "config.json").exists() else None
    if kind not in CHECKPOINTS:
        known = f"{', '.join(CHECKPOINTS)}, ONNX and OpenVINO"
        raise BadInput(str(folder), f"holds no quantized weights that are read here (quant_method {kind})", f"read are {known}")
    return CHECKPOINTS[kind]


def dequantized(checkpoint: Path, out: Path) -> None:
    """Every linear as the float32 weights that its codes stand for; other tensors in float32."""
    import torch

    form = checkpoint_format(checkpoint)
    found: Mapping[str, Callable[[], Floats]]
    if form is bitsandbytes:
        found = {name: partial(lambda w: w, w) for name, w in form.read(checkpoint).items()}
    else:
        integers, (_, group, _) = form.read(checkpoint)
        found = {
            name: partial(dequantize_groups, codes, scales, zeros, group_size(group, codes.shape[1]))
            for name, (codes, scales, zeros) in integers.items()
        }

    def change(name: str, value: Any) -> Iterable[tuple[str, Any]]:
        suffix = next((suffix for suffix in form.SUFFIXES if name.endswith(f".{suffix}")), "")
        linear = name.removesuffix(f".{suffix}")
        if linear not in found:
            return [(name, value.float() if value.is_floating_point() else value)]
        return [(f"{linear}.weight", torch.from_numpy(found[linear]()))] if suffix == form.SUFFIXES[0] else []

    huggingface.rewrite(checkpoint, out, change, {"dtype": "float32", "quantization_config": None})


def carry(checkpoint: Path, runtime: str, out: Path, base: Path | None = None) -> tuple[str, ...]:
    """The artifact of `runtime` with the checkpoint's codes; returns notes. `base`: the model's export, where there is one.
    BadInput where the runtime's format does not hold them."""
    from ..artifact import base_folder

    nf4 = (checkpoint / "config.json").exists() and checkpoint_format(checkpoint) is bitsandbytes
    if nf4 and runtime not in ONNX:
        what = f"holds bitsandbytes' codes, and {runtime} reads them in no artifact of its own"
        raise BadInput(str(checkpoint), what, "carry NF4 to onnxruntime; torch, vllm and triton read the folder itself")
    notes: tuple[str, ...] = ()
    if nf4:
        write = partial(write_nf4, bitsandbytes.read_nf4(checkpoint))
    else:
        found, form = read(checkpoint)
        if form.group == ROW:
            found, form = in_groups(found, form)
            notes = (f"one scale a row, repeated for its groups of {form.group}",)
        check(form, target_of(runtime), {linear.codes.shape[1] for linear in found.values()})
        write = partial(write_codes, found, form) if runtime == "llama.cpp" else partial(write_integers, found, form, runtime)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".bridge.") as scratch:
        plain = checkpoint
        if base is None or runtime == "llama.cpp":
            dequantized(checkpoint, plain := Path(scratch) / "plain")
        with nullcontext(plain) if runtime == "llama.cpp" else base_folder(plain, runtime, out, base) as source:
            count = write(plain, source, out)
    return (f"{count} linears with the codes of {checkpoint.name}; lm_head rounded to 8 bit", *notes)


def in_groups(found: Mapping[str, Grouped], form: LinearFormat) -> tuple[dict[str, Grouped], LinearFormat]:
    """One scale a row as the scale of each of its groups: the same weights."""
    widths = {linear.codes.shape[1] for linear in found.values()}
    group = next((size for size in GROUPS if not any(width % size for width in widths)), None)
    if group is None:
        what = f"none of {GROUPS} divides all rows that have one scale, {', '.join(map(str, sorted(widths)))} wide"
        raise BadInput("weights", what, OTHERWISE)

    def repeated(linear: Grouped) -> Grouped:
        count = linear.codes.shape[1] // group
        return linear._replace(scales=linear.scales.repeat(count, axis=1), zeros=linear.zeros.repeat(count, axis=1))

    return {name: repeated(linear) for name, linear in found.items()}, form._replace(group=group)


def write_integers(found: Mapping[str, Grouped], form: LinearFormat, runtime: str, plain: Path, source: Path, out: Path) -> int:
    """The artifact of `runtime` from its base `source`; how many linears it holds."""
    from ..artifact import write_grouped
    from ..schemes import scheme

    bits, group, symmetric = form
    wanted = scheme(f"w{bits}-g{group}")
    assert wanted.weights is not None
    wanted = wanted.model_copy(update={"weights": wanted.weights.model_copy(update={"symmetric": symmetric})})
    write_grouped(plain, source, wanted, runtime, out, brought(found))
    return len(found)


def write_codes(found: Mapping[str, Grouped], form: LinearFormat, plain: Path, source: Path, out: Path) -> int:
    """A GGUF file, which is written from the Hugging Face folder: no base is needed."""
    from . import gguf

    if reason := gguf.refuse(config(plain)):
        raise BadInput("model", reason)
    gguf.write_codes(plain, out, brought(found), form.bits)
    return len(found)


def write_nf4(found: Mapping[str, NF4], plain: Path, source: Path, out: Path) -> int:
    from . import onnx

    given = {name: partial(bitsandbytes.in_rows, linear, name) for name, linear in found.items()}
    onnx.quantize_nf4(source, out, given, bitsandbytes.BLOCK)
    return len(found)


def convert(checkpoint: Path, layout: str, out: Path, model_folder: Path | None = None) -> tuple[str, ...]:
    """The checkpoint's integers in a Hugging Face folder of another of LAYOUTS; returns notes. Everything else is taken from the
    checkpoint, or from `model_folder` where that is an artifact of ONNX Runtime or OpenVINO. BadInput where the layout's 16-bit
    scales do not hold its own bit for bit."""
    if layout not in LAYOUTS:
        raise BadInput("format", f"{layout!r} is none that integers are written in", f"known are {', '.join(LAYOUTS)}")
    found, form = read(checkpoint)
    check(form, layout, {linear.codes.shape[1] for linear in found.values()})
    huggingface_folder = (checkpoint / "config.json").exists() and not (checkpoint / "openvino_model.xml").exists()
    if not huggingface_folder and model_folder is None:
        raise BadInput(
            str(checkpoint), "holds no Hugging Face tensors beside its integers", "name the model it was made of: --model"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".bridge.") as scratch:
        if huggingface_folder:
            dequantized(checkpoint, plain := Path(scratch) / "plain")
        else:
            assert model_folder is not None
            plain = model_folder
        written = Path(scratch) / "written"
        LAYOUTS[layout].write(plain, written, brought(found), form)
        back, _ = read(written)
        for name, linear in found.items():
            sides: Iterable[tuple[Any, Any]] = zip(linear, back[name], strict=True)
            if not all(np.array_equal(mine, theirs) for mine, theirs in sides):
                what = f"the scales of {name} are not exact in the 16 bits that {layout} holds them in"
                raise BadInput(str(checkpoint), what, "a bridge rounds nothing: quantize the model itself for it")
        if (checkpoint / ADAPTERS).is_dir():  # what they were trained beside are the same integers
            shutil.copytree(checkpoint / ADAPTERS, written / ADAPTERS)
        written.rename(out)
    return (f"{len(found)} linears with the codes of {checkpoint.name}, everything else in 16 bit",)


def brought(found: Mapping[str, Grouped]) -> dict[str, Callable[[], Grouped]]:
    return {name: partial(found.__getitem__, name) for name in found}
