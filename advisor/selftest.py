"""`advisor selftest`: public verdicts replayed through the latency model and the memory ledger, and the regret of its choices.

`verdicts.json` holds what others measured: GPU, model, workload, candidates (GPU, scheme, tensor parallel) and their
throughput per GPU, each with its source. Nothing is fitted to it. A candidate's rate is predicted at the verdict's
concurrency, or at what its memory holds where the source says "maximum load"; among schemes of one GPU ties go to
better quality as in `advisor plan`. Right: the choice is within `SAME` of the best measured one.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from quantadvisor.documents import Document
from quantadvisor.kernels.gpu_devices import gpu
from quantadvisor.kernels.gpu_schemes import gpu_scheme
from quantadvisor.profiling.gpu_memory import sequence_bytes
from quantadvisor.profiling.published import config_of
from quantadvisor.profiling.shard import shard_of

from .decide import TIE
from .plan_candidates import SCHEMES
from .serving_fit import Parameters
from .serving_model import predict_cases
from .serving_work import Case, placement_of

FILE = Path(__file__).parent / "verdicts.json"
SAME = 0.03
"""Measured rates that differ by less are the same: what a repeated benchmark differs by."""
MOST_SEQUENCES = 2048
"""TensorRT-LLM's --max_batch_size."""


class VerdictCandidate(Document):
    """`value`: measured tokens per second and GPU, or a speed-up of it."""

    device: str
    scheme: str
    tensor: int
    value: float

    @property
    def name(self) -> str:
        return f"{self.scheme} on {self.tensor} {self.device}"


class PublicVerdict(Document):
    id: str
    source: str
    model: str
    prompt_tokens: int
    output_tokens: int
    concurrency: int | None
    """Null: maximum load."""
    metric: str
    candidates: tuple[VerdictCandidate, ...]
    note: str = ""
    contradicts: str = ""
    """Of a verdict of the same setting whose winner is another one: both are kept, and one of the two must be missed."""


class Replay(NamedTuple):
    """What we would have chosen, and what it cost."""

    verdict: PublicVerdict
    chosen: VerdictCandidate
    best: VerdictCandidate
    right: bool
    regret: float
    predicted_gain: float
    """Predicted rate of the choice over that of the best measured one."""
    reason: str


def verdicts() -> list[PublicVerdict]:
    return [PublicVerdict.model_validate(one) for one in json.loads(FILE.read_text(encoding="utf-8"))["verdicts"]]


def replay(verdict: PublicVerdict, parameters: Parameters) -> Replay:
    """The choice among the verdict's candidates, judged by what was measured."""
    rates = [rate(one, verdict, parameters) for one in verdict.candidates]
    chosen = verdict.candidates[choose(verdict.candidates, rates)]
    best = max(verdict.candidates, key=lambda one: one.value)
    regret = best.value / chosen.value - 1
    ours, theirs = (rates[verdict.candidates.index(one)] for one in (chosen, best))
    gain = ours / theirs if theirs else math.inf
    right = regret <= SAME
    reason = "" if right else f"{chosen.name} was predicted {gain:.2f}x of {best.name}, measured {1 / (1 + regret):.2f}x"
    if not right and verdict.contradicts:
        reason += f"; {verdict.contradicts} measured another winner"
    return Replay(verdict, chosen, best, right, max(0.0, regret), gain, reason + (f" ({verdict.note})" if verdict.note else ""))


def choose(candidates: Sequence[VerdictCandidate], rates: Sequence[float]) -> int:
    """The fastest; of schemes on the same GPUs that are tied with it, the one of better quality."""
    first = max(range(len(rates)), key=lambda i: rates[i])
    place = (candidates[first].device, candidates[first].tensor)
    tied = [i for i, one in enumerate(candidates) if (one.device, one.tensor) == place and rates[i] >= rates[first] / TIE]
    return min(tied, key=lambda i: SCHEMES.index(candidates[i].scheme))


def rate(one: VerdictCandidate, verdict: PublicVerdict, parameters: Parameters) -> float:
    """Predicted output tokens per second and GPU; 0 where not one request fits."""
    scheme = gpu_scheme(one.scheme)
    placement = placement_of(shard_of(config_of(verdict.model), one.tensor), gpu(one.device), scheme)
    middle = verdict.prompt_tokens + verdict.output_tokens // 2
    fits = int(placement.cache_bytes // sequence_bytes(placement.shard, scheme, middle))
    if fits < 1:
        return 0.0
    users = min(fits, MOST_SEQUENCES, verdict.concurrency or MOST_SEQUENCES)
    case = Case(placement, users, verdict.prompt_tokens, verdict.output_tokens)
    return 1e3 * users / predict_cases(parameters, [case])[0].tpot_ms / one.tensor


def summary(found: Sequence[Replay]) -> dict[str, float]:
    """Share right, mean and worst regret."""
    regrets = [one.regret for one in found]
    return {
        "verdicts": float(len(found)),
        "right": statistics.mean(one.right for one in found),
        "mean_regret": statistics.mean(regrets),
        "worst_regret": max(regrets),
    }
