"""The decoder of a Hugging Face folder with one layer in memory at a time, for methods that go layer by layer, and for those
that only look at activations (`observe.py`).

The model is built without memory (meta tensors); a layer's weights are read from the safetensors files when its turn
comes and dropped after it. Up to AT_ONCE calibration samples go through as one batch, so one forward pass is enough: each
group of linears meets its inputs, may be replaced, and multiplies with what it was replaced by. What comes after sees the
inputs that the rounded model will give it (the "true sequential" order of the GPTQ authors' code, without its second pass).
More samples come in parts, which hold no more memory than one batch but cost time: a layer has four groups, and for each of
them all parts but the last are computed again up to there, 2.7 forward passes in the place of one.

Memory: one layer, the table of embeddings, activations of AT_ONCE samples, and of the others their hidden states. A Llama
of 7B has 0.8 GB and 0.5 GB, and 8,192 tokens take 0.36 GB for each tensor of the MLP: about 3 GB in all, where the fp32 model
has 27. What a method computes with comes on top: GPTQ holds seven K x K matrices in float64 at once, 6.8 GB at K = 11008.
`observe.py` lets a few samples through a layer at a time (benchmarks/memory_7b.py: SmoothQuant's pass takes 1.8 GB).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.errors import CandidateFailed

from . import half_products
from .affine import Floats
from .refusals import config
from .rescale import pairs
from .training import Say, silent

AT_ONCE = 64
"""Samples of 128 tokens that go through a layer together."""

Parts = Iterable[Floats]
"""A tensor [T, K] in pieces, one after the other, to be gone through once."""

Visit = Callable[[tuple[str, ...], Parts, list[Floats]], Sequence[Floats] | None]
"""(linears that read one tensor, that tensor, their weights [N, K]) -> weights to go on with; None: the same."""


VisitLayer = Callable[[str, Any, Any, dict[str, Any]], None]
"""(name, the layer with its weights, what it reads: float32 torch [samples, length, hidden], its other arguments)"""


def stream(model_folder: Path, tokens: NDArray[int64], visit: Visit, say: Say = silent) -> None:
    """tokens: [samples, length]. `visit` is called once for every group of linears, in the order of the computation; `say` is
    told after every layer how far it is."""
    model = layer_by_layer(model_folder, say)
    modules = dict(model.named_modules())
    groups = [pair.targets for pair in pairs(config(model_folder))]
    for number, layer in enumerate(model.model.layers):
        own = {modules[names[0]]: names for names in groups if names[0].startswith(f"model.layers.{number}.")}
        layer.forward = partial(forward_in_parts, layer.forward, own, modules, visit)
    with half_products.forward():
        run(model, tokens)


def stream_layers(model_folder: Path, tokens: NDArray[int64], visit: VisitLayer) -> None:
    """tokens: [samples, length]. `visit` is called once for every layer, before it runs."""
    model = layer_by_layer(model_folder)
    for number, layer in enumerate(model.model.layers):

        def show(module: Any, args: tuple[Any, ...], more: dict[str, Any], name: str = f"model.layers.{number}") -> None:
            visit(name, module, args[0], more)

        layer.register_forward_pre_hook(show, with_kwargs=True)
    run(model, tokens)


def layer_by_layer(model_folder: Path, say: Say = silent) -> Any:
    """The model, each layer of which has its weights while it runs; `say` is told after each how far it is."""
    model = empty_model(model_folder)
    read = reader(model_folder)
    read(model.model, "model.", [name for name, _ in model.model.named_parameters() if not name.startswith("layers.")])
    for number, layer in enumerate(model.model.layers):
        stay_only_while_it_runs(layer, f"model.layers.{number}.", read)
    step = counted(len(model.model.layers), say)
    for layer in model.model.layers:
        layer.register_forward_hook(step)
    return model


def run(model: Any, tokens: NDArray[int64]) -> None:
    import torch

    with torch.no_grad():
        model.model(input_ids=torch.from_numpy(np.ascontiguousarray(tokens)), use_cache=False)


def empty_model(model_folder: Path) -> Any:
    """The model's modules without memory, except the rotary table, which is in no file."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.from_pretrained(model_folder, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32).eval()
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=settings)
    return model


Read = Callable[[Any, str, Iterable[str]], None]


def reader(model_folder: Path) -> Read:
    """A function that puts float32 tensors of the folder into a module: (module, prefix in the files, parameter names)."""
    from safetensors import safe_open

    places: dict[str, Path] = {}
    for path in sorted(Path(model_folder).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            places |= dict.fromkeys(file.keys(), path)

    def read(module: Any, prefix: str, names: Iterable[str]) -> None:
        found = {}
        for name in names:
            if prefix + name not in places:
                raise CandidateFailed(f"{model_folder} has no tensor {prefix}{name}")
            with safe_open(places[prefix + name], "pt") as file:
                found[name] = file.get_tensor(prefix + name).float()
        module.load_state_dict(found, strict=False, assign=True)

    return read


def stay_only_while_it_runs(layer: Any, prefix: str, read: Read) -> None:
    names = [name for name, _ in layer.named_parameters()]

    def enter(module: Any, args: Any) -> None:
        read(module, prefix, names)

    def leave(module: Any, args: Any, output: Any) -> None:
        module.to("meta")

    layer.register_forward_pre_hook(enter)
    layer.register_forward_hook(leave)


def counted(
    items: int, say: Say, done: str = "done", passes: int = 1, what: str = "layer", first: int = 0
) -> Callable[..., None]:
    """To be called after each layer (or whatever `what` is) of every pass: says that it is `done`, and the time left where the
    others take as long as it did: the mean would be too hopeful after layers that an interrupted run had rounded already. So many
    as `first` were done before."""
    before, steps = time.monotonic(), first

    def step(*_: Any) -> None:
        nonlocal before, steps
        now = time.monotonic()
        turn, number = divmod(steps, items)
        steps += 1
        left = passes * items - steps
        turns = f"pass {turn + 1} of {passes}: " if passes > 1 else ""
        say(f"{turns}{what} {number + 1} of {items} {done}" + (f", {(now - before) * left:.0f} s left" if left else ""))
        before = now

    return step


class ReachedError(Exception):
    """Carries what a linear reads; the rest of the layer is not computed."""


def forward_in_parts(original: Callable[..., Any], groups: Mapping[Any, tuple[str, ...]], modules: Mapping[str, Any],
                     visit: Visit, hidden: Any, attention_mask: Any = None, **more: Any) -> Any:  # fmt: skip
    """A layer's output, in the place of its input. `groups`: the first linear of each -> all names. The last part goes through
    the layer, stopping before each group until `visit` has seen it; for that the others are computed up to there."""
    *others, (rows, mask) = in_parts(hidden, attention_mask, AT_ONCE if len(hidden) <= AT_ONCE else AT_ONCE // 2)
    sought: Any = None

    def show(module: Any, args: tuple[Any, ...]) -> None:
        nonlocal sought
        x = args[0].reshape(-1, args[0].shape[-1]).float().numpy()
        if sought is module:
            raise ReachedError(x)
        if sought is None:
            sought = module
            meet(groups[module], chain(map(reached, others), [x]), modules, visit)
            sought = None

    def reached(part: tuple[Any, Any]) -> Floats:
        try:
            with half_products.forward():
                original(part[0], attention_mask=part[1], **more)
        except ReachedError as found:
            x: Floats = found.args[0]
            return x
        raise AssertionError("a group of linears that its layer does not come to")

    handles = [module.register_forward_pre_hook(show) for module in groups]
    try:
        made = original(rows, attention_mask=mask, **more)
    finally:
        for handle in handles:
            handle.remove()
    put(rows, made)
    for part, own in others:
        put(part, original(part, attention_mask=own, **more))
    return hidden


def in_parts(hidden: Any, attention_mask: Any, size: int) -> list[tuple[Any, Any]]:
    """[samples, length, hidden] -> views of so many samples, each with its own rows of the mask."""
    parts = hidden.split(size)
    each_its_own = attention_mask is not None and len(attention_mask) == len(hidden) > 1
    masks = attention_mask.split(size) if each_its_own else [attention_mask] * len(parts)
    return list(zip(parts, masks, strict=True))


def put(rows: Any, made: Any) -> None:
    rows.copy_(made[0] if isinstance(made, tuple) else made)


def meet(targets: tuple[str, ...], x: Parts, modules: Mapping[str, Any], visit: Visit) -> None:
    """Show the targets what they read, and replace their weights."""
    import torch

    weights = [modules[name].weight.detach() for name in targets]
    for name, weight in zip(targets, weights, strict=True):
        if not bool(torch.isfinite(weight).all()):
            raise CandidateFailed(f"{name} has weights that are not finite")
    with half_products.as_they_are():
        new = visit(targets, x, [weight.numpy() for weight in weights])
    for weight, value in zip(weights, new or (), strict=bool(new)):
        weight.copy_(torch.from_numpy(value))
