"""The decision map: what the advice would be at other contexts and concurrencies, modelled from what was measured here."""

from __future__ import annotations

from typing import Literal

from .base import Finite, OpenDocument


class MapCandidate(OpenDocument):
    """A measured candidate's memory as a line in cached tokens, and the requests that it holds at the declared context."""

    name: str
    outside: str | None = None
    """Why it cannot be advised anywhere on the map: over the quality budget, or no time model."""
    weights_bytes: int
    rest_bytes: int
    """Activations and the runtime's own, as they were at the declared point."""
    cache_bytes_per_token: Finite
    users: int
    users_kind: Literal["measured", "modelled"] = "modelled"
    limited_by: Literal["memory", "ttft", "tpot"] = "memory"
    """What one more request would break."""
    ttft_s: Finite | None = None
    """Of a request with that many in flight; `tpot_s` likewise. None where the candidate's time was not modelled."""
    tpot_s: Finite | None = None
    basis: str = ""
    """What the memory line and the times rest on."""

    def cache_bytes(self, context_tokens: float, concurrency: float) -> float:
        return self.cache_bytes_per_token * context_tokens * concurrency

    def held_bytes(self, context_tokens: float, concurrency: float) -> float:
        """Peak memory with that many requests of that context, bytes."""
        return self.weights_bytes + self.rest_bytes + self.cache_bytes(context_tokens, concurrency)


class MapCell(OpenDocument):
    """One context and concurrency: who would be advised, or None where nothing fits."""

    context_tokens: int
    concurrency: int
    winner: str | None
    fits: int
    """Candidates inside memory limit and SLO."""
    objective: Finite | None = None
    """The winner's: seconds, output tokens per second, or requests that it holds at this context."""


class MapEdge(OpenDocument):
    """Where the advice stops to hold, walking from the declared point along one axis; `at` is the first value past it."""

    axis: Literal["concurrency", "context_tokens"]
    at: int
    winner: str | None
    """Who is advised there; None: nothing fits."""
    why: Literal["memory", "ttft", "tpot", "better"]
    """What the advice breaks there, or `better`: another one beats it by more than a tie."""


class DecisionMap(OpenDocument):
    """Everything in it is modelled, but for users that say `measured`."""

    limit_bytes: int
    contexts: tuple[int, ...]
    concurrencies: tuple[int, ...]
    candidates: tuple[MapCandidate, ...]
    cells: tuple[MapCell, ...]
    """Context by context, each over all concurrencies."""
    edges: tuple[MapEdge, ...] = ()
    basis: str = ""
