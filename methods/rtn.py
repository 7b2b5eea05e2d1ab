"""Round to nearest, group-wise (W4A16, W8A16; 2 to 8 bit where a runtime has the kernel): no data, no search.

The arithmetic is in `affine.py`.
Four bits are asymmetric: their grid is too coarse to waste codes on an empty side (SmolLM2-135M taken off its grid, in groups
of 64: KL 0.645 in ONNX Runtime, docs/log.md). Eight bits are symmetric. Every linear is rounded; lm_head takes 8 bits, and a
tied embedding table shares its codes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from .affine import Floats, Grouped, dequantize_groups, quantize_groups
from .artifact import base_folder, write_grouped
from .linear_format import LinearFormat
from .refusals import (
    HALF,
    ONNX,
    config,
    experts_left,
    group_mismatch,
    half_mismatch,
    not_offered,
    padding,
    unread_groups,
    width_missing,
)
from .rescale import mapping_missing
from .schemes import EVEN, group_format, named
from .schemes import scheme as scheme_named

__all__ = ["NAME", "TARGET", "apply", "dequantize_groups", "quantize_groups", "refuse", "schemes"]

NAME = "rtn"
TARGET: Target = "weights"
COST = "one pass over the weights, no calibration"
RUNTIMES = (*ONNX, "openvino", *HALF)


def schemes() -> tuple[Scheme, ...]:
    other = (scheme_named(f"w{bits}-g64") for bits in (2, 3, 5, 6, 7))
    half = (scheme_named(f"{name}-bf16") for name in ("w4-g32", "w4-g64", "w8-g64", *EVEN))
    return (*named("w4-g32", "w4-g64", "w4-g128", *EVEN, "w8-g32", "w8-g64"), *other, *half)


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    if refused := not_offered(NAME, scheme, schemes(), runtime, RUNTIMES):
        return refused
    if refused := half_mismatch(scheme, runtime) or width_missing(scheme, runtime):
        return refused
    found = config(model_folder)
    if refused := mapping_missing(found) if runtime in HALF else experts_left(found, runtime):
        return refused
    return (None if runtime in ONNX else group_mismatch(model_folder, scheme)) or unread_groups(runtime)


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None, accuracy_level: int = 4) -> tuple[str, ...]:  # fmt: skip
    """`accuracy_level` of MatMulNBits: 4 multiplies int8 activations, 0 and 1 compute in fp32 (ONNX Runtime only)."""
    assert scheme.weights is not None
    if runtime in HALF:
        from .formats.huggingface import linear_weights

        form = group_format(scheme.weights)
        source = base or model_folder
        given = {name: partial(integers, read, form) for name, read in linear_weights(source, config(model_folder)).items()}
        write_grouped(model_folder, source, scheme, runtime, out, given)
        return ()
    assert scheme.lm_head is not None
    with base_folder(model_folder, runtime, out, base) as source:
        if runtime not in ONNX:
            from .formats import openvino

            openvino.compress_weights(source, out, *group_format(scheme.weights))
            return ("lm_head and a tied embedding: 8 bit, symmetric, in the same groups",)
        from .formats import onnx

        plan = dict.fromkeys(onnx.linear_names(source), group_format(scheme.weights))
        plan["lm_head"] = group_format(scheme.lm_head)
        onnx.quantize_weights(source, out, plan, accuracy_level)
    return padding(model_folder, scheme, runtime)


def integers(read: Callable[[], Floats], chosen: LinearFormat) -> Grouped:
    return quantize_groups(read(), *chosen)
