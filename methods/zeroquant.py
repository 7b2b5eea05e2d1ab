"""ZeroQuant (arXiv:2206.01861): weights rounded in groups, activations per token while the model runs.

W8A8 and W4A8, both symmetric: GROUP neighbours of a row share S = max|w| / (2^(b-1) - 1), a token's activations share
S = max|x| / 127. The paper's layer-by-layer distillation, which trains, is `lkd`. Simulated on SmolLM2-135M: KL
0.045 for W8A8 and 0.87 for W4A8 in symmetric groups of 64.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, NoReturn

from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from .fake import Fake
from .refusals import no_kernel, nothing_to_write
from .schemes import scheme as named

NAME = "zeroquant"
TARGET: Target = "activations"
COST = "one pass over the weights, no calibration"
PER_GROUP = "MatMulNBits rounds activations once per group, not per token: that is rtn with accuracy level 4"
ARM = ("aarch64", "arm64")
MISSING = {
    "onnxruntime": f"no product of group-wise weights with token-wise INT8 activations; {PER_GROUP}",
    "onnxruntime-genai": f"no product of group-wise weights with token-wise INT8 activations; {PER_GROUP}",
    "openvino": "it rounds activations of group-wise weights in groups of its own choice while it runs: rtn",
    "llama.cpp": "it rounds activations in blocks of 32, not per token: gguf",
}


def schemes() -> tuple[Scheme, ...]:
    return (named("w8a8-g64"), named("w4a8-g64"))


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    by_torch = {"torch": product_of_torch(scheme, "torch"), "vllm": product_of_torch(scheme, "vLLM (CompressedTensorsW4A8Int)")}
    return no_kernel(NAME, scheme, schemes(), runtime, by_torch | MISSING)


def product_of_torch(scheme: Scheme, who: str) -> str:
    """torch has this very product for 4 bits, `_dyn_quant_matmul_4bit`, and vLLM calls it: KleidiAI's kernel on Arm, on x86 a
    reference without vectors (aten/src/ATen/native/cpu/int4mm_kernel.cpp), which takes 290 times as long as the float32 product
    at one row and 49 times at 128 (1536 x 576, two loaded cores of a Zen 5)."""
    if scheme.weights is None or scheme.weights.bits != 4:
        return f"{who} multiplies 4-bit weights in groups with INT8 activations on a CPU, none of 8 bits"
    if platform.machine() in ARM:
        return f"{who} runs it on Arm (_dyn_quant_matmul_4bit, KleidiAI), and no folder for that is written here"
    return f"on x86 {who} has only torch's reference of _dyn_quant_matmul_4bit, without vectors; KleidiAI's kernel is Arm's"


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None) -> NoReturn:  # fmt: skip
    nothing_to_write(NAME, refuse(model_folder, scheme, runtime))


def fake(model: Any, scheme: Scheme, calibration: NDArray[int64]) -> Fake:
    from .grids import in_groups, symmetric

    assert scheme.weights is not None
    assert scheme.weights.group_size is not None
    bits, group = int(scheme.weights.bits), scheme.weights.group_size
    return Fake(
        model,
        weight=lambda _, w: in_groups(w, group, lambda part: symmetric(part, bits)),
        inputs=lambda _, x: symmetric(x, 8),
    )
