"""NF4 as bitsandbytes stores it: codes and max|w| of its blocks, read from the tensors of one linear's state dict.

Per linear [N, K], flat in blocks: weight uint8 [N K / 2, 1], two codes a byte, the first in the high nibble; weight.absmax;
weight.quant_map [16]; STATE, a JSON text in bytes. Double quantization (QLoRA, arXiv:2305.14314): absmax less its mean in 8-bit
codes into weight.nested_quant_map [256], in blocks with float32 weight.nested_absmax.
https://github.com/bitsandbytes-foundation/bitsandbytes, functional.py: QuantState.as_dict
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

STATE = "weight.quant_state.bitsandbytes__nf4"


class NF4(NamedTuple):
    """codes uint8 [N, K]; absmax float32 [N K / block] as it is read back, of every block of the flat weight."""

    codes: NDArray[np.uint8]
    absmax: NDArray[np.float32]


def restored(arrays: Mapping[str, Any]) -> NF4:
    """arrays: numpy, by their names behind the linear's."""
    state = json.loads(bytes(arrays[STATE]))
    packed = arrays["weight"].reshape(-1)
    codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(state["shape"])
    absmax = arrays["weight.absmax"]
    if "nested_blocksize" in state:
        step = np.repeat(arrays["weight.nested_absmax"], state["nested_blocksize"])[: len(absmax)]
        absmax = arrays["weight.nested_quant_map"][absmax] * step + np.float32(state["nested_offset"])
    return NF4(codes, absmax.astype(np.float32))
