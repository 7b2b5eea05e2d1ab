"""results.json (schema quantadvisor/results/1): candidates, verdict, questions, ledger, regret. Unknown fields are kept."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from .base import Figure, Finite, KernelSource, OpenDocument, Target
from .decision_map import DecisionMap
from .family import FamilyMember
from .profile import Device, GpuState, Operators, PhaseTime, Profile
from .scheme import Scheme
from .workload import Workload

SCHEMA = "quantadvisor/results/1"

Binding = Literal["weights", "activations", "kv_cache", "other"]


class Shares(OpenDocument):
    """Shares of time (prefill, decode) or of bytes (capacity), summing to 1."""

    weights: float
    activations: float
    kv_cache: float
    other: float

    @property
    def binds(self) -> Binding:
        return max(("weights", "activations", "kv_cache", "other"), key=lambda name: getattr(self, name))


class PhaseDiagnosis(OpenDocument):
    binds: Binding
    shares: Shares
    total: Finite
    """Seconds per forward pass, or bytes for capacity."""
    inefficiency: float | None = None
    """Part of the binding linears' time that the kernel loses against the roof, 0..1."""


class Diagnosis(OpenDocument):
    """Which tensor binds, of the baseline's profile. `ceilings`: best factor on the objective by shrinking a target."""

    of: str
    capacity: PhaseDiagnosis
    prefill: PhaseDiagnosis
    decode: PhaseDiagnosis
    binds: Binding
    shares: Shares
    """Shares of what the objective asks for; its largest is `binds`."""
    ceilings: dict[str, float]
    """target → 1 / (1 − share): Amdahl's bound on the gain of a method that made that tensor free."""
    method_ceilings: dict[str, float] = {}
    """scheme name → Amdahl's bound with the bits that the scheme really stores."""


class Interval(OpenDocument):
    mean: Finite
    low: Finite
    high: Finite


class TaskScore(OpenDocument):
    """A task of lm-evaluation-harness through the runtime: mean scores 0..1 over the same items, and the drop against fp32."""

    task: str
    metric: str
    items: int
    score: Finite
    reference: Finite
    drop: Interval


class Quality(OpenDocument):
    """Against the fp32 logits of the same model on the same tokens, through the runtime itself."""

    perplexity: Finite
    kl: Interval
    top1: Interval
    tokens: int
    text: str
    passkey_found: bool | None = None
    passkey_reference_found: bool | None = None
    """Of the fp32 model, asked where the quantized cache lost it."""
    tasks: tuple[TaskScore, ...] = ()
    chunk_tokens: int | None = None
    """Tokens per forward pass of the scoring; set where the cache is quantized, so that it is really read."""
    simulated: bool = False


class Predicted(OpenDocument):
    """Written before the artifact is first run, never refitted on it."""

    ttft_s: Finite | None = None
    tpot_s: Finite | None = None
    peak_bytes: int | None = None
    max_concurrency: int | None = None
    objective: Finite | None = None
    kl: Finite | None = None
    basis: str = ""
    kernels: KernelSource | None = None
    """The least certain source among the kernel times that it rests on; a ghost's own pass is measured."""
    rough: bool = False
    """No ghost of its kernels ran, or none whose cache is quantized as its own: its times are off by half in the median."""
    written_at: str = ""


class Measured(OpenDocument):
    ttft_s: Figure | None = None
    tpot_s: Figure | None = None
    peak_bytes: Figure | None = None
    max_concurrency: Figure | None = None
    load_s: Figure | None = None
    request_j: Figure | None = None
    """Energy per request, joules: of the CPU packages (RAPL) and of the GPU's board (NVML), as its source says; None unread.
    Modelled where caches are recorded: one row's prefill, and its tokens after the first."""
    token_j: Figure | None = None
    """The same over the request's output tokens, its prefill in it; of decode steps alone where caches are recorded."""
    gpu: GpuState | None = None
    """What the GPU did over all rounds."""
    objective: Figure | None = None


class Candidate(OpenDocument):
    """method × scheme × runtime × options, named `gptq-w4a16-g64@onnxruntime+option`."""

    name: str
    method: str
    scheme: Scheme
    runtime: str
    options: tuple[str, ...] = ()
    target: Target = "none"
    refused: str | None = None
    excluded: str | None = None
    """Feasible to run, but outside SLO, memory or quality budget: why."""
    checkpoint: str | None = None
    """Folder of an existing checkpoint that competes as it is (method `given`)."""
    url: str | None = None
    """A running server of the user's that competes as it is: what it runs is not known."""
    predicted: Predicted | None = None
    measured: Measured | None = None
    quality: Quality | None = None
    operators: Operators | None = None
    """That ran in a decode step."""
    prefill_operators: Operators | None = None
    phases: tuple[PhaseTime, ...] = ()
    apply_s: Finite | None = None
    apply_peak_bytes: int | None = None
    """Peak memory of applying the method, above the interpreter and its libraries."""
    artifact_bytes: int | None = None
    notes: tuple[str, ...] = ()


class Speedup(OpenDocument):
    """Along baseline → best unquantized → choice, each measured: total = runtime × method."""

    total: Finite
    runtime: Finite
    method: Finite


class RunnerUp(OpenDocument):
    name: str
    why_not: str


class Boundary(OpenDocument):
    axis: str
    at: Finite
    winner: str


class Capacity(OpenDocument):
    max_concurrency: int
    over_baseline: Finite
    over_best_unquantized_cache: Finite | None = None
    step_over_best_unquantized_cache: Finite | None = None
    """TPOT of the fastest candidate with an unquantized cache over the choice's, at the declared concurrency."""
    best_unquantized_cache: str | None = None
    kind: Literal["measured", "modelled"] = "modelled"


class Verdict(OpenDocument):
    choice: str | None
    change: bool
    target: Target
    reason: str
    tied_with: tuple[str, ...] = ()
    runner_up: RunnerUp | None = None
    boundaries: tuple[Boundary, ...] = ()
    capacity: Capacity | None = None
    speedup: Speedup | None = None
    decode_speedup: Speedup | None = None
    """The same chain on TPOT alone; `speedup` is on the objective's request latency."""
    predicted_choice: str | None = None


class Question(OpenDocument):
    id: Literal["target", "quality", "operator", "bottleneck"]
    answer: bool
    evidence: str


class LedgerRow(OpenDocument):
    """ratio = predicted / measured."""

    candidate: str
    quantity: Literal["ttft_s", "tpot_s", "peak_bytes", "max_concurrency"]
    predicted: Finite
    measured: Finite
    ratio: Finite
    basis: str = ""


class Regret(OpenDocument):
    best: str
    advised: str
    advised_objective: Finite
    best_objective: Finite
    ratio: Finite
    low: Finite
    high: Finite
    measuring_share: Finite
    not_measured: tuple[str, ...] = ()


class Serve(OpenDocument):
    runtime: str
    command: str
    verified: bool
    reason: str | None = None


class Artifact(OpenDocument):
    path: str
    format: str
    sha256: dict[str, str]
    serve: tuple[Serve, ...] = ()


class Environment(OpenDocument):
    versions: dict[str, str]
    threads: int
    source_already_quantized: str | None = None
    python: str = ""


class SourceQuality(OpenDocument):
    """RTN INT4's KL on the source as shipped (on its own 4-bit grid) and after it was taken off the grid."""

    rtn_int4_kl_before: Finite
    rtn_int4_kl_after: Finite
    tokens: int


class Results(OpenDocument):
    model_config = OpenDocument.model_config | {"populate_by_name": True, "serialize_by_alias": True}

    schema_: Literal["quantadvisor/results/1"] = Field("quantadvisor/results/1", alias="schema")
    created_at: str
    workload: Workload
    device: Device
    profile: Profile
    diagnosis: Diagnosis
    unquantized_diagnosis: Diagnosis | None = None
    """The same table for the best unquantized candidate."""
    choice_diagnosis: Diagnosis | None = None
    """The same table for the choice: after, where the baseline's is before."""
    candidates: tuple[Candidate, ...]
    verdict: Verdict
    questions: tuple[Question, ...]
    decision_map: DecisionMap | None = None
    """None where nothing was measured, and in results of an older version."""
    ledger: tuple[LedgerRow, ...]
    regret: Regret | None = None
    family: tuple[FamilyMember, ...] = ()
    """Sizes that the spec names beside the model, each at the bits that run here."""
    artifact: Artifact | None = None
    environment: Environment
    source_quality: SourceQuality | None = None
    timing_s: dict[str, float] = {}
    """Seconds each stage of the run took."""
    extra: dict[str, Any] = {}
