"""LLM-QAT (arXiv:2305.17888): quantization-aware training without data, of weights, activations and the cache at once.

Text (section 3.1) comes from the model itself: a random first token, the most likely ones up to the third to fifth, the rest
drawn from the model's own distribution, so that all of what it would say can come. The quantized model is trained to the
logits of the unquantized one on it (section 3.2). All ranges are min-max and symmetric, since clipping the outliers costs
more than it gains: weights per output channel, activations per token, keys and values per token. Rounding lets gradients
through.

    w8a8                                    8-8-16: a plain checkpoint, which any runtime runs that runs dynamic W8A8
    w8a8-kv8-token, w4a8-kv8-token, w4a8-kv4-token      8-8-8, 4-8-8 and 4-8-4, which no CPU kernel here runs: simulated

Only the linears of the decoder are trained; embeddings, norms and the output layer stay. Their weights twice, gradients and
two moments: about five times the linears in float32. Simulated on SmolLM2-135M (1,024 tokens): 6 steps take the KL of 4-8-8
from 2.26 to 1.53, 15 (at a rate of 3e-4) that of 4-8-4 from 2.79 to 1.69, 7 that of 8-8-8 from 0.049 to 0.043.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.scheme import Scheme

from . import dynamic_int8
from .fake import Fake, linears, seen_cache
from .grids import symmetric
from .kept import Kept, kept_beside
from .refusals import ONNX, memory_missing, no_kernel, not_offered, nothing_to_write
from .schemes import scheme as named
from .training import ENOUGH, Limits, Trained, device, divergence, products, silent, straight_through, train, used

NAME = "llm_qat"
TARGET: Target = "activations"
COST = "training: texts generated from the model, then gradient steps on its logits within budget.train_s"
SAMPLES, LENGTH = 64, 64
"""Texts that the model writes, and tokens of each."""
GREEDY = (3, 4, 5)
"""Tokens before sampling starts, in turn."""
BATCH = 4
STEPS = 300
RATES = {4: 2e-4, 8: 5e-5}
"""By the bits of the weights: the finer the grid, the smaller what is to be mended."""
SETTINGS = f"LLM-QAT: {SAMPLES} own texts of {LENGTH} tokens, batches of {BATCH}, rates {RATES}"
CACHE = "no runtime here rounds its cache with one scale a token: fixed scales a channel (kv_int8) or blocks of 32 (llama.cpp)"
MISSING = dict.fromkeys(("torch", *ONNX, "openvino", "llama.cpp"), CACHE)


def schemes() -> tuple[Scheme, ...]:
    return tuple(named(name) for name in ("w8a8", "w8a8-kv8-token", "w4a8-kv8-token", "w4a8-kv4-token"))


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    if scheme.quantizes_cache:
        return no_kernel(NAME, scheme, schemes(), runtime, MISSING)
    return not_offered(NAME, scheme, schemes(), runtime, ONNX) or memory_missing(NAME, model_folder, 5)


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None, train_s: float = ENOUGH.train_s,
          say: Callable[[str], None] = silent) -> tuple[str, ...]:  # fmt: skip
    """The trained checkpoint is exported anew: `base` holds the untrained weights. `calibration` is not read."""
    from .formats.folders import link_or_copy
    from .observe import load

    if reason := refuse(model_folder, scheme, runtime):
        nothing_to_write(NAME, reason)
    out.parent.mkdir(parents=True, exist_ok=True)
    none = np.zeros((0, 0), np.int64)
    with (
        kept_beside(out, model_folder, none, f"{SETTINGS} {scheme.name} {train_s} {used()}") as kept,
        tempfile.TemporaryDirectory(dir=out.parent, prefix=".trained.") as scratch,
    ):
        model = load(model_folder)
        weights, done = trained(model, scheme, Limits(train_s, say), kept)
        for name, linear in linears(model).items():
            linear.weight.data = weights[name]
        folder = Path(scratch) / "hf"
        model.save_pretrained(folder)
        for path in Path(model_folder).iterdir():
            if path.is_file() and not (folder / path.name).exists() and ".safetensors" not in path.name:
                link_or_copy(path, folder / path.name)
        del model, weights
        more = dynamic_int8.apply(folder, scheme, runtime, calibration, out)
    note = f"LLM-QAT on {SAMPLES} own texts of {LENGTH} tokens, batches of {BATCH}"
    return (done.note(note), *more)


def fake(model: Any, scheme: Scheme, calibration: NDArray[int64], limits: Limits = ENOUGH) -> Fake:
    """`calibration` is not read."""
    weights, _ = trained(model, scheme, limits, {})
    return untrained(model, scheme, weights)


def untrained(model: Any, scheme: Scheme, weights: Mapping[str, Any] | None = None) -> Fake:
    """The scheme by plain rounding: of the model's own weights, or of `weights`."""
    of_weights, of_inputs, of_cache = roundings(scheme)
    return Fake(
        model,
        weight=lambda name, w: of_weights(weights[name] if weights else w),
        inputs=lambda _, x: of_inputs(x),
        keys=(lambda _, k: of_cache(k)) if of_cache else None,
        values=(lambda _, v: of_cache(v)) if of_cache else None,
    )


Rounding = Callable[[Any], Any]


def roundings(scheme: Scheme) -> tuple[Rounding, Rounding, Rounding | None]:
    """Of weights [N, K] per channel, of activations [..., K] and of keys or values [B, heads, T, head_dim] per token."""
    assert scheme.weights is not None and scheme.activations is not None
    w_bits, a_bits = int(scheme.weights.bits), int(scheme.activations.bits)
    cache = None if scheme.keys is None else int(scheme.keys.bits)
    return (
        lambda w: symmetric(w, w_bits),
        lambda x: symmetric(x, a_bits),
        None if cache is None else lambda k: symmetric(k, cache, (1, 3)),
    )


def trained(model: Any, scheme: Scheme, limits: Limits, kept: Kept) -> tuple[dict[str, Any], Trained]:
    """Weights [N, K] of every linear before they are rounded; `model` stays as it is. The data takes its part of the time."""
    import torch

    place = device()
    model.requires_grad_(False).to(place)
    layers = linears(model)
    weights = {name: torch.nn.Parameter(linear.weight.detach().clone()) for name, linear in layers.items()}
    of_weights, of_inputs, of_cache = roundings(scheme)
    assert scheme.weights is not None
    rate = RATES[int(scheme.weights.bits)]
    if "data" not in kept:
        started = time.monotonic()
        limits.say(f"{NAME}: the model writes {SAMPLES} texts")
        kept["data"] = {"tokens": written_by(model, SAMPLES, LENGTH), "seconds": np.array([time.monotonic() - started])}
    tokens = kept["data"]["tokens"]

    def product(name: str, x: Any) -> Any:
        weight = straight_through(of_weights, weights[name])
        return torch.nn.functional.linear(straight_through(of_inputs, x), weight, layers[name].bias)

    def loss(step: int) -> Any:
        rows = np.random.default_rng(step).choice(len(tokens), min(BATCH, len(tokens)), replace=False)
        ids = torch.from_numpy(tokens[rows]).to(place)
        with torch.no_grad():
            wanted = model(ids, use_cache=False).logits
        with products(layers, product):
            logits = model(ids, **cached(of_cache)).logits
        return divergence(wanted, logits)

    left = limits._replace(train_s=limits.train_s - float(kept["data"]["seconds"][0]))
    with torch.enable_grad():
        done = train(NAME, weights, loss, STEPS, rate, left, kept)
    model.cpu()
    return {name: weight.detach().cpu() for name, weight in weights.items()}, done


def cached(of_cache: Rounding | None) -> dict[str, Any]:
    """What a forward pass is called with so that attention reads rounded keys and values."""
    if of_cache is None:
        return {"use_cache": False}

    def seen(_: int, x: Any) -> Any:
        return straight_through(of_cache, x)

    return {"use_cache": True, "past_key_values": seen_cache(seen, seen)}


def written_by(model: Any, samples: int, length: int, seed: int = 0) -> NDArray[int64]:
    """Texts of the model's own, int64 [samples, length]: first tokens at random, then greedy, then drawn."""
    import torch
    from transformers import DynamicCache

    generator = torch.Generator().manual_seed(seed)
    greedy = torch.tensor([GREEDY[i % len(GREEDY)] for i in range(samples)])
    ids = torch.randint(model.config.vocab_size, (samples, 1), generator=generator)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        while ids.shape[1] < length:
            logits = model(ids[:, -1:].to(model.device), past_key_values=cache, use_cache=True).logits[:, -1].cpu()
            drawn = torch.multinomial(torch.softmax(logits, -1), 1, generator=generator)
            likely = logits.argmax(-1, keepdim=True)
            ids = torch.cat([ids, torch.where((ids.shape[1] < greedy)[:, None], likely, drawn)], 1)
    found: NDArray[int64] = ids.numpy().astype(np.int64)
    return found
