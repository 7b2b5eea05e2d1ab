"""The `gemm` layout of AutoAWQ: 4-bit weights in groups, eight output channels interleaved in a word, written and read.

Per linear [N, K]:  qweight int32 [K, N / 8]; qzeros int32 [G, N / 8]; scales float16 [G, N]. Nibble i of a word, little end
first, holds output channel ORDER[i] of its eight (the order in which the CUDA kernel unpacks two halves at a time).
https://github.com/casper-hansen/AutoAWQ, awq/utils/packing_utils.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantadvisor.documents.errors import BadInput
from quantadvisor.kernels.packing import pack_words, unpack_words

from ..affine import Codes, Grouped, refuse_beyond_half
from ..linear_format import LinearFormat, check
from ..rescale import Pair, Scale
from .huggingface import read_linears, settings_of, write_integers

SUFFIXES = ("qweight", "qzeros", "scales")
BITS = 4
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def write(base: Path, out: Path, given: Mapping[str, Callable[[], Grouped]], chosen: LinearFormat,
          moves: Iterable[tuple[Pair, Scale]] = ()) -> None:  # fmt: skip
    """Linears of `given` in integers, everything else in float16; `moves`: scales that are moved first."""
    check(chosen, "awq")
    _, group, _ = chosen
    settings = {
        "quant_method": "awq",
        "bits": BITS,
        "group_size": group,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": ["lm_head"],
    }
    write_integers(base, out, given, stored, "float16", {"quantization_config": settings}, moves)


def stored(given: Grouped) -> dict[str, Any]:
    if given.codes.shape[0] % 8:
        raise BadInput("awq layout", f"{given.codes.shape[0]} output channels are no multiple of 8", "use the gptq layout")
    refuse_beyond_half("a scale of the awq layout", float(np.abs(given.scales).max()))
    return {
        "qweight": interleaved(given.codes.T),
        "qzeros": interleaved(given.zeros.T),
        "scales": given.scales.T.astype(np.float16),
    }


def restored(arrays: Mapping[str, Any]) -> Grouped:
    codes, zeros = (np.ascontiguousarray(ordered(arrays[part]).T) for part in ("qweight", "qzeros"))
    return Grouped(codes, np.ascontiguousarray(arrays["scales"].T.astype(np.float32)), zeros)


def interleaved(codes: Codes) -> NDArray[np.int32]:
    """codes: [R, N] -> words [R, N / 8]."""
    rows, width = codes.shape
    return pack_words(np.ascontiguousarray(codes.reshape(rows, -1, 8)[..., ORDER]).reshape(rows, width), BITS)


def ordered(words: NDArray[np.int32]) -> Codes:
    """words: [R, N / 8] -> codes [R, N]."""
    rows, count = words.shape
    eights = unpack_words(words, BITS, count * 8).reshape(rows, count, 8)
    codes: Codes = eights[..., np.argsort(ORDER)].reshape(rows, count * 8)
    return codes


def read(folder: Path) -> tuple[dict[str, Grouped], LinearFormat]:
    """Integers of every linear, and their format."""
    settings = settings_of(folder)
    if settings.get("quant_method") != "awq" or settings.get("version", "gemm") != "gemm" or settings.get("bits") != BITS:
        raise BadInput(str(folder), "is no AWQ checkpoint of the gemm layout", "see quantization_config in its config.json")
    found = {name: restored(arrays) for name, arrays in read_linears(folder, SUFFIXES).items()}
    return found, LinearFormat(BITS, int(settings["group_size"]), False)
