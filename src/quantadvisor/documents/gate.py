"""gate.json (schema quantadvisor/gate/1): one decision of `advisor gate`, with everything that it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from .base import Document, Finite, OpenDocument

GateState = Literal["pass", "regression", "anomalous", "inconclusive"]
MetricKind = Literal["time", "memory", "bytes", "operators", "quality"]

EXIT_CODES: dict[GateState, int] = {"pass": 0, "regression": 1, "anomalous": 3, "inconclusive": 4}
"""The contract's; the earlier of regression, anomalous, inconclusive decides where metrics differ."""


class Against(Document):
    """A ratio and its interval; None: unbounded on that side, too few blocks."""

    ratio: Finite
    low: Finite | None = None
    high: Finite | None = None


class GateMetric(OpenDocument):
    """One gated quantity of one candidate. Values in the unit of the name; `ratio` = candidate / baseline."""

    of: str
    name: str
    kind: MetricKind
    state: GateState
    reason: str
    baseline: Finite | None = None
    candidate: Finite | None = None
    ratio: Finite | None = None
    low: Finite | None = None
    high: Finite | None = None
    alpha: Finite | None = None
    """Error rate of [low, high], both sides together: this metric's share."""
    noise_floor: Finite | None = None
    """Half the width of [low, high]."""
    decides: bool = True
    """False: where it is inconclusive it is only shown (stored results, other candidates than the choice)."""
    blocks: int = 0
    more_blocks: int | None = None
    """Blocks more that would settle an inconclusive one, if the noise stays what it was."""
    self_against_self: Against | None = None
    """Side A's first run of each block against its second: the same run, no extra measurement."""
    log_ratios: tuple[Finite, ...] = ()
    """ln(candidate / baseline) of each block, live only."""


class Factor(Document):
    """What differs between the two sides beside the thing that is gated: a version, an interpreter."""

    name: str
    baseline: str
    candidate: str


class Gate(OpenDocument):
    model_config = OpenDocument.model_config | {"populate_by_name": True, "serialize_by_alias": True}

    schema_: Literal["quantadvisor/gate/1"] = Field("quantadvisor/gate/1", alias="schema")
    created_at: str
    mode: Literal["live", "stored"]
    baseline: str
    candidate: str
    device: str
    workload: str
    state: GateState
    exit_code: int
    threshold: Finite
    alpha: Finite
    metrics: tuple[GateMetric, ...]
    factors: tuple[Factor, ...] = ()
    notes: tuple[str, ...] = ()
    blocks: int = 0
    rejected_blocks: int = 0
    """Blocks left out because others loaded the machine, or it throttled, while they ran."""
    seed: int | None = None
    """Of the coin that chose A B B A or B A A B for each block."""
    seconds: Finite = 0.0


def overall(metrics: Sequence[GateMetric]) -> GateState:
    """Any regression, else anything anomalous, else anything inconclusive that decides, else pass."""
    states = {metric.state for metric in metrics if metric.decides or metric.state != "inconclusive"}
    order: tuple[GateState, ...] = ("regression", "anomalous", "inconclusive")
    return next((state for state in order if state in states), "pass")
