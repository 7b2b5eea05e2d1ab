"""The decoder of a Hugging Face folder with one layer in memory at a time, for methods that go layer by layer, and for those
that only look at activations (`observe.py`).

The model is built without memory (meta tensors); a layer's weights are read from the safetensors files when its turn
comes and dropped after it. All calibration samples go through as one batch, so one forward pass is enough: each group of
linears meets its inputs, may be replaced, and multiplies with what it was replaced by. What comes after sees the inputs
that the rounded model will give it (the "true sequential" order of the GPTQ authors' code, without its second pass).

Memory: one layer, the table of embeddings, and activations of all the samples. A Llama of 7B has 0.8 GB and 0.5 GB, and
8,192 tokens take 0.36 GB for each tensor of the MLP: about 3 GB in all, where the fp32 model has 27. What a method computes with
comes on top: GPTQ holds seven K x K matrices in float64 at once, 6.8 GB at K = 11008. `observe.py` lets a few samples through a
layer at a time (benchmarks/memory_7b.py: SmoothQuant's pass takes 1.8 GB).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.errors import CandidateFailed

from .affine import Floats
from .refusals import config
from .rescale import pairs
from .training import Say, silent

Visit = Callable[[tuple[str, ...], Floats, list[Floats]], Sequence[Floats] | None]
"""(linears that read one tensor, that tensor [T, K], their weights [N, K]) -> weights to go on with; None: the same."""


VisitLayer = Callable[[str, Any, Any, dict[str, Any]], None]
"""(name, the layer with its weights, what it reads: float32 torch [samples, length, hidden], its other arguments)"""


def stream(model_folder: Path, tokens: NDArray[int64], visit: Visit, say: Say = silent) -> None:
    """tokens: [samples, length]. `visit` is called once for every group of linears, in the order of the computation; `say` is
    told after every layer how far it is."""
    model = layer_by_layer(model_folder, say)
    modules = dict(model.named_modules())
    for pair in pairs(config(model_folder)):
        meet(pair.targets, modules, visit)
    run(model, tokens)


def stream_layers(model_folder: Path, tokens: NDArray[int64], visit: VisitLayer) -> None:
    """tokens: [samples, length]. `visit` is called once for every layer, before it runs."""
    model = layer_by_layer(model_folder)
    for number, layer in enumerate(model.model.layers):

        def show(module: Any, args: tuple[Any, ...], more: dict[str, Any], name: str = f"model.layers.{number}") -> None:
            visit(name, module, args[0], more)

        layer.register_forward_pre_hook(show, with_kwargs=True)
    run(model, tokens)


def layer_by_layer(model_folder: Path, say: Say = silent, passes: int = 1) -> Any:
    """The model, each layer of which has its weights while it runs; `say` is told after each how far it is of so many passes."""
    model = empty_model(model_folder)
    read = reader(model_folder)
    read(model.model, "model.", [name for name, _ in model.model.named_parameters() if not name.startswith("layers.")])
    for number, layer in enumerate(model.model.layers):
        stay_only_while_it_runs(layer, f"model.layers.{number}.", read)
    step = counted(len(model.model.layers), say, passes=passes)
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


def counted(layers: int, say: Say, done: str = "done", passes: int = 1) -> Callable[..., None]:
    """To be called after each layer of every pass: says that it is `done`, and the time left where the others take as long as it
    did: the mean would be too hopeful after layers that an interrupted run had rounded already."""
    before, steps = time.monotonic(), 0

    def step(*_: Any) -> None:
        nonlocal before, steps
        now = time.monotonic()
        turn, number = divmod(steps, layers)
        steps += 1
        left = passes * layers - steps
        turns = f"pass {turn + 1} of {passes}: " if passes > 1 else ""
        say(f"{turns}layer {number + 1} of {layers} {done}" + (f", {(now - before) * left:.0f} s left" if left else ""))
        before = now

    return step


def meet(targets: tuple[str, ...], modules: dict[str, Any], visit: Visit) -> None:
    """Show the targets their input just before the first of them multiplies it."""
    import torch

    def show(module: Any, args: tuple[Any, ...]) -> None:
        x = args[0].reshape(-1, args[0].shape[-1]).numpy()
        weights = [modules[name].weight.detach() for name in targets]
        for name, weight in zip(targets, weights, strict=True):
            if not bool(torch.isfinite(weight).all()):
                raise CandidateFailed(f"{name} has weights that are not finite")
        new = visit(targets, x, [weight.numpy() for weight in weights])
        for weight, value in zip(weights, new or (), strict=bool(new)):
            weight.copy_(torch.from_numpy(value))

    modules[targets[0]].register_forward_pre_hook(show)
