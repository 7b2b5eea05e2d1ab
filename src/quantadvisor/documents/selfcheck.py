"""What `advisor selfcheck` found: per kernel whether its numbers are right, and on a GPU how fast it is beside others."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import Document, Figure, Finite
from .profile import GpuState

Proof = Literal["interpreted", "gpu"]
"""interpreted: triton's interpreter on this CPU, numbers only; gpu: the device named."""
Speed = Literal["faster", "tied", "slower"]


class KernelCheck(Document):
    name: str
    shape: str
    right: bool
    reason: str = ""
    """Why it is not right."""
    error: Finite | None = None
    """Largest error over what the formats allow there; at most 1 is right. None: it gave no numbers."""
    times_s: dict[str, Figure] = {}
    """Seconds per call: "triton" is ours, "16 bit" what it replaces, the rest other packages."""
    refused: dict[str, str] = {}
    """Who could not be timed, and why."""
    speed: Speed | None = None
    """Ours against what it replaces, by their 95 % intervals."""
    fastest: str | None = None
    gpu: GpuState | None = None
    """What the GPU did while it was timed."""
    compiled_for: tuple[int, ...] = ()
    """sm_80 and so on: machine code made ahead of time keeps its rules there (golden table)."""

    @property
    def passed(self) -> bool:
        return self.right and self.speed != "slower"


class RuntimeCheck(Document):
    """One runtime's path on the GPU, on a tiny model, beside torch in fp32 on the CPU."""

    name: str
    options: tuple[str, ...]
    refused: str | None = None
    """Why it cannot run there; such a one is neither right nor wrong."""
    right: bool = False
    reason: str = ""
    """Why it is not right."""
    kl: Finite | None = None
    """Mean KL divergence of its next-token distributions, nats."""
    on_gpu: tuple[str, ...] = ()
    """Kernels or operators that were seen to run there."""
    memory_from: str = ""
    versions: dict[str, str] = {}

    @property
    def failed(self) -> bool:
        return self.refused is None and not self.right


class SelfCheck(Document):
    schema_: Literal["quantadvisor/selfcheck/1"] = Field("quantadvisor/selfcheck/1", alias="schema")
    proof: Proof
    device: str
    versions: dict[str, str]
    note: str
    kernels: tuple[KernelCheck, ...]
    runtimes: tuple[RuntimeCheck, ...] = ()
    """On a GPU only."""

    model_config = Document.model_config | {"populate_by_name": True}

    @property
    def failed(self) -> tuple[KernelCheck, ...]:
        return tuple(one for one in self.kernels if not one.passed)

    @property
    def failed_runtimes(self) -> tuple[RuntimeCheck, ...]:
        return tuple(one for one in self.runtimes if one.failed)


def compared(ours: Figure, other: Figure) -> Speed:
    """Disjoint intervals decide; else tied."""
    if ours.low > other.high:
        return "slower"
    return "faster" if ours.high < other.low else "tied"
