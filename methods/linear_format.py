"""Integer weights in groups: bits, group size, symmetric or not; and which of these each format holds. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from quantadvisor.documents.errors import BadInput
from quantadvisor.kernels.ggml_types import BLOCK


class LinearFormat(NamedTuple):
    """What the integers of a linear's weight [N, K] are."""

    bits: int
    group: int
    """Neighbours of a row that share a scale; ROW: all of it; ALONE: none, as columns of an act-order lie in any order."""
    symmetric: bool


ROW, ALONE = -1, 1
HEAD = LinearFormat(8, 64, True)
"""Of lm_head, where a scheme has no groups of its own."""
LAYOUT_BITS = {"gptq": (2, 3, 4, 8), "awq": (4,), "compressed-tensors": (2, 3, 4, 5, 6, 7, 8)}
RUNTIME_BITS = {"onnxruntime": (2, 4, 8), "openvino": (4, 8), "llama.cpp": (4, 8)}
DIVIDED = ("awq", "compressed-tensors", "openvino", "llama.cpp")
"""Whose groups divide a row; in the others the last one may be short."""
LEAST_BLOCK = 16
"""Of MatMulNBits, whose block sizes are powers of two (docs/ContribOperators.md of microsoft/onnxruntime)."""
OTHERWISE = "quantize the model itself for it"


def group_size(group: int, width: int) -> int:
    """Columns of a group in rows of so many."""
    return width if group == ROW else group


def target_of(runtime: str) -> str:
    """onnxruntime-genai reads onnxruntime's graphs."""
    return runtime.removesuffix("-genai")


def check(form: LinearFormat, target: str, widths: Iterable[int] = ()) -> None:
    """BadInput where a format cannot hold such integers. `target`: one of LAYOUT_BITS, or a runtime; `widths`: of the rows."""
    bits, group, _ = form
    held = (LAYOUT_BITS | RUNTIME_BITS).get(target, ())
    if not held:
        known = ", ".join(LAYOUT_BITS | RUNTIME_BITS)
        raise BadInput("weights", f"{target} has no format here for integers in groups", f"there is one for {known}")
    if bits not in held:
        what = f"{target} holds integers of {', '.join(map(str, held))} bits, not of {bits}"
        raise BadInput("weights", what, "take the layout gptq" if target == "awq" else OTHERWISE)
    if group == ALONE:
        what = f"{target} holds groups of neighbours, and these are of columns in any order (act-order)"
        raise BadInput("weights", what, "quantize with desc_act off or static groups; torch and vllm read the folder itself")
    if group == ROW:
        if target in RUNTIME_BITS:
            raise BadInput("weights", f"{target} holds groups, and one scale a row is none", OTHERWISE)
        return
    if target == "onnxruntime" and (group < LEAST_BLOCK or group & (group - 1)):
        raise BadInput("weights", f"blocks of MatMulNBits are powers of two from {LEAST_BLOCK} on, not {group}", OTHERWISE)
    if target == "llama.cpp" and group % BLOCK:
        raise BadInput("weights", f"blocks of GGUF hold {BLOCK} weights, which do not divide groups of {group}", OTHERWISE)
    if target in DIVIDED and (odd := sorted(width for width in widths if width % group)):
        raise BadInput("weights", f"groups of {target} divide a row, and {group} does not divide {odd[0]}", OTHERWISE)
