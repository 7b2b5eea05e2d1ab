"""The operators that are known here: one file each, ready or refused with its reason."""

from __future__ import annotations

from . import (
    bf16_llama_cpp,
    bf16_onnxruntime,
    bf16_torch,
    bf16_vllm,
    fp32_onnxruntime,
    fp32_openvino,
    fp32_torch,
    q4_0_llama_cpp,
    q8_0_llama_cpp,
    w4_acc0_onnxruntime,
    w4_onnxruntime,
    w4_openvino,
    w4_torch,
    w4_triton,
    w7a8_onnxruntime,
    w8_onnxruntime,
    w8_openvino,
    w8_torch,
    w8a8_onnxruntime,
    w8a8_openvino,
    w8a8_qdq_onnxruntime,
    w8a8_vllm,
)
from .problem import KernelProbe

PROBES: dict[str, KernelProbe] = {
    "fp32_torch": fp32_torch,
    "bf16_torch": bf16_torch,
    "fp32_onnxruntime": fp32_onnxruntime,
    "bf16_onnxruntime": bf16_onnxruntime,
    "w4_onnxruntime": w4_onnxruntime,
    "w8_onnxruntime": w8_onnxruntime,
    "w7a8_onnxruntime": w7a8_onnxruntime,
    "w8a8_onnxruntime": w8a8_onnxruntime,
    "fp32_openvino": fp32_openvino,
    "w4_openvino": w4_openvino,
    "w8_openvino": w8_openvino,
    "w8a8_openvino": w8a8_openvino,
    "bf16_llama_cpp": bf16_llama_cpp,
    "q4_0_llama_cpp": q4_0_llama_cpp,
    "q8_0_llama_cpp": q8_0_llama_cpp,
    "bf16_vllm": bf16_vllm,
    "w8a8_vllm": w8a8_vllm,
    "w4_triton": w4_triton,
    "w4_torch": w4_torch,
    "w8_torch": w8_torch,
    "w4_acc0_onnxruntime": w4_acc0_onnxruntime,
    "w8a8_qdq_onnxruntime": w8a8_qdq_onnxruntime,
}
TRAPS = ("w4_torch", "w8_torch", "w4_acc0_onnxruntime", "w8a8_qdq_onnxruntime")
"""Kernels that others' exports end in, and torch's linears of GPTQ and AWQ: only `advisor runtimes` times them, to say what they
cost."""
OFFERED = tuple(name for name in PROBES if name not in TRAPS)
