"""The quality that a scheme would probably have, before anything is written: fake quantization in fp32 torch.

Weights are rounded to the scheme's grid and put back; activations are rounded on their way into each linear, keys and
values on their way out of the cache. Methods that say how they round (`fake`, see `methods/fake.py`) or which weights they
find (`rounded`) are asked; those that only round are rounded here, weights by the very function that makes their integers.
What a runtime adds beside (its own accumulation, an 8-bit head) is not simulated: the applied artifact is scored for real.
A scheme whose simulation fails, or gives numbers that are not finite, is a reason, and the others go on.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from quantadvisor.documents import AdvisorError, CandidateFailed, Quality, Scheme
from quantadvisor.kernels.guardian import die_with_parent
from quantadvisor.methods.affine import nearest
from quantadvisor.methods.fake import Fake, Forward, applied, channel_peaks, linears, with_weights
from quantadvisor.methods.grids import affine, symmetric
from quantadvisor.methods.layerwise import evenly
from quantadvisor.methods.observe import load
from quantadvisor.methods.registry import METHODS, method, trains
from quantadvisor.methods.training import Limits
from quantadvisor.profiling.quality import quality_of
from quantadvisor.profiling.worker import BLOCK

from .builds import OFFLINE

SMOOTHING = (0.5, 0.8)
"""SmoothQuant's exponents that are tried, the same for every linear; the method itself searches one for each tensor."""
PLAIN = ("rtn", "dynamic_int8", "smoothquant")
"""Methods that only round to the integers of the scheme."""
SEARCHED = {"gptq": "rtn", "awq": "rtn", "lkd": "rtn", "gguf_imatrix": "gguf", "llm_qat": "dynamic_int8"}
"""Methods that search or train where another one only rounds: they go through the whole model, layer by layer."""
SEARCH_SAMPLES, CALIBRATION_SAMPLES = 16, 8
"""Of the calibration: what searches get, and fixed ranges; fewer than for the artifact, so that both come out a bit worse."""
REACH = 5.0
"""A search is simulated where plain rounding has at most this many times the KL of the budget. On SmolLM2-135M GPTQ leaves
0.21 of the KL of rounding to nearest at 4 bits in groups of 64 (0.137 of 0.645, in ONNX Runtime: docs/log.md), the
most that a search was seen to take off."""


class Job(NamedTuple):
    """Schemes by `method-scheme` to simulate on the model of one folder. `calibration`: int64 [samples, length] in a file,
    for all but PLAIN. `kl_budget`: nats a token, from which follows which searches are worth their time."""

    model_folder: Path
    schemes: Mapping[str, Scheme]
    calibration: Path | None = None
    kl_budget: float | None = None
    train_s: float = 0.0
    """What each method that trains may take."""


class Scores(NamedTuple):
    """Of one job by `method-scheme`: float64 [3, tokens], as the worker's `score` gives, or why a scheme has none; `nothing`: why
    none has."""

    found: dict[str, np.ndarray]
    failed: dict[str, str]
    nothing: str | None = None


class Outcome(NamedTuple):
    """`Scores` as qualities."""

    quality: dict[str, Quality]
    failed: dict[str, str]
    nothing: str | None = None


def simulate_all(jobs: Sequence[Job], windows: np.ndarray, reference: Path, text: str) -> list[Outcome]:
    """What came of each job; windows int64 [W, S], `reference` holds their fp32 log-probabilities first. One child process does
    them all."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=quiet_child) as pool:
        done = [pool.submit(simulate, job, windows, reference) for job in jobs]
        return [outcome(each, text) for each in done]


def quiet_child() -> None:
    """The child prints nothing, loads nothing from a hub and dies with its parent."""
    parent = multiprocessing.parent_process()
    assert parent and parent.pid
    die_with_parent(parent.pid)
    os.environ |= OFFLINE
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)


def outcome(done: Future[Scores], text: str) -> Outcome:
    try:
        found, failed, nothing = done.result()
    except BrokenProcessPool:
        return Outcome({}, {}, "the process that simulates died (out of memory?)")
    return Outcome({name: quality_of(rows, text, simulated=True) for name, rows in found.items()}, failed, nothing)


def in_a_line(error: Exception) -> str:
    said = " ".join(str(error).split())[:300]
    return said if isinstance(error, AdvisorError) else f"{type(error).__name__}: {said}"


def simulate(job: Job, windows: np.ndarray, reference: Path) -> Scores:
    """In the child, out of which no error comes: it is a reason."""
    import torch

    with torch.no_grad():
        return simulated_scores(job, windows, reference)


def simulated_scores(job: Job, windows: np.ndarray, reference: Path) -> Scores:
    try:
        model = load(job.model_folder)
    except Exception as error:
        return Scores({}, {}, in_a_line(error))
    want = np.load(reference, mmap_mode="r")
    done: dict[Any, np.ndarray] = {}

    def simulated(name: str, scheme: Scheme) -> np.ndarray:
        """Plain grids of the same numbers are scored once, whatever the schemes' names."""
        plain = name.removesuffix(f"-{scheme.name}") in PLAIN
        key = (scheme.weights, scheme.activations, exponents(name)) if plain else name
        if key not in done:
            found = []
            for fake in fakes_of(model, name, scheme, job, windows):
                with applied(fake) as logits:
                    found.append(score(logits, windows, want))
            done[key] = of_least_kl(found)
        return done[key]

    scores = Scores({}, {})
    for name, scheme in sorted(job.schemes.items(), key=lambda each: plain_of(*each) is not None):
        plain = scores.found.get(plain_of(name, scheme) or "")
        if plain is None or within_reach(float(plain[1].mean()), job.kl_budget):
            try:
                scores.found[name] = simulated(name, scheme)
            except Exception as error:  # as of a build: whatever a method raises is the reason against its candidate
                scores.failed[name] = in_a_line(error)
    return scores


def of_least_kl(found: Sequence[np.ndarray]) -> np.ndarray:
    """Of the ways that were tried, scores float64 [3, tokens] each; CandidateFailed where none has finite logits."""
    finite = [rows for rows in found if np.isfinite(rows[1]).all()]
    if not finite:
        raise CandidateFailed("its simulated logits are not finite")
    return min(finite, key=lambda rows: float(rows[1].mean()))


def plain_of(name: str, scheme: Scheme) -> str | None:
    """`method-scheme` of the plain rounding that a search starts from; None for what does not search. Weights alone are the
    same integers whatever the float type of the rest is."""
    plain = SEARCHED.get(name.removesuffix(f"-{scheme.name}"))
    alike = scheme.name.removesuffix("-bf16") if scheme.activations is None else scheme.name
    return f"{plain}-{alike}" if plain else None


def within_reach(plain_kl: float, kl_budget: float | None) -> bool:
    return kl_budget is None or plain_kl <= REACH * kl_budget


def fake_of(method_name: str, model_folder: Path, train_s: float = 0.0) -> Callable[[Any, Scheme, np.ndarray], Fake] | None:
    """How a method itself rounds a model: by its `fake`, or the weights that it finds (`rounded`); None for PLAIN, and for
    what cannot be simulated."""
    if method_name in PLAIN or method_name not in METHODS:
        return None
    module: Any = method(method_name)
    if hasattr(module, "fake"):
        more = {"limits": Limits(train_s)} if trains(method_name) else {}
        return partial(module.fake, **more)
    if not hasattr(module, "rounded"):
        return None
    return lambda model, scheme, tokens: with_weights(model, module.rounded(model_folder, scheme, tokens))


def fakes_of(model: Any, name: str, scheme: Scheme, job: Job, windows: np.ndarray) -> Iterator[Fake]:
    """The ways to round `model` that are tried for `method-scheme`, each made when it is its turn: one, but for
    SmoothQuant one for each exponent."""
    own = fake_of(name.removesuffix(f"-{scheme.name}"), job.model_folder, job.train_s)
    if own is not None:
        assert job.calibration is not None
        samples = SEARCH_SAMPLES if plain_of(name, scheme) else CALIBRATION_SAMPLES
        made = own(model, scheme, evenly(np.load(job.calibration), samples))
        about_the_cache = made.weight is None and made.inputs is None
        yield made._replace(weight=plain_fake(model, scheme).weight) if about_the_cache and scheme.weights else made
    elif tried := exponents(name):
        peaks = channel_peaks(model, windows[:1])
        yield from (smoothed(model, scheme, alpha, peaks) for alpha in tried)
    else:
        yield plain_fake(model, scheme)


def exponents(name: str) -> tuple[float, ...]:
    return SMOOTHING if name.startswith("smoothquant") else ()


def plain_fake(model: Any, scheme: Scheme) -> Fake:
    """Weights and inputs on the scheme's integer grids: symmetric per token, or asymmetric over the whole tensor."""
    import torch

    number, activations = scheme.weights, scheme.activations

    def weight(_: str, w: Any) -> Any:
        if number is None:
            return w
        return torch.from_numpy(nearest(w.numpy(), int(number.bits), number.group_size or w.shape[1], number.symmetric))

    def inputs(_: str, x: Any) -> Any:
        if activations is None:
            return x
        bits = int(activations.bits)
        return symmetric(x, bits) if activations.granularity == "token" else affine(x, bits, None)

    return Fake(model, weight=weight, inputs=inputs)


def smoothed(model: Any, scheme: Scheme, alpha: float, peaks: Mapping[str, Any]) -> Fake:
    """The same after each linear was smoothed by itself; `peaks`: max |x| per input channel, float32 [K]."""
    weights = linears(model)
    factors = {}
    for name, peak in peaks.items():
        bound = weights[name].weight.data.abs().amax(0).clamp(min=1e-5)
        factors[name] = (peak.clamp(min=1e-5) ** alpha / bound ** (1 - alpha)).clamp(min=1e-5)
    plain = plain_fake(model, scheme)
    assert plain.weight is not None and plain.inputs is not None
    weight, inputs = plain.weight, plain.inputs
    return Fake(
        model,
        weight=lambda name, w: weight(name, w * factors[name]) / factors[name],
        inputs=lambda name, x: inputs(name, x / factors[name]) * factors[name],
    )


def score(logits_of: Forward, windows: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """float64 [3, W * S]: negative log-likelihood, KL and top-1 agreement against `reference`, [W * S, V]."""
    import torch

    result = np.full((3, windows.size), np.nan)
    at = 0
    for window in windows:
        logits = logits_of(window)
        for start in range(0, len(window), BLOCK):
            got = torch.log_softmax(logits[start : start + BLOCK], -1)
            want = torch.from_numpy(reference[at : at + len(got)].astype(np.float32)).log_softmax(-1)
            following = torch.from_numpy(window[start + 1 : start + 1 + len(got)])
            result[0, at : at + len(following)] = -got[torch.arange(len(following)), following]
            result[1, at : at + len(got)] = (want.exp() * (want - got)).sum(-1)
            result[2, at : at + len(got)] = got.argmax(-1) == want.argmax(-1)
            at += len(got)
    return result


def schemes_at_risk(pairs: Sequence[tuple[str, Scheme]], trained: bool = False) -> dict[str, Scheme]:
    """`method-scheme` of what can be simulated; INT8 caches, those in GGUF's blocks and mixtures are measured only, and so is
    what training makes unless `trained`: to simulate it is to train."""

    def known(name: str, scheme: Scheme) -> bool:
        if name in PLAIN:
            return not scheme.quantizes_cache
        blocks = scheme.keys is not None and scheme.keys.granularity == "group"
        return fake_of(name, Path()) is not None and (trained or not trains(name)) and not blocks

    return {f"{name}-{scheme.name}": scheme for name, scheme in pairs if known(name, scheme)}


def not_searched(method_name: str, scheme: Scheme, simulated: Mapping[str, Quality], kl_budget: float | None) -> str | None:
    """Why a search was not even simulated; None where it was, or where nothing speaks against it."""
    name = f"{method_name}-{scheme.name}"
    plain = plain_of(name, scheme)
    if plain is None or name in simulated or plain not in simulated:
        return None
    kl = simulated[plain].kl.mean
    if within_reach(kl, kl_budget):
        return None
    return f"{plain} has mean KL {kl:.3g}, over {REACH:g} times the budget of {kl_budget:g}: no search takes off that much"
