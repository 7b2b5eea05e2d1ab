"""QLoRA (arXiv:2305.14314): NF4 weights with double quantization stay as they are, low-rank adapters beside them are trained.

y = x W^T + x A^T B^T, W in NF4 (blocks of 64, scales rounded in blocks of 256), A [r, K] and B [N, r] in float32 beside every
linear of the decoder, by PEFT. What the adapters win back is quality that NF4 lost: they are trained on the calibration text to
the logits of the unquantized model (least KL a token), since that is what quality is judged against here, not to the text.

The artifact keeps both: MatMulBnb4 and the adapters' two products in ONNX Runtime. `adapter/` in it holds them in PEFT's
format, for the base model in NF4. Merged they would have to be rounded again, and lose what they won. Simulated on SmolLM2-135M,
14 steps take the KL (1,024 tokens) from 0.45 to 0.29.

While it trains, W is held dequantized in float32: the same outputs and gradients, at the memory of two float32 models. On CPUs
no optimiser is paged; Adam's moments are as small as the adapters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from . import kbit
from .affine import Floats
from .artifact import base_folder, tokens_read
from .codebooks import from_blocks
from .fake import Fake, linears, with_weights
from .kept import Kept, kept_beside
from .layerwise import evenly
from .refusals import memory_missing, not_offered, nothing_to_write
from .schemes import scheme as named
from .training import ENOUGH, Limits, Trained, divergence, silent, train

NAME = "qlora"
TARGET: Target = "weights"
COST = "training: one pass over the weights, then gradient steps on the adapters within budget.train_s"
RANK = 16
SAMPLES = 128
BATCH = 2
"""Samples of one step."""
STEPS = 300
"""Most steps."""
RATE = 5e-4
ADAPTER = "adapter"
SETTINGS = f"LoRA of rank {RANK}, distilled on the fp32 logits, batches of {BATCH} samples, rate {RATE:g}"
MISSING = "peft is not installed: pip install 'quantadvisor[train]'"


def schemes() -> tuple[Scheme, ...]:
    return (named("nf4-b64-dq"),)


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    if refused := not_offered(NAME, scheme, schemes(), runtime, (runtime,)) or kbit.refuse(model_folder, scheme, runtime):
        return refused
    return memory_missing(NAME, model_folder, 2) if find_spec("peft") else MISSING


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None, train_s: float = ENOUGH.train_s,
          say: Callable[[str], None] = silent) -> tuple[str, ...]:  # fmt: skip
    from .formats import onnx
    from .observe import load

    if reason := refuse(model_folder, scheme, runtime):
        nothing_to_write(NAME, reason)
    tokens, model = evenly(calibration, SAMPLES), load(model_folder)
    given = {name: partial(kbit.nf4, linear.weight.detach().numpy(), scheme) for name, linear in linears(model).items()}
    with (
        base_folder(model_folder, runtime, out, base) as source,
        kept_beside(out, model_folder, tokens, f"{SETTINGS} {scheme.name} {train_s}") as kept,
    ):
        student, done = tuned(model, scheme, tokens, Limits(train_s, say), kept)
        finish = partial(save_adapter, student)
        onnx.quantize_nf4(source, out, given, kbit.block_of(scheme), adapters_of(student), finish)
    return (
        f"{done.note(SETTINGS)}, on {tokens_read(tokens, calibration)}",
        f"{ADAPTER}/: the adapters alone, for PEFT",
        kbit.DOUBLED,
    )


def rounded(model_folder: Path, scheme: Scheme, calibration: NDArray[int64], limits: Limits = ENOUGH) -> dict[str, Floats]:
    """{linear: weights [N, K] with the adapters merged, W + B A}"""
    from .observe import load

    student, _ = tuned(load(model_folder), scheme, evenly(calibration, SAMPLES), limits, {})
    bases = linears(student.base_model.model)
    return {
        name: bases[f"{name}.base_layer"].weight.detach().numpy() + up @ down for name, (down, up) in adapters_of(student).items()
    }


def fake(model: Any, scheme: Scheme, calibration: NDArray[int64], limits: Limits = ENOUGH) -> Fake:
    """Of a model that was loaded from a folder."""
    return with_weights(model, rounded(Path(model.name_or_path), scheme, calibration, limits))


def tuned(teacher: Any, scheme: Scheme, tokens: NDArray[int64], limits: Limits, kept: Kept) -> tuple[Any, Trained]:
    """PEFT's model with trained adapters; its base is a copy of `teacher` in NF4."""
    import torch

    student = adapted(teacher, scheme)
    parameters = {name: value for name, value in student.named_parameters() if value.requires_grad}

    def loss(step: int) -> Any:
        rows = np.random.default_rng(step).choice(len(tokens), min(BATCH, len(tokens)), replace=False)
        ids = torch.from_numpy(np.ascontiguousarray(tokens[rows]))
        with torch.no_grad():
            wanted = teacher(ids, use_cache=False).logits
        return divergence(wanted, student(input_ids=ids, use_cache=False).logits)

    with torch.enable_grad():
        return student, train(NAME, parameters, loss, STEPS, RATE, limits, kept)


def adapted(teacher: Any, scheme: Scheme, seed: int = 0) -> Any:
    """A copy of `teacher` whose linears are in NF4, with adapters that add nothing yet (B = 0)."""
    import copy

    import torch
    from peft import LoraConfig, get_peft_model

    student = copy.deepcopy(teacher)
    codebook, block = kbit.codebook_of(scheme.name), kbit.block_of(scheme)
    for linear in linears(student).values():
        linear.weight.data = torch.from_numpy(from_blocks(kbit.nf4(linear.weight.detach().numpy(), scheme), codebook, block))
    leaves = sorted({name.rsplit(".", 1)[1] for name in linears(student)})
    before = torch.get_rng_state()
    torch.manual_seed(seed)
    settings = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=leaves, lora_dropout=0.0, task_type="CAUSAL_LM")
    made = get_peft_model(student, settings)
    torch.set_rng_state(before)
    return made.eval()


def adapters_of(student: Any) -> dict[str, tuple[Floats, Floats]]:
    """{linear: (A [r, K], B [N, r])}, PEFT's scale multiplied into B."""
    found = {}
    for name, module in student.base_model.model.named_modules():
        if hasattr(module, "lora_A"):
            down, up = (part["default"].weight.detach().numpy() for part in (module.lora_A, module.lora_B))
            found[name] = (down, up * np.float32(module.scaling["default"]))
    return found


def save_adapter(student: Any, folder: Path) -> None:
    """In PEFT's format: adapter_config.json and adapter_model.safetensors."""
    student.save_pretrained(folder / ADAPTER)
    (folder / ADAPTER / "README.md").unlink(missing_ok=True)
