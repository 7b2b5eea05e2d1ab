"""No quantization: the same weights on another runtime, or in another float type. The baseline, and the null choice."""

from __future__ import annotations

from pathlib import Path

from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from .artifact import base_folder
from .formats.folders import link_folder
from .formats.huggingface import check_finite, in_half, rewrite
from .refusals import COMPRESSED, ONNX, config, not_offered
from .schemes import scheme as named

NAME = "none"
TARGET: Target = "none"
COST = "nothing: the weights are converted"
RUNTIMES = ("torch", *ONNX, "openvino", "llama.cpp", *COMPRESSED)


def schemes() -> tuple[Scheme, ...]:
    return (named("fp32"), named("bf16"), named("fp16"))


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    if refused := not_offered(NAME, scheme, schemes(), runtime, RUNTIMES):
        return refused
    if runtime == "llama.cpp":
        from .formats import gguf

        return gguf.refuse(config(model_folder))
    if scheme.name == "fp16" and runtime not in ("torch", *COMPRESSED, *ONNX):
        return f"fp16 weights are written for torch, vllm, triton and onnxruntime; {runtime} takes fp32"
    if scheme.name == "bf16" and runtime not in ("torch", *COMPRESSED):
        able = "torch, vllm, triton and llama.cpp"
        return f"bf16 weights are written for {able}; {runtime} takes fp32, and bf16 as an option if at all"
    return None


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None) -> tuple[str, ...]:  # fmt: skip
    """torch, vllm and triton: a Hugging Face folder in the scheme's float type. Else: the fp32 export of the runtime, for
    onnxruntime also in float16."""
    if runtime in ("torch", *COMPRESSED) and scheme.compute != "fp32":
        half_precision(base or model_folder, out, {"bf16": "bfloat16", "fp16": "float16"}[scheme.compute])
    elif runtime == "torch":
        check_finite(model_folder)
        link_folder(model_folder, out)
    elif scheme.compute == "fp16":
        from .formats import onnx

        with base_folder(model_folder, runtime, out, base) as source:
            onnx.half(source, out)
    elif scheme.compute == "bf16":
        from .formats import gguf

        with base_folder(model_folder, runtime, out, base) as source:
            gguf.quantize(source, out, "bf16")
    else:
        with base_folder(model_folder, runtime, out, base) as source:
            link_folder(source, out)
    return ()


def half_precision(model_folder: Path, out: Path, kind: str) -> None:
    """The folder with every float tensor rounded to `kind` (bfloat16 or float16)."""
    key = "dtype" if "dtype" in config(model_folder) else "torch_dtype"
    rewrite(model_folder, out, lambda name, w: [in_half(name, w, kind)], {key: kind})
