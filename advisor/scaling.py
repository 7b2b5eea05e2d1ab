"""How a measured candidate's time would change with context and concurrency: its own times by part, each scaled by its law.

Prefill of c prompts of p tokens: linears by the probed kernels at M = c * p, attention with c * p^2 (every token looks back
over its prompt), the rest with c * p. A decode step at c requests of x tokens each: linears by the probes at M = c, what
reads or writes the cache with c * x, the rest as it was (launches and norms, which hardly grow). Where a runtime's kernels
were not probed, its linears follow the roofline through the two sizes at which they were seen: max(flat, proportional).
The equations are step_time's. Only the ratio to the declared point is used: there the model gives back what was measured.
All of it is *modelled*.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from quantadvisor.documents import Candidate, Figure, PhaseTime, Traffic

from . import step_time
from .predict import Probes


class Rows(Protocol):
    """Seconds of all linears at `m` rows, the head at `head_m`."""

    def __call__(self, m: int, head_m: int) -> float: ...


@dataclass(frozen=True)
class TimeModel:
    """TTFT and TPOT of one candidate anywhere, seconds; `basis` says what scales its linears."""

    ttft_s: float
    tpot_s: float
    traffic: Traffic
    prefill: PhaseTime
    decode: PhaseTime
    linears: Rows
    basis: str

    def ttft(self, prompt_tokens: int, concurrency: int) -> float:
        return self.ttft_s * self._prefill(prompt_tokens, concurrency) / self._declared[0]

    def tpot(self, prompt_tokens: int, concurrency: int) -> float:
        return self.tpot_s * self._decode(prompt_tokens, concurrency) / self._declared[1]

    @cached_property
    def _declared(self) -> tuple[float, float]:
        """The two sums at the declared point, which stand for what was measured there."""
        place = self.traffic.prompt_length, self.traffic.concurrency
        return self._prefill(*place), self._decode(*place)

    def _prefill(self, prompt_tokens: int, concurrency: int) -> float:
        """A static batch: attention by the prompt's square, what is neither it nor a linear by the prompt's rows."""
        seen = self.prefill
        length = prompt_tokens / (seen.tokens / seen.batch)
        rest = max(0.0, seen.cache_s + seen.other_s + seen.residue_s)
        own = (seen.attention_s * length**2 + rest * length) / seen.batch
        products = self._products(seen)
        return float(step_time.prompts_s(products, concurrency * prompt_tokens, concurrency, own, 0.0))

    def _decode(self, prompt_tokens: int, concurrency: int) -> float:
        seen = self.decode
        held = (prompt_tokens + self.traffic.output_length / 2) / seen.context_tokens
        request = (seen.attention_s + seen.cache_s) * held / seen.batch
        rest = max(0.0, seen.other_s + seen.residue_s)
        return float(step_time.step_s(self._products(seen), concurrency, request, rest))

    def _products(self, seen: PhaseTime) -> step_time.Products:
        """The linears' seconds in that phase, scaled to other rows by the curve."""
        each = seen.linears_s / self.linears(seen.tokens, seen.batch)
        return lambda rows, heads: each * self.linears(rows, heads)


def time_model(candidate: Candidate, traffic: Traffic, probes: Probes) -> TimeModel | str:
    """The model, or in a clause why there is none."""
    measured = candidate.measured
    if measured is None or not positive(measured.ttft_s) or not positive(measured.tpot_s):
        return "not measured"
    phases = {phase.phase: phase for phase in candidate.phases}
    if not {"prefill", "decode"} <= phases.keys():
        return "its time was not taken apart"
    prefill, decode = phases["prefill"], phases["decode"]
    if min(prefill.tokens, prefill.batch, decode.tokens, decode.batch, decode.context_tokens) < 1:
        return "its phases were seen at no size"
    if prefill.linears_s <= 0 or decode.linears_s <= 0:
        return "its linears' time is not known"
    linears = probed(candidate, traffic, probes, prefill, decode)
    basis = "linears by kernel probes" if linears else "linears by the roofline through its own prefill and decode"
    assert measured.ttft_s and measured.tpot_s
    return TimeModel(
        measured.ttft_s.median, measured.tpot_s.median, traffic, prefill, decode, linears or roofline(prefill, decode), basis
    )


def positive(figure: Figure | None) -> bool:
    return figure is not None and figure.median > 0


def probed(candidate: Candidate, traffic: Traffic, probes: Probes, prefill: PhaseTime, decode: PhaseTime) -> Rows | None:
    """The probes' own curve, where it is known at every size that the phases were seen at and far beyond; the head, which sees
    one row a request, is left at the most rows it was probed at."""
    place = (candidate.scheme, candidate.runtime, candidate.options)

    def seconds(m: int, head_m: int) -> float:
        found = probes.linears_s(*place, m, head_m)
        while found is None and head_m > 1:
            head_m //= 2
            found = probes.linears_s(*place, m, head_m)
        return found or 0.0

    sizes = (1, decode.tokens, prefill.tokens, traffic.prompt_length * traffic.concurrency, 10**6)
    return seconds if all(seconds(m, m) > 0 for m in sizes) else None


def roofline(prefill: PhaseTime, decode: PhaseTime) -> Rows:
    """max(flat, proportional) through the linears' time in a decode step and in a prefill."""
    flat, each = decode.linears_s, prefill.linears_s / prefill.tokens
    return lambda m, head_m: max(flat, each * m)
