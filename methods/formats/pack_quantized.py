"""compressed-tensors' `pack-quantized`: integer weights in groups for vLLM and transformers, written and read.

Per linear [N, K]:  weight_packed int32 [N, ceil(K bits / 32)]: codes little end first along K; weight_scale [N, G];
weight_zero_point int32 [ceil(N bits / 32), G]: zeros packed along N, where they differ from 2**(bits - 1); weight_shape.
Strategy `group`, or `channel` where a row is one group.
The library's integers are signed and stored with 2**(bits - 1) added: our unsigned codes as they are.
Words and layout: https://github.com/vllm-project/compressed-tensors, compressors/pack_quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quantadvisor.documents.errors import BadInput
from quantadvisor.kernels.packing import pack_words, unpack_words

from ..affine import Grouped
from ..linear_format import ROW, LinearFormat, check
from ..rescale import Pair, Scale
from .huggingface import read_linears, settings_of, write_integers

SUFFIXES = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")


def write(base: Path, out: Path, given: Mapping[str, Callable[[], Grouped]], chosen: LinearFormat,
          moves: Iterable[tuple[Pair, Scale]] = ()) -> None:  # fmt: skip
    """Linears of `given` in integers, with scales in bfloat16 as everything else; `moves`: scales that are moved first."""
    check(chosen, "compressed-tensors")
    bits, group, symmetric = chosen
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "channel" if group == ROW else "group",
        "group_size": None if group == ROW else group,
        "dynamic": False,
    }
    settings = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    write_integers(base, out, given, lambda w: stored(w, bits, symmetric), "bfloat16", {"quantization_config": settings}, moves)


def stored(given: Grouped, bits: int, symmetric: bool) -> dict[str, Any]:
    arrays = {
        "weight_packed": pack_words(given.codes, bits),
        "weight_scale": given.scales,
        "weight_shape": np.array(given.codes.shape, np.int64),
    }
    return arrays if symmetric else arrays | {"weight_zero_point": pack_words(given.zeros.T, bits).T}


def restored(arrays: Mapping[str, Any], bits: int) -> Grouped:
    rows, width = (int(size) for size in arrays["weight_shape"])
    scales = arrays["weight_scale"].astype(np.float32)
    if "weight_zero_point" in arrays:
        zeros = np.ascontiguousarray(unpack_words(arrays["weight_zero_point"].T, bits, rows).T)
    else:
        zeros = np.full(scales.shape, 1 << (bits - 1), np.uint8)
    return Grouped(unpack_words(arrays["weight_packed"], bits, width), scales, zeros)


def read(folder: Path) -> tuple[dict[str, Grouped], LinearFormat]:
    """Integers of every linear, and their format; raises BadInput for a folder in any other."""
    settings = settings_of(folder)
    groups = list((settings.get("config_groups") or {}).values())
    weights = (groups[0].get("weights") or {}) if len(groups) == 1 else {}
    group = ROW if weights.get("strategy") == "channel" else weights.get("group_size")
    if settings.get("format") != "pack-quantized" or not group:
        raise BadInput(str(folder), "is no pack-quantized folder with one format in groups", "see its quantization_config")
    if str(weights.get("actorder") or "").lower() == "group":
        raise BadInput(str(folder), "its groups are of no neighbours (actorder: group)", "quantize with actorder weight or none")
    chosen = LinearFormat(int(weights["num_bits"]), int(group), bool(weights["symmetric"]))
    return {name: restored(arrays, chosen.bits) for name, arrays in read_linears(folder, SUFFIXES).items()}, chosen
