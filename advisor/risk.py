"""The quality that a scheme would probably have, before anything is written: fake quantization in fp32 torch.

Weights are rounded to the scheme's grid and put back; activations are rounded on their way into each linear. What a
runtime adds beside (its own accumulation, an 8-bit head, its own cache) is not simulated: the applied artifact is scored
for real.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from quantadvisor.documents import Quality, Scheme
from quantadvisor.methods.layerwise import evenly
from quantadvisor.methods.registry import method
from quantadvisor.profiling.quality import quality_of
from quantadvisor.profiling.worker import BLOCK

from .builds import quiet_child

SEARCHED = ("gptq", "awq", "gguf_imatrix")
"""Methods whose weights are what they themselves find, on fewer calibration tokens than the artifact's: a bit worse."""
SEARCH_SAMPLES = 16
"""Of the calibration: such a method goes through the whole model once, and this part of the advice must stay short."""
SMOOTHING = (0.5, 0.8)
"""SmoothQuant's exponents that are tried, the same for every linear; the method itself searches one for each tensor."""


class Job(NamedTuple):
    """Schemes by `method-scheme` to simulate on the model of one folder. `calibration`: int64 [samples, length] in a file,
    for methods that search."""

    model_folder: Path
    schemes: Mapping[str, Scheme]
    calibration: Path | None = None
    samples: int = SEARCH_SAMPLES


def simulate_all(jobs: Sequence[Job], windows: np.ndarray, reference: Path, text: str) -> list[dict[str, Quality]]:
    """Simulated quality by `method-scheme`, per job; windows int64 [W, S], `reference` holds their fp32 log-probabilities
    first. One child process does them all."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=quiet_child) as pool:
        done = [pool.submit(simulate, job, windows, reference) for job in jobs]
        return [{name: quality_of(score, text, simulated=True) for name, score in each.result().items()} for each in done]


def simulate(job: Job, windows: np.ndarray, reference: Path) -> dict[str, Any]:
    """In the child: float64 [3, tokens] per scheme, as the worker's `score` gives."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(job.model_folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    linears = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    original = {name: linear.weight.data for name, linear in linears.items()}
    peaks = channel_peaks(model, linears, windows[:1])
    want = np.load(reference, mmap_mode="r")
    done: dict[tuple[Any, ...], Any] = {}

    def rounded(name: str, scheme: Scheme, alpha: float | None) -> Any:
        per_token = scheme.activations and scheme.activations.granularity
        module: Any = method(name.removesuffix(f"-{scheme.name}"))
        key = (name,) if hasattr(module, "rounded") else (scheme.weights, per_token, alpha)
        if key not in done:
            if hasattr(module, "rounded"):
                hooks = place(linears, module, scheme, job)
            else:
                hooks = [round_linear(linear, scheme, alpha, peaks[name]) for name, linear in linears.items()]
            done[key] = score(model, windows, want)
            for hook in hooks:
                hook.remove()
            for name, linear in linears.items():
                linear.weight = torch.nn.Parameter(original[name], requires_grad=False)
        return done[key]

    return {
        name: min((rounded(name, scheme, a) for a in exponents(name)), key=lambda rows: rows[1].mean())
        for name, scheme in job.schemes.items()
    }


def place(linears: Mapping[str, Any], module: Any, scheme: Scheme, job: Job) -> list[Any]:
    """Put the weights in place that a method finds; no hooks are needed."""
    import torch

    assert job.calibration is not None
    tokens = evenly(np.load(job.calibration), job.samples)
    for name, w in module.rounded(job.model_folder, scheme, tokens).items():
        linears[name].weight = torch.nn.Parameter(torch.from_numpy(w), requires_grad=False)
    return []


def exponents(name: str) -> tuple[float | None, ...]:
    return SMOOTHING if name.startswith("smoothquant") else (None,)


def channel_peaks(model: Any, linears: Mapping[str, Any], windows: np.ndarray) -> dict[str, Any]:
    """max |x| per input channel of every linear, float32 [K]."""
    import torch

    peaks: dict[str, Any] = {}

    def watch(name: str) -> Any:
        def hook(_: Any, inputs: Any) -> None:
            peaks[name] = inputs[0].flatten(0, -2).abs().amax(0)

        return hook

    hooks = [linear.register_forward_pre_hook(watch(name)) for name, linear in linears.items()]
    model(torch.from_numpy(windows), logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    return peaks


def round_linear(linear: Any, scheme: Scheme, alpha: float | None, peaks: Any) -> Any:
    """Put the rounded weight in place and round the inputs by a hook, which is returned. `alpha`: smoothed first."""
    import torch

    weight, number, activations = linear.weight.data, scheme.weights, scheme.activations
    factors = torch.ones(weight.shape[1])
    if alpha is not None:
        bound = weight.abs().amax(0).clamp(min=1e-5)
        factors = (peaks.clamp(min=1e-5) ** alpha / bound ** (1 - alpha)).clamp(min=1e-5)
    if number is not None:
        rounded = round_weight(weight * factors, int(number.bits), number.group_size, number.symmetric)
        linear.weight = torch.nn.Parameter(rounded / factors, requires_grad=False)

    def hook(_: Any, inputs: Any) -> Any:
        if activations is None:
            return None
        return (round_activations(inputs[0] / factors, activations.granularity == "token") * factors, *inputs[1:])

    return linear.register_forward_pre_hook(hook)


def round_weight(w: Any, bits: int, group_size: int | None, symmetric: bool) -> Any:
    """w: [N, K] on its integer grid and back, per group along K or per row; half to even."""
    n, k = w.shape
    size = group_size or k
    grouped = w.reshape(n, -1, size) if k % size == 0 else w.reshape(n, 1, k)
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scale = grouped.abs().amax(-1, keepdim=True).clamp(min=1e-12) / top
        return ((grouped / scale).round().clamp(-top - 1, top) * scale).reshape(n, k)
    low, high = grouped.amin(-1, keepdim=True).clamp(max=0), grouped.amax(-1, keepdim=True).clamp(min=0)
    scale = (high - low).clamp(min=1e-12) / (2**bits - 1)
    zero = (-low / scale).round()
    return (((grouped / scale).round() + zero).clamp(0, 2**bits - 1) - zero).mul(scale).reshape(n, k)


def round_activations(x: Any, per_token: bool) -> Any:
    """INT8: one symmetric scale per token, or one asymmetric range for the whole tensor."""
    if per_token:
        scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
        return (x / scale).round() * scale
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low).clamp(min=1e-12) / 255
    zero = (-low / scale).round()
    return (((x / scale).round() + zero).clamp(0, 255) - zero) * scale


def score(model: Any, windows: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """float64 [3, W * S]: negative log-likelihood, KL and top-1 agreement against `reference`, [W * S, V]."""
    import torch

    result = np.full((3, windows.size), np.nan)
    at = 0
    for window in windows:
        logits = model(torch.from_numpy(window[None])).logits[0].float()
        for start in range(0, len(window), BLOCK):
            got = torch.log_softmax(logits[start : start + BLOCK], -1)
            want = torch.from_numpy(reference[at : at + len(got)].astype(np.float32)).log_softmax(-1)
            following = torch.from_numpy(window[start + 1 : start + 1 + len(got)])
            result[0, at : at + len(following)] = -got[torch.arange(len(following)), following]
            result[1, at : at + len(got)] = (want.exp() * (want - got)).sum(-1)
            result[2, at : at + len(got)] = got.argmax(-1) == want.argmax(-1)
            at += len(got)
    return result


def schemes_at_risk(pairs: Sequence[tuple[str, Scheme]]) -> dict[str, Scheme]:
    """`method-scheme` of what can be simulated: weights or activations rounded; caches and mixtures are measured only."""
    return {
        f"{method}-{scheme.name}": scheme
        for method, scheme in pairs
        if not scheme.quantizes_cache and method in (*SEARCHED, "rtn", "gguf", "dynamic_int8", "static_int8", "smoothquant")
    }
