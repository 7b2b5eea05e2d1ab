"""What `advisor plan` reads and says: GPUs by their data sheet, candidates with modelled times, a map of who wins where."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import Document, Finite, KernelSource, OpenDocument
from .decision_map import DecisionMap
from .family import FamilyMember
from .workload import Workload


class GpuModel(Document):
    """One GPU as its data sheet has it. Peaks are dense, operations (2 per multiply-add) per second."""

    name: str
    also: tuple[str, ...] = ()
    memory_bytes: int
    read_bytes_per_s: float
    flops_per_s: dict[str, float]
    """`bf16`, `int8`, `fp8`, `fp4`, as far as it has them."""
    link_bytes_per_s: float
    """Between two GPUs of a node, one direction."""
    gpus: int = 8
    """GPUs of a node."""
    power_w: float | None = None
    compute_capability: int
    """8.9 is 89."""


class Bounds(Document):
    """A modelled number with its 80 % interval."""

    value: Finite
    low: Finite
    high: Finite
    kind: Literal["modelled"] = "modelled"


class PlanMemory(Document):
    """Bytes on one GPU, all modelled."""

    weights_bytes: int
    cache_bytes_per_token: float
    activations_bytes: int
    reserve_bytes: int
    cache_bytes: int
    """What is left for the cache."""
    max_concurrency: int
    """Requests of the declared context that fit, cache in whole blocks."""


class PlanCandidate(OpenDocument):
    """A scheme on a runtime on some GPUs. `refused` says why it is out; then it has no times."""

    name: str
    device: str
    scheme: str
    runtime: str
    tensor: int
    refused: str | None = None
    excluded: str | None = None
    """It runs, and misses the SLO or the memory limit."""
    ttft_ms: Bounds | None = None
    tpot_ms: Bounds | None = None
    ttft_tail_ms: float | None = None
    """Of the request at the SLO's percentile, modelled; None without an SLO."""
    tpot_tail_ms: float | None = None
    memory: PlanMemory | None = None
    users_within_slo: int = 0
    tokens_per_s_per_gpu: float = 0.0
    cost_per_million_tokens: float | None = None
    objective: float | None = None
    """Seconds of a request; or output tokens per second and GPU; or users per GPU."""
    kernels: KernelSource = "roofline"
    """The least certain class among its kernels' isolated times in the runtime's tables, at the declared concurrency."""
    kernels_ms: float | None = None
    """Their sum over a decode step, without lm_head; the model's own time has what a server makes of it."""
    prompt_kernels: KernelSource = "roofline"
    """The same of one prompt's pass."""
    prompt_kernels_ms: float | None = None
    notes: tuple[str, ...] = ()


class DevicePlan(OpenDocument):
    """One device's answer."""

    device: str
    choice: str | None
    reason: str
    candidates: tuple[PlanCandidate, ...]
    tied_with: tuple[str, ...] = ()
    """Within a tie of the best by the objective, as the choice is."""
    unquantized: str | None = None
    """The best candidate that quantizes nothing: what the effects are over."""
    decision_map: DecisionMap | None = None
    speed_effect: float | None = None
    """TPOT of the best unquantized candidate over that of the choice, at the declared concurrency."""
    capacity_effect: float | None = None
    """Requests that fit over those of the best unquantized candidate."""


class CapacityPlan(OpenDocument):
    """Everything that `advisor plan` found."""

    schema_: Literal["quantadvisor/plan/1"] = Field("quantadvisor/plan/1", alias="schema")
    workload: Workload
    devices: tuple[DevicePlan, ...]
    family: tuple[FamilyMember, ...] = ()
    notes: tuple[str, ...] = ()

    model_config = OpenDocument.model_config | {"populate_by_name": True, "serialize_by_alias": True}
