"""Layer-by-layer knowledge distillation of ZeroQuant (LKD, arXiv:2206.01861, section 4.3): each layer is trained alone.

Layer k reads what the unquantized layers before it give, and its weights are trained so that its output on the quantized
weights (and inputs, where the scheme rounds them) comes near that on its own:  min |L_k(x) - L^_k(x)|^2. Rounding lets
gradients through. Only one layer, its gradients and Adam's moments are in memory, and no labels are needed. Then every
linear's trained weights are rounded to nearest on the grid that they were trained for.

    w4-g64              asymmetric groups, as `rtn` writes them: what runtimes here multiply by
    w4a8-g64, w8a8-g64  ZeroQuant's own: symmetric groups and INT8 tokens, which no CPU kernel here multiplies

The seconds of training are shared out among the layers still to come. On SmolLM2-135M, 8 steps a layer of 2 samples of 64 tokens
take simulated KL (512 tokens) from 0.71 to 0.52 in W4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from . import layerwise, zeroquant
from .affine import Floats, dequantize_groups, quantize_groups
from .artifact import base_folder, tokens_read, write_grouped
from .fake import Fake
from .grids import LEAST, affine, in_groups, symmetric
from .kept import Arrays, Kept, kept_beside
from .layerwise import evenly, grid_of, loaded
from .refusals import config, nothing_to_write, padding
from .schemes import scheme as named
from .training import ENOUGH, Limits, device, products, silent, straight_through, train, used

NAME = "lkd"
TARGET: Target = "weights"
COST = "training: each layer alone, on its quantized weights, within budget.train_s"
WRITTEN = "w4-g64"
SAMPLES = 64
BATCH = 4
"""Samples of one step."""
STEPS = 60
"""Most steps of one layer."""
RATES = {4: 5e-3, 8: 5e-4}
"""By bits, of a column's root mean square: Adam's steps have one size, whatever that of a weight is. Columns that read a loud
channel are small, and steps of a size for all would drown them."""
SETTINGS = f"LKD: {STEPS} steps a layer, batches of {BATCH} samples, rates {RATES} of a column's RMS"
Rounding = Callable[[Any], Any]


def schemes() -> tuple[Scheme, ...]:
    return (named(WRITTEN), *(named(name) for name in ("w4a8-g64", "w8a8-g64")))


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    if scheme.activations is not None:
        return zeroquant.refuse(model_folder, scheme, runtime)
    return layerwise.refuse(NAME, schemes(), model_folder, scheme, runtime)


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None, train_s: float = ENOUGH.train_s,
          say: Callable[[str], None] = silent) -> tuple[str, ...]:  # fmt: skip
    if scheme.activations is not None:
        nothing_to_write(NAME, refuse(model_folder, scheme, runtime))
    tokens, limits = evenly(calibration, SAMPLES), Limits(train_s, say)
    with (
        base_folder(model_folder, runtime, out, base) as source,
        kept_beside(out, model_folder, tokens, f"{SETTINGS} {scheme.name} {train_s} {used()}") as kept,
    ):
        steps = distil_all(model_folder, tokens, scheme, kept, limits)
        given = {name: partial(loaded, kept, name) for name in kept if name not in steps}
        write_grouped(model_folder, source, scheme, runtime, out, given)
    how = f"{SETTINGS}, {used()}; {summary(steps)}; on {tokens_read(tokens, calibration)}"
    return (how, *padding(model_folder, scheme, runtime))


def summary(steps: Mapping[str, int]) -> str:
    least = min(steps.values())
    return f"{least} to {max(steps.values())} done" + (": budget.train_s ended it" if least < STEPS else "")


def rounded(model_folder: Path, scheme: Scheme, calibration: NDArray[int64], limits: Limits = ENOUGH) -> dict[str, Floats]:
    """{linear: the weights [N, K] that its integers stand for}."""
    kept = dict[str, Arrays]()
    steps = distil_all(model_folder, evenly(calibration, SAMPLES), scheme, kept, limits)
    group = grid_of(scheme).group
    return {name: dequantize_groups(*loaded(kept, name), group) for name in kept if name not in steps}


def fake(model: Any, scheme: Scheme, calibration: NDArray[int64], limits: Limits = ENOUGH) -> Fake:
    """Of a model that was loaded from a folder."""
    import torch

    found = rounded(Path(model.name_or_path), scheme, calibration, limits)
    _, inputs = roundings(scheme)
    return Fake(
        model,
        weight=lambda name, _: torch.from_numpy(found[name]),
        inputs=(lambda _, x: inputs(x)) if inputs else None,
    )


def distil_all(model_folder: Path, tokens: NDArray[int64], scheme: Scheme, kept: Kept, limits: Limits) -> dict[str, int]:
    """Integers of every linear into `kept`, and of every layer its progress; returns the layers' steps. What is there
    already is taken, not trained."""
    import torch

    from .stream import stream_layers

    grid, layers = grid_of(scheme), int(config(model_folder)["num_hidden_layers"])
    steps: dict[str, int] = {}
    left_s = limits.train_s

    def visit(layer_name: str, layer: Any, hidden: Any, more: dict[str, Any]) -> None:
        nonlocal left_s
        linears = {f"{layer_name}.{name}": each for name, each in layer.named_modules() if isinstance(each, torch.nn.Linear)}
        if any(name not in kept for name in linears):
            share = limits._replace(train_s=left_s / (layers - len(steps)))
            for name, weight in distilled(layer_name, layer, linears, hidden, more, scheme, share, kept).items():
                kept[name] = quantize_groups(weight.numpy(), *grid)._asdict()
            kept[layer_name] = {"progress": kept[layer_name]["progress"]}
        done, _, seconds = kept[layer_name]["progress"]
        steps[layer_name] = int(done)
        left_s = max(0.0, left_s - seconds)

    stream_layers(model_folder, tokens, visit)
    return steps


def distilled(layer_name: str, layer: Any, linears: Mapping[str, Any], hidden: Any, more: dict[str, Any], scheme: Scheme,
              limits: Limits, kept: Kept) -> dict[str, Any]:  # fmt: skip
    """The trained weights [N, K] of one layer by linear; hidden: [samples, length, hidden], what it reads. What is trained is
    each weight over the root mean square of its column."""
    import torch

    place = device()
    layer.to(place)
    hidden, more = moved(hidden, place), {key: moved(value, place) for key, value in more.items()}
    wanted = torch.cat([output(layer, rows, more) for rows in hidden.split(BATCH)])
    scale = wanted.var()
    sizes = {name: linear.weight.detach().square().mean(0).sqrt().clamp(min=LEAST) for name, linear in linears.items()}
    relative = {name: torch.nn.Parameter(linear.weight.detach() / sizes[name]) for name, linear in linears.items()}
    of_weights, of_inputs = roundings(scheme)

    def product(name: str, x: Any) -> Any:
        x = straight_through(of_inputs, x) if of_inputs else x
        weight = straight_through(of_weights, relative[name] * sizes[name])
        return torch.nn.functional.linear(x, weight, linears[name].bias)

    def loss(step: int) -> Any:
        rows = np.random.default_rng(step).choice(len(hidden), min(BATCH, len(hidden)), replace=False)
        return (output(layer, hidden[rows], more) - wanted[rows]).square().mean() / scale

    with products(linears, product), torch.enable_grad():
        train(layer_name, relative, loss, STEPS, RATES[grid_of(scheme).bits], limits, kept)
    layer.cpu()
    return {name: (relative[name].detach() * sizes[name]).cpu() for name in linears}


def moved(value: Any, place: str) -> Any:
    """A tensor, or several, onto a device; anything else as it is."""
    import torch

    if isinstance(value, tuple):
        return tuple(moved(each, place) for each in value)
    return value.to(place) if torch.is_tensor(value) else value


def output(layer: Any, hidden: Any, more: dict[str, Any]) -> Any:
    """Of a layer, past the hooks that bring and drop its weights."""
    made = layer.forward(hidden, **more)
    return made[0] if isinstance(made, tuple) else made


def roundings(scheme: Scheme) -> tuple[Rounding, Rounding | None]:
    """Of weights, in the groups of the scheme; of inputs, per token, where it rounds them."""
    bits, group, is_symmetric = grid_of(scheme)
    on_grid = symmetric if is_symmetric else affine
    return lambda w: in_groups(w, group, lambda part: on_grid(part, bits)), (
        (lambda x: symmetric(x, 8)) if scheme.activations else None
    )
