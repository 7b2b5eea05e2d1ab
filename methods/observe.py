"""One calibration pass through the Hugging Face model, whole or layer by layer (`stream.py`): each group of linears meets its
real inputs, nothing is stored.

Linears that read the same tensor (q, k, v; gate, up) form one group and are shown together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.errors import CandidateFailed

from .kept import Arrays, Kept
from .refusals import check_memory
from .stream import counted, in_parts, layer_by_layer, put
from .training import Say, silent

SAMPLES = 8
"""Samples of one forward pass: wide enough for the matrix products, small enough for the activations."""

SEEN = "samples"
"""What `gather_samples` keeps its arrays under."""

Floats = NDArray[np.float32]
See = Callable[[str, Floats], None]
"""(linear that stands for its group, inputs [tokens, K])"""

Found = TypeVar("Found")

SeeBoth = Callable[[str, Floats, Floats], None]
"""(linear, inputs [tokens, K], gradients at its outputs [tokens, N])"""


def load(model_folder: Path) -> Any:
    """The fp32 model, for reading only; CandidateFailed where memory has no room for it."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    check_memory("this step", model_folder)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32, local_files_only=True)
    finally:
        if shown:
            logging.enable_progress_bar()
    return model.eval()


def observe(model: Any, tokens: NDArray[int64], see: Mapping[str, See]) -> None:
    """tokens: [samples, length]; `see[name]` is called with the inputs of that linear, once for every SAMPLES samples.

    `model`: whole, or of `stream.layer_by_layer`: then all samples pass a layer before the next one is read.
    """
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
            if any(parameter.is_meta for parameter in model.parameters()):
                with few_at_a_time(model.model.layers):
                    model.model(input_ids=torch.from_numpy(np.ascontiguousarray(tokens)), use_cache=False)
                return
            for start in range(0, len(tokens), SAMPLES):
                batch = np.ascontiguousarray(tokens[start : start + SAMPLES])
                model(torch.from_numpy(batch), logits_to_keep=1, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()


def gather(model: Any, tokens: NDArray[int64], names: Iterable[str], add: Callable[[Found | None, Floats], Found],
           finish: Callable[[str, Found], Arrays], kept: Kept) -> None:  # fmt: skip
    """`kept[name]`: what `add` makes of the inputs of a linear, SAMPLES samples at a time (None: nothing yet), and `finish` of
    that in the end, with the weights that read them in memory. What is kept already is not looked for; where all is, no pass is
    made."""
    batches = -(-len(tokens) // SAMPLES)
    begun: dict[str, tuple[int, Found | None]] = {name: (0, None) for name in names if name not in kept}

    def see(name: str, x: Floats) -> None:
        count, before = begun.pop(name)
        found = add(before, x)
        if count + 1 < batches:
            begun[name] = count + 1, found
        else:
            kept[name] = finish(name, found)

    if begun:
        observe(model, tokens, dict.fromkeys(begun, see))


def gather_samples(tokens: NDArray[int64], begin: Arrays, add: Callable[[Arrays, NDArray[int64]], Arrays], kept: Kept,
                   say: Say = silent) -> Arrays:  # fmt: skip
    """What `add` makes of `begin` and one sample of tokens [samples, length] after the other, kept after each, when `say` is told
    how far it is."""
    found, read = dict(kept.get(SEEN, begin)), samples_read(kept)
    step = counted(len(tokens), say, "read", what="sample", first=read)
    for number, sample in enumerate(tokens[read:], read + 1):
        found = add(found, sample)
        kept[SEEN] = found | {"read": np.array([number])}
        step()
    return found


def samples_read(kept: Kept) -> int:
    """How many of them an interrupted run had read."""
    return int(kept[SEEN]["read"][0]) if SEEN in kept else 0


@contextmanager
def few_at_a_time(layers: Sequence[Any]) -> Iterator[None]:
    """While it is entered, SAMPLES of the samples that a layer is given go through it at a time: the sums of `observe` on a
    whole model, to the bit."""

    def forward(original: Callable[..., Any], hidden: Any, attention_mask: Any = None, **more: Any) -> Any:
        for rows, mask in in_parts(hidden, attention_mask, SAMPLES):
            put(rows, original(rows, attention_mask=mask, **more))
        return hidden

    for layer in layers:
        layer.forward = partial(forward, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def loudest_input(model_folder: Path, tokens: NDArray[int64], say: Say = silent) -> tuple[str, float]:
    """(module, largest magnitude) of what the linears and norms of the decoder's layers read on tokens [samples, length]."""
    model = layer_by_layer(model_folder, say)
    found: dict[str, float] = {}

    def see(name: str, x: Floats) -> None:
        found[name] = max(found.get(name, 0.0), float(np.abs(x).max()))

    leaves = [
        name
        for name, module in model.named_modules()
        if name.startswith("model.layers.") and not [*module.children()] and [*module.parameters()]
    ]
    observe(model, tokens, dict.fromkeys(leaves, see))
    return max(found.items(), key=lambda pair: pair[1])


def observe_gradients(model: Any, tokens: NDArray[int64], see: Mapping[str, SeeBoth], seed: int = 0) -> None:
    """`see[name]` gets inputs [T, K] of a linear and gradients [T, N] at its outputs, once a sample.

    The gradients are of -log p(y) summed over positions, with y drawn from the model's own distribution (seeded), so
    that their squares estimate the Fisher information. No weight gets a gradient: the pass costs two forward ones.
    """
    import torch

    model.requires_grad_(False)
    inputs: dict[str, Any] = {}
    handles = []
    for name in see:

        def keep(module: Any, args: tuple[Any, ...], name: str = name) -> None:
            inputs[name] = args[0].detach()

        def show(module: Any, before: Any, after: tuple[Any, ...], name: str = name) -> None:
            x, g = inputs.pop(name), after[0].detach()
            see[name](name, x.reshape(-1, x.shape[-1]).numpy(), g.reshape(-1, g.shape[-1]).numpy())

        module = model.get_submodule(name)
        handles += [module.register_forward_pre_hook(keep), module.register_full_backward_hook(show)]
    generator = torch.Generator().manual_seed(seed)
    try:
        for sample in tokens:
            embedded = model.get_input_embeddings()(torch.from_numpy(np.ascontiguousarray(sample))[None])
            logits = model(inputs_embeds=embedded.requires_grad_(True), use_cache=False).logits[0]
            log_p = torch.log_softmax(logits, dim=-1)
            drawn = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
            (-log_p.gather(1, drawn).sum()).backward()
    finally:
        for handle in handles:
            handle.remove()


def weight(model: Any, name: str) -> Floats:
    """[N, K] of a linear, sharing memory with the model."""
    value: Floats = model.get_submodule(name).weight.detach().numpy()
    return value
