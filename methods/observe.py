"""One calibration pass through the Hugging Face model: each group of linears meets its real inputs, nothing is stored.

Linears that read the same tensor (q, k, v; gate, up) form one group and are shown together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.errors import CandidateFailed

Floats = NDArray[np.float32]
See = Callable[[str, Floats], None]
"""(linear that stands for its group, inputs [tokens, K])"""


def load(model_folder: Path) -> Any:
    """The fp32 model, for reading only."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32, local_files_only=True)
    finally:
        if shown:
            logging.enable_progress_bar()
    return model.eval()


def observe(model: Any, tokens: NDArray[int64], see: Mapping[str, See]) -> None:
    """tokens: [samples, length]; `see[name]` is called with the inputs of that linear, once a sample."""
    import torch

    modules = dict(model.named_modules())
    if missing := sorted(set(see) - set(modules)):
        raise CandidateFailed(f"the model has no module {missing[0]}")

    def hook(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def show(module: Any, inputs: tuple[Any, ...]) -> None:
            see[name](name, inputs[0].detach().reshape(-1, inputs[0].shape[-1]).numpy())

        return show

    handles = [modules[name].register_forward_pre_hook(hook(name)) for name in see]
    try:
        with torch.no_grad():
            for sample in tokens:
                model(torch.from_numpy(np.ascontiguousarray(sample))[None], logits_to_keep=1, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()


def weight(model: Any, name: str) -> Floats:
    """[N, K] of a linear, sharing memory with the model."""
    value: Floats = model.get_submodule(name).weight.detach().numpy()
    return value
