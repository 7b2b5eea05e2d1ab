"""bitsandbytes' state dict: NF4 (with or without double quantization) and INT8 linears, written and read.

NF4: as kernels/bitsandbytes_nf4.py says, which reads it; double quantization in dynamic codes and blocks of 256.
INT8:  weight int8 [N, K] = round(127 w / max|row|); SCB float32 [N] = max|row|; weight_format uint8, 0: rows as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantadvisor.documents.errors import BadInput
from quantadvisor.kernels.bitsandbytes_nf4 import NF4, STATE, restored

from ..affine import Floats
from ..codebooks import Blocks, dynamic, nearest
from .huggingface import Change, in_half, read_linears, rewrite, settings_of

BLOCK, NESTED_BLOCK = 64, 256
NF4_VALUES = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip
"""As printed in QLoRA's appendix E: those of `codebooks.normal_floats`, which differ in the seventh digit."""
NF4_SUFFIXES = ("weight", "weight.absmax", "weight.quant_map", STATE, "weight.nested_absmax", "weight.nested_quant_map")
INT8_SUFFIXES = ("SCB", "weight", "weight_format")
SUFFIXES = (*NF4_SUFFIXES, "SCB", "weight_format")


def write(base: Path, out: Path, linears: Iterable[str], kind: str, double: bool = True) -> None:
    """`linears` in `kind` (nf4 or int8), everything else in bfloat16 (int8: float16, which its kernels compute in)."""
    import torch

    chosen = {f"{name}.weight" for name in linears}
    half = "bfloat16" if kind == "nf4" else "float16"

    def change(name: str, weight: Any) -> Iterable[tuple[str, Any]]:
        if name not in chosen:
            return [in_half(name, weight, half)]
        w = weight.float().numpy()
        arrays = stored_nf4(w, double) if kind == "nf4" else stored_int8(w)
        stem = name.removesuffix("weight")
        return [(stem + suffix, torch.from_numpy(array)) for suffix, array in arrays.items()]

    checked: Change = change
    rewrite(base, out, checked, {"dtype": half, "quantization_config": settings(kind, double)})


def settings(kind: str, double: bool) -> dict[str, Any]:
    if kind not in ("nf4", "int8"):
        raise BadInput("bitsandbytes", f"number type {kind!r} is not written", "use nf4 or int8")
    if kind == "int8":
        return {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False, "llm_int8_threshold": 6.0,
                "llm_int8_skip_modules": ["lm_head"]}  # fmt: skip
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": double,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": ["lm_head"],
    }


def stored_nf4(w: Floats, double: bool = True, dtype: str = "bfloat16") -> dict[str, NDArray[Any]]:
    """w: [N, K], N K divisible by the block. `dtype`: what readers dequantize to."""
    import torch

    if w.size % BLOCK:
        raise BadInput(
            "bitsandbytes", f"{w.shape[0]} x {w.shape[1]} weights are no whole blocks of {BLOCK}", "use another format"
        )
    blocks = w.reshape(-1, BLOCK)
    absmax = np.abs(blocks).max(axis=1).astype(np.float32)
    unit = (blocks * (1 / np.where(absmax > 0, absmax, np.float32(1)))[:, None]).astype(np.float32)
    codes = nearest(unit, NF4_VALUES).reshape(-1)
    state = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": dtype, "shape": list(w.shape)}
    arrays = {"weight": (codes[0::2] << 4 | codes[1::2])[:, None], "weight.quant_map": NF4_VALUES.astype(np.float32)}
    if not double:
        return arrays | {"weight.absmax": absmax, STATE: as_bytes(state)}
    offset = torch.from_numpy(absmax).mean().numpy()  # codes hang on the order in which it is summed
    nested = np.zeros(-(-len(absmax) // NESTED_BLOCK) * NESTED_BLOCK, np.float32)
    nested[: len(absmax)] = absmax - offset
    rows = nested.reshape(-1, NESTED_BLOCK)
    bound = np.abs(rows).max(axis=1)
    inner = (rows * (1 / np.where(bound > 0, bound, np.float32(1)))[:, None]).astype(np.float32)
    state |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": float(offset)}
    return arrays | {
        "weight.absmax": nearest(inner, dynamic(8)).reshape(-1)[: len(absmax)],
        "weight.nested_absmax": bound,
        "weight.nested_quant_map": dynamic(8).astype(np.float32),
        STATE: as_bytes(state),
    }


def weights_of(found: NF4) -> Floats:
    """float32 [N, K]: what the codes stand for."""
    values = NF4_VALUES.astype(np.float32)[found.codes.reshape(len(found.absmax), -1)] * found.absmax[:, None]
    return values.reshape(found.codes.shape)


def stored_int8(w: Floats) -> dict[str, NDArray[Any]]:
    bound = np.abs(w).max(axis=1)
    inverse = np.float32(127) * (np.float32(1) / np.where(bound > 0, bound, np.float32(1)))  # as torch divides a number
    codes = np.rint(w * inverse[:, None]).astype(np.int8)
    return {"weight": codes, "SCB": bound, "weight_format": np.array(0, np.uint8)}


def as_bytes(state: Mapping[str, Any]) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(dict(state)).encode(), np.uint8).copy()


def read(folder: Path) -> dict[str, Floats]:
    """{linear: what its codes stand for, float32 [N, K]} of a folder of either kind."""
    if not settings_here(folder).get("load_in_8bit"):
        return {name: weights_of(linear) for name, linear in read_nf4(folder).items()}
    stored = read_linears(folder, INT8_SUFFIXES)
    return {n: a["weight"].astype(np.float32) * (a["SCB"] / np.float32(127))[:, None] for n, a in stored.items()}


def read_nf4(folder: Path) -> dict[str, NF4]:
    """Codes of every linear; BadInput for a folder in INT8, or in bitsandbytes' other 4-bit type."""
    found = settings_here(folder)
    if not found.get("load_in_4bit") or found.get("bnb_4bit_quant_type") != "nf4":
        raise BadInput(
            str(folder), "is a bitsandbytes checkpoint of another type than NF4", "see quantization_config in its config.json"
        )
    stored = {n: a for n, a in read_linears(folder, NF4_SUFFIXES).items() if STATE in a}
    return {name: restored(arrays) for name, arrays in stored.items()}


def settings_here(folder: Path) -> dict[str, Any]:
    found = settings_of(folder)
    if found.get("quant_method") != "bitsandbytes":
        raise BadInput(str(folder), "is no bitsandbytes checkpoint", "see quantization_config in its config.json")
    return found


def in_rows(found: NF4, name: str) -> Blocks:
    """Codes and max|w| by rows [N, K / block]; BadInput where blocks cross rows."""
    rows, width = found.codes.shape
    if width % (found.codes.size // len(found.absmax)):
        raise BadInput(name, f"its blocks of {found.codes.size // len(found.absmax)} cross rows of {width}", "use torch")
    return Blocks(found.codes, found.absmax.reshape(rows, -1))
