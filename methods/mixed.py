"""4 or 8 bit per linear: what rounding each one costs in KL, against what each width costs to run (a knapsack).

To second order, a change dY of a linear's output costs  KL = 1/2 E[(g . dY)^2],  g being the gradient of log p(y) with y
drawn from the model itself: the Fisher information, as SqueezeLLM uses it (arXiv:2306.07629), kept per token instead of
per weight. dY = X (W - W_b)^T is exact for the real inputs X.

A width costs the seconds that the timed kernels of its (N, K) take of a request at the workload's M; bytes where no kernels were
timed. The choice is the cheapest whose summed KL is at most TARGET_KL, or, given a budget of seconds or of bytes (the spec's
`budget.linears_ms`, `budget.weights_mib`), the one of the least summed KL within it (`knapsack.py`). A linear that 8 bit makes no
slower is 8 bit. lm_head is always 8 bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from quantadvisor.documents.base import Target
from quantadvisor.documents.errors import CandidateFailed
from quantadvisor.documents.scheme import Scheme

from .affine import Floats, nearest
from .artifact import base_folder
from .kept import Arrays, Kept, kept_beside, resumed
from .knapsack import cheapest, within
from .linear_format import LinearFormat
from .refusals import ONNX, config, memory_missing, not_offered, padding
from .rescale import mapping_missing, pairs
from .schemes import named
from .stream import counted
from .training import Say, silent

NAME = "mixed"
TARGET: Target = "weights"
COST = "gradients of the calibration samples, each linear rounded twice to be judged, then one pass over the weights"
TARGET_KL = 0.015
"""Nats a token, predicted. What is measured lies higher (SmolLM2-135M, rescaled off its grid, 8 bit given by KL per byte):
0.42 for 0.29, 0.17 for 0.10, 0.10 for 0.05 and 0.080 for 0.035 in groups of 32, 0.029 for 0.015 in groups of 64. The sum leaves
out how one linear's errors at different tokens add up, what lm_head and rounded activations cost, and that the choice favours
linears whose KL came out too low."""
TOKENS = 256
"""Of the calibration, that sensitivities are measured on: its first samples, or one cut to as many."""


@dataclass(frozen=True)
class Sensitivity:
    """Predicted KL of rounding one linear of the graph to 4 and to 8 bit, and the (N, K) of the linears that are fused in it."""

    name: str
    at4: float
    at8: float
    shapes: tuple[tuple[int, int], ...]

    @property
    def weights(self) -> int:
        return sum(n * k for n, k in self.shapes)


class Costs(NamedTuple):
    """What each linear costs in 4 and in 8 bit: seconds of a request, or bytes."""

    unit: Literal["s", "bytes"]
    of: tuple[tuple[float, float], ...]


def schemes() -> tuple[Scheme, ...]:
    return named("w4w8-g32", "w4w8-g64")


def refuse(model_folder: Path, scheme: Scheme, runtime: str) -> str | None:
    if refused := not_offered(NAME, scheme, schemes(), runtime, ONNX):
        return refused
    return mapping_missing(config(model_folder)) or memory_missing(NAME, model_folder, 1)


def apply(model_folder: Path, scheme: Scheme, runtime: str, calibration: NDArray[int64], out: Path, *,
          base: Path | None = None, accuracy_level: int = 4, target: float = TARGET_KL,
          linear_s: Mapping[tuple[int, int, int], float] | None = None, most_s: float | None = None,
          most_bytes: float | None = None, say: Say = silent) -> tuple[str, ...]:  # fmt: skip
    """`linear_s`: seconds that a linear takes of a request, by (N, K, bits). `most_s` or `most_bytes`: what all linears but
    lm_head may take of it, or store."""
    assert scheme.weights is not None
    assert scheme.weights.group_size is not None
    from .formats import onnx

    group, tokens = scheme.weights.group_size, judged_tokens(calibration)
    with (
        base_folder(model_folder, runtime, out, base) as source,
        kept_beside(out, model_folder, tokens, f"{NAME} {scheme.name}") as kept,
    ):
        known = resumed(len(kept))
        names = onnx.linear_names(source)
        measured = sensitivities(model_folder, tokens, group, names, say, kept)
        costs = costs_of(measured, group, {} if most_bytes is not None else linear_s or {})
        if most_s is not None and costs.unit != "s":
            reason = "some linear was not timed in 4 and 8 bits, so that seconds cannot bound them"
            raise CandidateFailed(f"{reason}: give budget.weights_mib in place of budget.linears_ms")
        wide = choose(measured, costs, target, most_s if most_bytes is None else most_bytes)
        eight, four = LinearFormat(8, group, True), LinearFormat(4, group, False)
        plan = {name: eight if name in wide or name == "lm_head" else four for name in names}
        onnx.quantize_weights(source, out, plan, accuracy_level)
    return (note(measured, wide, costs), *padding(model_folder, scheme, runtime), *known)


def judged_tokens(calibration: NDArray[int64]) -> NDArray[int64]:
    """int64 [samples, length], TOKENS of them or as many as there are."""
    return calibration[: max(1, TOKENS // calibration.shape[1]), :TOKENS]


def sensitivities(model_folder: Path, tokens: NDArray[int64], group: int, names: tuple[str, ...],
                  say: Say = silent, kept: Kept | None = None) -> list[Sensitivity]:  # fmt: skip
    """One per linear of the graph, `lm_head` excepted; q, k and v count as one where the graph fuses them. `say` is told after
    every layer that the gradients came to, the last one first, how far it is. `kept`: what is found of each linear of the model,
    and what an interrupted run had found."""
    from .formats.onnx import onnx_linear
    from .observe import load, observe_gradients, weight

    kept = {} if kept is None else kept
    targets = [target for pair in pairs(config(model_folder)) for target in pair.targets]
    begun: dict[str, list[list[float]]] = {name: [] for name in targets if name not in kept}
    layers, judged = int(config(model_folder)["num_hidden_layers"]), itertools.count(1)
    step = counted(layers, say, "judged", passes=len(tokens))

    def measure(name: str, x: Floats, gradient: Floats) -> None:
        if name in begun:
            w = weight(model, name)
            begun[name].append([predicted_kl(x, w, gradient, group, *form) for form in ((4, False), (8, True))])
            if len(begun[name]) == len(tokens):
                kept[name] = {"kl": np.mean(begun.pop(name), axis=0), "shape": np.array(w.shape)}
        if next(judged) % (len(targets) // layers) == 0:
            step()

    if begun:
        model = load(model_folder)
        observe_gradients(model, tokens, dict.fromkeys(targets, measure))
    parts: dict[str, list[str]] = {name: [] for name in names}
    for target in targets:
        parts[onnx_linear(target, names)].append(target)
    return [of_parts(name, [kept[target] for target in fused]) for name, fused in parts.items() if fused]


def of_parts(name: str, parts: Sequence[Arrays]) -> Sensitivity:
    """Of the linears that the graph fuses in one."""
    at4, at8 = (sum(float(part["kl"][width]) for part in parts) for width in (0, 1))
    return Sensitivity(name, at4, at8, tuple((int(part["shape"][0]), int(part["shape"][1])) for part in parts))


def predicted_kl(x: Floats, w: Floats, gradient: Floats, group: int, bits: int, symmetric: bool) -> float:
    """1/2 mean over tokens of (g . dY)^2, in nats, for w: [N, K] rounded to `bits`; x: [T, K], gradient: [T, N]."""
    difference = w - nearest(w, bits, group, symmetric)
    along = np.einsum("tn,tn->t", x @ difference.T, gradient)
    return float(np.square(along).mean()) / 2


def costs_of(measured: Sequence[Sensitivity], group: int, linear_s: Mapping[tuple[int, int, int], float]) -> Costs:
    """Seconds where every shape was timed in both widths, else bytes."""

    def seconds(each: Sensitivity, bits: int) -> float:
        return sum(linear_s[n, k, bits] for n, k in each.shapes)

    def stored(each: Sensitivity, bits: int) -> float:
        return sum(n * bytes_of_row(k, bits, group) for n, k in each.shapes)

    timed = all((n, k, bits) in linear_s for each in measured for n, k in each.shapes for bits in (4, 8))
    cost = seconds if timed else stored
    return Costs("s" if timed else "bytes", tuple((cost(each, 4), cost(each, 8)) for each in measured))


def bytes_of_row(k: int, bits: int, group: int) -> int:
    """Of MatMulNBits: codes, the last group filled up, a scale a group, and of 4 bit a zero a group."""
    groups = -(-k // group)
    return groups * group * bits // 8 + 4 * groups + (-(-groups // 2) if bits == 4 else 0)


def choose(measured: Sequence[Sensitivity], costs: Costs, target: float, budget: float | None = None) -> set[str]:
    """Names of the linears that go to 8 bit: the cheapest whose summed KL is at most `target` (the least KL, where none is), or
    of the least KL within `budget`."""
    items = [list(zip(cost, (each.at4, each.at8), strict=True)) for each, cost in zip(measured, costs.of, strict=True)]
    found = (cheapest(items, target) or within(items, inf)) if budget is None else within(items, budget)
    if found is None:
        least = sum(map(min, costs.of))
        raise CandidateFailed(f"the linears take {least:.4g} {costs.unit} at least, the budget is {budget:.4g}: raise it")
    return {each.name for each, place in zip(measured, found, strict=True) if place == 1}


def note(measured: Sequence[Sensitivity], wide: set[str], costs: Costs) -> str:
    """What came out, and by which costs."""
    weights = sum(each.weights for each in measured)
    part = sum(each.weights for each in measured if each.name in wide) / weights
    kl = sum(each.at8 if each.name in wide else each.at4 for each in measured)
    counts = f"{len(wide)} of {len(measured)} linears, {part:.0%} of their weights, predicted KL {kl:.3f}"
    free = sum(high <= low for low, high in costs.of)
    by = f"chosen by kernel times (no slower than 4 bit in {free})" if costs.unit == "s" else "chosen by bytes"
    return f"8 bit: {counts}, {by}: " + " ".join(sorted(name.removeprefix("model.layers.") for name in wide))
