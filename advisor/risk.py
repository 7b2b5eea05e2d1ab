"""The quality that a scheme would probably have, before anything is written: fake quantization in fp32 torch.

Weights are rounded to the scheme's grid and put back; activations are rounded on their way into each linear, keys and
values on their way out of the cache. Methods that say how they round (`fake`, see `methods/fake.py`) or which weights they
find (`rounded`) are asked; those that only round are rounded here, weights by the very function that makes their integers.
What a runtime adds beside (its own accumulation, an 8-bit head) is not simulated: the applied artifact is scored for real.
A scheme whose simulation fails, or gives numbers that are not finite, is a reason, and the others go on. Started by path, this
file is the child:

    in   {"job": Job, "windows": file, "reference": file, "text": name}
    out  Outcome, or {"nothing": reason}
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter

from quantadvisor.advisor.builds import quiet
from quantadvisor.documents import AdvisorError, CandidateFailed, Document, Quality, Scheme, Workload
from quantadvisor.kernels.answering import serve
from quantadvisor.kernels.machine import usable_cores
from quantadvisor.kernels.processes import ProbeProcess
from quantadvisor.methods.affine import nearest
from quantadvisor.methods.fake import Fake, Forward, applied, channel_peaks, linears, with_weights
from quantadvisor.methods.grids import affine, symmetric
from quantadvisor.methods.layerwise import evenly
from quantadvisor.methods.observe import load
from quantadvisor.methods.registry import METHODS, method, trains
from quantadvisor.methods.schemes import scheme as scheme_named
from quantadvisor.methods.training import Limits
from quantadvisor.profiling.quality import budget_breach, quality_of, straddles
from quantadvisor.profiling.worker import BLOCK

CHILD = Path(__file__)
SMOOTHING = (0.5, 0.8)
"""SmoothQuant's exponents that are tried, the same for every linear; the method itself searches one for each tensor."""
PLAIN = ("rtn", "dynamic_int8", "smoothquant")
"""Methods that only round to the integers of the scheme."""
SEARCHED = {
    "gptq": "rtn", "awq": "rtn", "lkd": "rtn", "gguf_imatrix": "gguf", "llm_qat": "dynamic_int8",
    "smoothquant_gptq": "smoothquant",
}  # fmt: skip
"""Methods that search or train where another one only rounds: they go through the whole model, layer by layer."""
FINER = MappingProxyType({
    "smoothquant_gptq-w8a8": "smoothquant-w8a8",
    "static_int8-w8a8-static-mse": "static_int8-w8a8-static",
    "rtn-w8-g32": "rtn-w8-g64",
    "gptq-w8-g64": "rtn-w8-g64",
    "gptq-w4-g32": "gptq-w4-g64",
    "awq-w4-g32": "awq-w4-g64",
    "gguf-q5_k": "gguf-q4_k",
    "gguf-q6_k": "gguf-q5_k",
    "gguf_imatrix-q4_k": "gguf-q4_k",
    "gguf_imatrix-q5_k": "gguf_imatrix-q4_k",
    "gguf_imatrix-q3_k": "gguf-q3_k",
    "gguf_imatrix-q2_k": "gguf-q2_k",
})  # fmt: skip
"""`method-scheme` that costs more bytes or a longer search -> the coarser one that it stands behind, likewise with -bf16: it is
worth its time only where that one alone may not hold the budget."""
FEWER = MappingProxyType({
    "rtn-w3-g64": "rtn-w4-g64",
    "rtn-w2-g64": "rtn-w3-g64",
    "gguf-q3_k": "gguf-q4_k",
    "gguf-q2_k": "gguf-q3_k",
})  # fmt: skip
"""`method-scheme` -> the same rounding with more bits: what breaks the budget there breaks it here."""
SEARCH_SAMPLES, CALIBRATION_SAMPLES = 16, 8
"""Of the calibration: what searches get, and fixed ranges; fewer than for the artifact, so that both come out a bit worse."""
RESERVE = 2.0
"""What the runtime adds beside may make of a simulated KL (SmolLM2-135M, SmoothQuant in ONNX Runtime: 0.0121 of 0.0086)."""
REACH = 5.0
"""A search is simulated where plain rounding has at most this many times the KL of the budget. On SmolLM2-135M GPTQ leaves
0.21 of the KL of rounding to nearest at 4 bits in groups of 64 (0.137 of 0.645, in ONNX Runtime: docs/log.md), the
most that a search was seen to take off."""


class Job(NamedTuple):
    """Schemes by `method-scheme` to simulate on the model of one folder. `calibration`: int64 [samples, length] in a file,
    for all but PLAIN. `workload`: from its quality budget follows which searches are worth their time; None: all are."""

    model_folder: Path
    schemes: Mapping[str, Scheme]
    calibration: Path | None = None
    workload: Workload | None = None
    train_s: float = 0.0
    """What each method that trains may take."""
    alone: frozenset[str] = frozenset()
    """`method-scheme` of FINER that are listed somewhere without their coarser one: simulated in any case."""


class Scores(NamedTuple):
    """Of one job by `method-scheme`: float64 [3, tokens], as the worker's `score` gives, or why a scheme has none; `nothing`: why
    none has."""

    found: dict[str, np.ndarray]
    failed: dict[str, str]
    nothing: str | None = None


class Outcome(Document):
    """`Scores` as qualities."""

    quality: dict[str, Quality] = {}
    failed: dict[str, str] = {}
    nothing: str | None = None


JOB = TypeAdapter(Job)


def simulate_all(
    jobs: Sequence[Job],
    windows: np.ndarray,
    reference: Path,
    text: str,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> list[Outcome]:
    """What came of each job; windows int64 [W, S], `reference` holds their fp32 log-probabilities first. One child process does
    them all, but for one that follows another's death; `environment`: what shows it the device."""
    threads = usable_cores()
    with (
        tempfile.TemporaryDirectory(prefix="quantadvisor-") as folder,
        ProbeProcess(threads, CHILD, environment=quiet(threads) | dict(environment)) as process,
    ):
        np.save(Path(folder) / "windows.npy", windows)
        shared = {"windows": f"{folder}/windows.npy", "reference": str(reference), "text": text}
        return [outcome(process, {"probe": "the simulation", "job": JOB.dump_python(job, mode="json"), **shared}) for job in jobs]


def outcome(process: ProbeProcess, request: Mapping[str, object]) -> Outcome:
    try:
        return Outcome.model_validate(process.ask(request, math.inf))
    except CandidateFailed as error:
        return Outcome(nothing=str(error))


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """In the child."""
    scores = simulate(JOB.validate_python(request["job"]), np.load(request["windows"]), Path(request["reference"]))
    quality = {name: quality_of(rows, request["text"], simulated=True) for name, rows in scores.found.items()}
    return Outcome(quality=quality, failed=scores.failed, nothing=scores.nothing).model_dump(mode="json")


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
        """Plain grids of the same numbers are scored once, whatever the schemes' names, and so is what a search finds on them."""
        method_name = name.removesuffix(f"-{scheme.name}")
        numbers = (scheme.weights, scheme.activations, scheme.keys, scheme.values)
        searched = (method_name, *numbers) if method_name in SEARCHED else name
        key = (*numbers, exponents(name)) if method_name in PLAIN else searched
        if key not in done:
            found = []
            for fake in fakes_of(model, name, scheme, job, windows):
                with applied(fake) as logits:
                    found.append(score(logits, windows, want))
            done[key] = of_least_kl(found)
        return done[key]

    scores, known = Scores({}, {}), dict[str, Quality]()
    for name, scheme in sorted(job.schemes.items(), key=lambda each: depth(*each)):
        method_name = name.removesuffix(f"-{scheme.name}")
        if job.workload and not_searched(method_name, scheme, known, job.workload, name in job.alone):
            continue
        try:
            scores.found[name] = simulated(name, scheme)
            known[name] = quality_of(scores.found[name], "", simulated=True)
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
    return SMOOTHING if name.startswith("smoothquant-") else ()


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


def coarser_of(name: str) -> str | None:
    """What a `method-scheme` of FINER stands behind, in the same float type."""
    stem = name.removesuffix("-bf16")
    found = FINER.get(stem)
    return f"{found}{name[len(stem) :]}" if found else None


def depth(name: str, scheme: Scheme) -> int:
    """How many simulations one after the other decide whether `method-scheme` is simulated."""
    before = [one for one in (coarser_of(name), FEWER.get(name)) if one]
    return max([int(plain_of(name, scheme) is not None), *(1 + depth(one, of_name(one)[1]) for one in before)])


def of_name(name: str) -> tuple[str, Scheme]:
    """Method and scheme of a `method-scheme`."""
    method_name, _, stem = name.partition("-")
    return method_name, scheme_named(stem)


def not_searched(
    method_name: str, scheme: Scheme, simulated: Mapping[str, Quality], workload: Workload, alone: bool = False
) -> str | None:
    """Why a candidate is not even simulated: more bits break the budget already, what it starts from is out of a search's reach,
    or the coarser one that it stands behind (unless it is there `alone`) needs nothing finer, or is not simulated for such a
    reason itself. None where nothing speaks against it."""
    name = f"{method_name}-{scheme.name}"
    if name in FEWER and (reason := broken_before(FEWER[name], simulated, workload)):
        return reason
    if name not in simulated and (reason := out_of_reach(plain_of(name, scheme), simulated, workload)):
        return reason
    coarser = None if alone else coarser_of(name)
    if coarser is None:
        return None
    before, known = of_name(coarser), simulated.get(coarser)
    if reason := not_searched(*before, simulated, workload):
        return reason
    if known is None:
        return None
    same_bits = scheme.weights and before[1].weights and scheme.weights.bits == before[1].weights.bits
    if name not in simulated and same_bits and (reason := out_of_reach(coarser, simulated, workload)):
        return reason
    if not well_inside(known, workload):
        return None
    found = f"mean KL {known.kl.mean:.3g} [{known.kl.low:.3g}, {known.kl.high:.3g}], simulated"
    return f"{coarser} alone is well inside the budget ({found}): nothing finer is needed"


def broken_before(wider: str, simulated: Mapping[str, Quality], workload: Workload) -> str | None:
    """Why fewer bits than those of `wider` cannot hold the budget; None where they may."""
    quality = simulated.get(wider)
    if quality is not None and (breach := budget_breach(at_best(quality), workload)):
        return f"{wider} breaks the budget already: {breach}, simulated"
    return broken_before(FEWER[wider], simulated, workload) if wider in FEWER else None


def at_best(quality: Quality) -> Quality:
    """The better end of each interval: what a simulation on few tokens cannot rule out."""
    kl = quality.kl.model_copy(update={"mean": quality.kl.low})
    return quality.model_copy(update={"kl": kl, "top1": quality.top1.model_copy(update={"mean": quality.top1.high})})


def out_of_reach(plain: str | None, simulated: Mapping[str, Quality], workload: Workload) -> str | None:
    """Why nothing in the bits of `plain` can hold the budget; None where something may, or that one was not simulated."""
    budget, quality = workload.quality.kl_mean_max, simulated.get(plain) if plain else None
    if quality is None or budget is None or quality.kl.mean <= REACH * budget:
        return None
    far = f"{plain} has mean KL {quality.kl.mean:.3g}, over {REACH:g} times the budget of {budget:g}"
    return f"{far}: no search takes off that much, nor do smaller groups"


def well_inside(quality: Quality, workload: Workload) -> bool:
    """Does a simulation hold the budget even with RESERVE?"""
    budget = workload.quality.kl_mean_max
    inside = budget is None or RESERVE * quality.kl.high <= budget
    return inside and not (budget_breach(quality, workload) or straddles(quality, workload))


def main() -> None:
    serve(answer, "nothing")


if __name__ == "__main__":
    main()
