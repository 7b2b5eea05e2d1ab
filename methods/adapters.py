"""Low-rank adapters (LoRA, arXiv:2106.09685) by PEFT beside a model whose rounded weights stay as they are, and their training.

y = x W^T + x A^T B^T, with A [r, K] and B [N, r] in float32 beside every linear of the decoder. What they win back is quality
that rounding lost: they are trained on the calibration text to the logits of the unquantized model (least KL a token), since
that is what quality is judged against here, not to the text.

Where they are to be merged, W + B A is rounded in every step, and rounding lets gradients through (LR-QAT, arXiv:2406.06385):
what is trained is then what the rounded sum computes, and merging loses nothing.

While it trains, W is held dequantized in float32: the same outputs and gradients, at the memory of two float32 models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from .affine import Floats
from .kept import Kept
from .refusals import memory_missing
from .training import Limits, Trained, device, divergence, products, straight_through, train

RANK = 16
SAMPLES = 128
BATCH = 2
"""Samples of one step."""
STEPS = 300
"""Most steps."""
RATE = 5e-4
FOLDER = "adapter"
SETTINGS = f"LoRA of rank {RANK}, distilled on the fp32 logits, batches of {BATCH} samples, rate {RATE:g}"
BESIDE = f"{FOLDER}/: the adapters alone, for PEFT"
Adapter = tuple[Floats, Floats]
"""A [r, K] and B [N, r], PEFT's scale multiplied into B."""
Rounding = Callable[[Floats], Floats]


def refuse(method: str, model_folder: Path) -> str | None:
    """Why `method` cannot train adapters here; teacher and student are two float32 models."""
    if find_spec("peft") is None:
        return "peft is not installed: pip install 'quantadvisor[train]'"
    return memory_missing(method, model_folder, 2)


def tuned(name: str, teacher: Any, weights: Mapping[str, Floats], tokens: NDArray[int64], limits: Limits, kept: Kept,
          rounding: Rounding | None = None) -> tuple[Any, Trained]:  # fmt: skip
    """PEFT's model with trained adapters beside `weights`: {linear: [N, K]}; `rounding` is that of W + B A, where they will be
    merged. `name` is that of the method, under which `kept` holds the way so far."""
    import torch

    place = device()
    student = adapted(teacher, weights).to(place)
    teacher.to(place)
    parameters = {name: value for name, value in student.named_parameters() if value.requires_grad}

    def loss(step: int) -> Any:
        rows = np.random.default_rng(step).choice(len(tokens), min(BATCH, len(tokens)), replace=False)
        ids = torch.from_numpy(np.ascontiguousarray(tokens[rows])).to(place)
        with torch.no_grad():
            wanted = teacher(ids, use_cache=False).logits
        return divergence(wanted, student(input_ids=ids, use_cache=False).logits)

    with torch.enable_grad(), rounded_sums(student, rounding) if rounding else nullcontext():
        done = train(name, parameters, loss, STEPS, RATE, limits, kept)
    teacher.cpu()
    return student.cpu(), done


def adapted(teacher: Any, weights: Mapping[str, Floats], seed: int = 0) -> Any:
    """A copy of `teacher` with `weights` in its linears, and adapters that add nothing yet (B = 0)."""
    import copy

    import torch
    from peft import LoraConfig, get_peft_model

    student = copy.deepcopy(teacher)
    for name, weight in weights.items():
        student.get_submodule(name).weight.data = torch.from_numpy(weight)
    leaves = sorted({name.rsplit(".", 1)[1] for name in weights})
    before = torch.get_rng_state()
    torch.manual_seed(seed)
    settings = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=leaves, lora_dropout=0.0, task_type="CAUSAL_LM")
    made = get_peft_model(student, settings)
    torch.set_rng_state(before)
    return made.eval()


def rounded_sums(student: Any, rounding: Rounding) -> Any:
    """While it is entered, every linear with an adapter multiplies by `rounding` of W + B A."""
    import torch

    layers = layers_of(student)

    def on_grid(w: Any) -> Any:
        return torch.from_numpy(rounding(w.detach().cpu().numpy())).to(w.device)

    def product(name: str, x: Any) -> Any:
        layer = layers[name]
        whole = layer.base_layer.weight + layer.get_delta_weight("default")
        return torch.nn.functional.linear(x, straight_through(on_grid, whole), layer.base_layer.bias)

    return products(layers, product)


def layers_of(student: Any) -> dict[str, Any]:
    """PEFT's layers, which hold a linear and its adapter, by the linear's name."""
    return {name: module for name, module in student.base_model.model.named_modules() if hasattr(module, "lora_A")}


def adapters_of(student: Any) -> dict[str, Adapter]:
    found = {}
    for name, layer in layers_of(student).items():
        down, up = (part["default"].weight.detach().numpy() for part in (layer.lora_A, layer.lora_B))
        found[name] = (down, up * np.float32(layer.scaling["default"]))
    return found


def merged(student: Any) -> dict[str, Floats]:
    """{linear: W + B A [N, K]}"""
    bases = {name: layer.base_layer.weight.detach().numpy() for name, layer in layers_of(student).items()}
    return {name: bases[name] + up @ down for name, (down, up) in adapters_of(student).items()}


def save(student: Any, folder: Path) -> None:
    """In PEFT's format: adapter_config.json and adapter_model.safetensors."""
    student.save_pretrained(folder / FOLDER)
    (folder / FOLDER / "README.md").unlink(missing_ok=True)
