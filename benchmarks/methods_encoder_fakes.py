"""How each method rounds any torch model whose linears read what `run` shows: for an encoder, of which methods have no map.

What looks at inputs does so for every linear by itself, on what the unrounded model gives it; no scale moves into a norm.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from quantadvisor.advisor.risk import plain_fake, smoothed
from quantadvisor.methods import fp8, fpq, fpq_activations, gptq, kbit, static_int8
from quantadvisor.methods.affine import Floats, dequantize_groups
from quantadvisor.methods.clipping import limits
from quantadvisor.methods.fake import Fake, linears, with_weights
from quantadvisor.methods.layerwise import gram, grid_of, hessian
from quantadvisor.methods.registry import METHODS, method, trains
from quantadvisor.methods.schemes import scheme

ALPHA = 0.5
"""SmoothQuant's exponent, its paper's for most models: what a decoder's map lets us search, nobody searches here."""
SAME = "-bf16"
NO_CACHE, TRAINS = "an encoder keeps no cache", "trains, on a decoder's logits or layer by layer through a decoder"
NO_MAP = "needs to know which weights write a linear's inputs, and has no map of BertModel: refused by that name"
HALF = "the integers of the row without -bf16: what else is stored is in 16 bit"
BLOCKS = "super-blocks of 256 do not divide rows of 384"
WEIGHED = "llama.cpp's own rounding weighs inputs of a model that it runs"
GREEDY = "K^3 operations a row: see GPTQ"


def fakes(model: Any, run: Callable[[], Any]) -> dict[str, Callable[[], Fake]]:
    """method-scheme -> how it rounds the model. `run` shows the calibration texts."""
    found: dict[str, Callable[[], Fake]] = {}
    for name in ("rtn", "dynamic_int8"):
        for made in method(name).schemes():
            if not made.name.endswith(SAME):
                found[f"{name}-{made.name}"] = partial(plain_fake, model, made)
    for made in kbit.schemes():
        if made.weights and not made.weights.kept_percent and not made.name.endswith(SAME):
            found[f"kbit-{made.name}"] = partial(by_itself, model, partial(kbit.on_codebook, scheme=made))
    for made in method("gguf").schemes():
        if made.weights and made.weights.group_size == 32:
            found[f"gguf-{made.name}"] = partial(in_ggml, model, made.name)
    for name, wanted in (("llm_int8", "w8a8-outlier"), ("zeroquant", "w8a8-g64"), ("zeroquant", "w4a8-g64"), ("fp8", "fp8"),
                         ("fp8", "fp8-block"), ("fp8", "fp8-tensor"), ("fp8", "fp8-e5m2")):  # fmt: skip
        module: Any = method(name)
        found[f"{name}-{wanted}"] = partial(module.fake, model, scheme(wanted), np.zeros((0, 1), np.int64))
    for made in gptq.schemes():
        if not made.name.endswith(SAME):
            found[f"gptq-{made.name}"] = lambda made=made: seen_by(model, run, lambda w, x: by_gptq(w, x, made))
    for made in fpq.schemes():
        bits = int(made.weights.bits if made.weights else 0)
        found[f"fpq-{made.name}"] = lambda bits=bits: seen_by(model, run, lambda w, x: fpq.search(w, mean_gram(x), bits)[0])
    for made in static_int8.schemes():
        if not made.name.endswith("-npu"):
            found[f"static_int8-{made.name}"] = lambda made=made: static_int8.on_ranges(model, ranges(model, run, made))
    found["fp8-fp8-static"] = lambda: fp8.with_peaks(model, peaks(model, run))
    for wanted in ("w8a8", "w7a8", "w8a8-tensor"):
        found[f"smoothquant-{wanted}"] = lambda wanted=wanted: smoothed(model, scheme(wanted), ALPHA, peaks(model, run))
    for bits in ((4, 4), (4, 8)):
        stem = f"fpq_activations-w{bits[0]}a{bits[1]}-fp"
        found[f"{stem}-minmax"] = partial(fpq_activations.searched, model, bits, run, (1.0,), shifted=False)
        found[stem] = partial(fpq_activations.searched, model, bits, run)
    assert {name.split("-")[0] for name in found} <= set(METHODS)
    return found


def absent(known: Iterable[str]) -> dict[str, list[str]]:
    """{why: the rows that are not among `known`}, of those that round anything."""
    there, found = set(known), defaultdict(list)
    for name in METHODS:
        for made in method(name).schemes():
            if name != "none" and f"{name}-{made.name}" not in there:
                found[why_absent(name, made.name)].append(f"{name}-{made.name}")
    return found


def why_absent(name: str, scheme_name: str) -> str:
    if method(name).TARGET == "kv_cache":
        return NO_CACHE
    if trains(name):
        return TRAINS
    if scheme_name.endswith(SAME):
        return HALF
    others = {"gguf": BLOCKS, "gguf_imatrix": WEIGHED, "obq": GREEDY}
    return others.get(name, NO_MAP)


def by_itself(model: Any, rounded: Callable[[Floats], Floats]) -> Fake:
    """Weights alone, each linear's by `rounded`, [N, K] -> [N, K]."""
    import torch

    return Fake(model, weight=lambda _, w: torch.from_numpy(rounded(w.numpy())))


def in_ggml(model: Any, kind: str) -> Fake:
    from quantadvisor.methods.formats import gguf

    return by_itself(model, lambda w: gguf.round_rows(w, kind))


def seen_by(model: Any, run: Callable[[], Any], rounded: Callable[[Floats, Floats], Floats]) -> Fake:
    """Weights alone, by `rounded` of a linear's weights [N, K] and of all that it read, [T, K]."""
    inputs = read_by(model, run)
    return with_weights(model, {name: rounded(one.weight.data.numpy(), inputs[name]) for name, one in linears(model).items()})


def by_gptq(w: Floats, x: Floats, made: Any) -> Floats:
    grid = grid_of(made)
    return dequantize_groups(*gptq.solve(w, hessian([x]), grid), grid.group)


def mean_gram(x: Floats) -> Floats:
    return gram(x) / np.float32(len(x))


def ranges(model: Any, run: Callable[[], Any], made: Any) -> list[static_int8.Range]:
    clip = static_int8.clip_of(made)
    return [((name,), *limits(x, clip)) for name, x in read_by(model, run).items()]


def peaks(model: Any, run: Callable[[], Any]) -> dict[str, Any]:
    """max |x| of every input channel, torch float32 [K]."""
    return fpq_activations.observed(linears(model), run)[1]


def read_by(model: Any, run: Callable[[], Any]) -> Mapping[str, Floats]:
    """float32 [tokens, K] that each linear reads while `run` runs."""
    found: dict[str, list[Floats]] = defaultdict(list)

    def watch(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        return lambda _, args: found[name].append(args[0].detach().flatten(0, -2).numpy().copy())

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in linears(model).items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return {name: np.concatenate(parts) for name, parts in found.items()}
