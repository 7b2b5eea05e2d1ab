"""The layout of AutoGPTQ and GPTQModel (GPTQ-for-LLaMA's): integer weights in groups, written and read.

Per linear [N, K]:  qweight int32 [K bits / 32, N]: codes little end first along K; qzeros int32 [G, N bits / 32]: zeros along
N, less one in `gptq` (v1), as they are in `gptq_v2`; scales float16 [G, N]; g_idx int32 [K]: the group of every column.
A zero of 0 has no v1 form that every reader agrees on, so weights with one are written as v2. A group size of -1: a row is one
group. Columns whose groups are no neighbours (act-order without static groups) come back in their places, each with a scale of
its own.
https://github.com/ModelCloud/GPTQModel
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantadvisor.documents.errors import BadInput
from quantadvisor.kernels.packing import pack_words, unpack_words

from ..affine import Grouped, refuse_beyond_half
from ..linear_format import ALONE, LinearFormat, check, group_size
from ..rescale import Pair, Scale
from .huggingface import AUTOGPTQ, read_linears, settings_of, write_integers

SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")
V1, V2 = "gptq", "gptq_v2"


def write(base: Path, out: Path, given: Mapping[str, Callable[[], Grouped]], chosen: LinearFormat,
          moves: Iterable[tuple[Pair, Scale]] = ()) -> None:  # fmt: skip
    """Linears of `given` in integers, everything else in float16; `moves`: scales that are moved first."""
    check(chosen, "gptq")
    bits, group, symmetric = chosen
    version = V1 if symmetric else V2
    settings = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "sym": symmetric,
        "desc_act": False,
        "checkpoint_format": version,
        "format": version,
        "pack_dtype": "int32",
        "lm_head": False,
        "meta": {"quantizer": ["quantadvisor:0.1"]},
    }

    def store(linear: Grouped) -> dict[str, Any]:
        return stored(linear, bits, group, version)

    write_integers(base, out, given, store, "float16", {"quantization_config": settings}, moves)
    (out / AUTOGPTQ).write_text(json.dumps(settings, indent=2) + "\n")


def stored(given: Grouped, bits: int, group: int, version: str) -> dict[str, Any]:
    rows, width = given.codes.shape
    if width * bits % 32 or rows * bits % 32:
        raise BadInput("gptq layout", f"{rows} x {width} codes of {bits} bits fill no whole words", "use another format")
    refuse_beyond_half("a scale of the gptq layout", float(np.abs(given.scales).max()))
    zeros = given.zeros if version == V2 else given.zeros - np.uint8(1)
    return {
        "qweight": np.ascontiguousarray(pack_words(given.codes, bits).T),
        "qzeros": pack_words(np.ascontiguousarray(zeros.T) & np.uint8((1 << bits) - 1), bits),
        "scales": given.scales.T.astype(np.float16),
        "g_idx": neighbours(width, group),
    }


def restored(arrays: Mapping[str, Any], bits: int, group: int, version: str) -> Grouped:
    qweight, scales = arrays["qweight"], arrays["scales"]
    width, rows = qweight.shape[0] * 32 // bits, qweight.shape[1]
    codes = unpack_words(np.ascontiguousarray(qweight.T), bits, width)
    stored_zeros = unpack_words(arrays["qzeros"], bits, rows)
    zeros = (stored_zeros if version == V2 else stored_zeros + np.uint8(1)) & np.uint8((1 << bits) - 1)
    found = Grouped(codes, np.ascontiguousarray(scales.T.astype(np.float32)), np.ascontiguousarray(zeros.T))
    return by_columns(found, arrays["g_idx"]) if act_order(arrays, group) else found


def act_order(arrays: Mapping[str, Any], group: int) -> bool:
    """Are there columns whose group is not that of their neighbours?"""
    places = arrays.get("g_idx")
    return places is not None and not np.array_equal(places, neighbours(len(places), group))


def neighbours(width: int, group: int) -> NDArray[np.int32]:
    """The group of every column [K] where neighbours share one."""
    return np.arange(width, dtype=np.int32) // np.int32(group_size(group, width))


def by_columns(linear: Grouped, places: NDArray[np.int32]) -> Grouped:
    """The scales and zeros of the groups `places` [K], one for each column."""
    return linear._replace(scales=linear.scales[:, places], zeros=linear.zeros[:, places])


def read(folder: Path) -> tuple[dict[str, Grouped], LinearFormat]:
    """Integers of every linear, and their format; of a checkpoint with act-order, all its columns with scales of their own."""
    settings = settings_of(folder)
    if settings.get("quant_method") != "gptq":
        raise BadInput(str(folder), "is no GPTQ checkpoint", "its config has no quantization_config of quant_method gptq")
    bits, group, symmetric = int(settings["bits"]), int(settings["group_size"]), bool(settings.get("sym", False))
    version = str(settings.get("checkpoint_format") or settings.get("format") or V1)
    stored_linears = read_linears(folder, SUFFIXES)
    found = {name: restored(arrays, bits, group, version) for name, arrays in stored_linears.items()}
    alone = {name for name, arrays in stored_linears.items() if act_order(arrays, group)}
    if not alone:
        return found, LinearFormat(bits, group, symmetric)
    for name in found.keys() - alone:
        found[name] = by_columns(found[name], neighbours(found[name].codes.shape[1], group))
    return found, LinearFormat(bits, ALONE, symmetric)
