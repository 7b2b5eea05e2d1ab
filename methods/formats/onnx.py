"""Artifacts for `onnxruntime` and `onnxruntime-genai`: one folder format, written by composable steps.

export_base            Hugging Face folder -> fp32 folder          (onnx_base.py)
randomise              fp32 folder -> the same with random weights (onnx_random.py)
half                   fp32 folder -> the same in float16          (onnx_half.py)
quantize_weights       fp32 folder -> MatMulNBits, 4 and 8 bit     (onnx_weights.py)
quantize_dynamic_w8a8  fp32 folder -> MatMulInteger, INT8 x INT8   (onnx_weights.py)
quantize_w8a8_outliers the same, outlier channels in fp32         (onnx_outliers.py)
quantize_static_w8a8   fp32 folder -> QDQ, INT8 x INT8 in fixed ranges (onnx_qdq.py)
quantize_integer_w8a8  fp32 folder -> QDQ around every operator, for NPUs (onnx_integer.py)
quantize_nf4           fp32 folder -> MatMulBnb4, with LoRA beside (onnx_nf4.py)
quantize_cache         any of these -> the same, INT8 or INT4 cache (onnx_cache.py)
"""

from __future__ import annotations

from .onnx_base import export_base, linears, load_graph
from .onnx_cache import calibrate_cache, quantize_cache
from .onnx_half import half
from .onnx_integer import quantize_integer_w8a8
from .onnx_nf4 import quantize_nf4
from .onnx_outliers import quantize_w8a8_outliers
from .onnx_qdq import quantize_static_w8a8
from .onnx_random import randomise
from .onnx_rescale import fused, onnx_linear, rescaled
from .onnx_weights import quantize_dynamic_w8a8, quantize_weights

__all__ = [
    "calibrate_cache",
    "export_base",
    "fused",
    "half",
    "linear_names",
    "onnx_linear",
    "quantize_cache",
    "quantize_dynamic_w8a8",
    "quantize_integer_w8a8",
    "quantize_nf4",
    "quantize_static_w8a8",
    "quantize_w8a8_outliers",
    "quantize_weights",
    "randomise",
    "rescaled",
]


def linear_names(folder: object) -> tuple[str, ...]:
    """Names of the linears of a folder, in graph order, `lm_head` last: the keys of a plan."""
    from pathlib import Path

    return tuple(linears(load_graph(Path(str(folder)))))
