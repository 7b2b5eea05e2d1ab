"""What a model costs on a device under a workload: everything that was measured before anything was quantized."""

from __future__ import annotations

from typing import Literal

from .base import Document, Figure, Finite, KernelSource, NumberClass, OpenDocument
from .scheme import Scheme


class Gpu(OpenDocument):
    name: str
    memory_bytes: int
    compute_capability: str | None = None
    driver: str | None = None
    place: str = ""
    """What CUDA_VISIBLE_DEVICES says of it, in PCI order."""


class GpuState(OpenDocument):
    """What a GPU did while something was measured on it, through NVML; None is what it does not tell, never 0. Times at other
    clocks cannot be compared."""

    readings: int
    """Over all that was measured."""
    sm_mhz: tuple[int, int, int] | None = None
    """(least, median, most)"""
    memory_mhz: int | None = None
    power_w: Finite | None = None
    """Mean over the time of measuring, of the whole board."""
    temperature_c: int | None = None
    """Highest."""
    memory_used_bytes: int | None = None
    """Most, of all processes on the GPU."""
    throttling: tuple[str, ...] | None = None
    """Every reason seen; () is a clean bill."""
    mig: bool | None = None
    """True: the GPU is cut into instances, and what was measured may be one of several."""


class Peaks(OpenDocument):
    """Measured roofs of the device: streaming read beyond the caches, and matrix products by number type."""

    read_bytes_per_s: Figure
    flops_per_s: dict[str, Figure]
    """`fp32`, `bf16`, `int8`: operations (2 per multiply-add) per second."""
    refused: dict[str, str] = {}
    gpu: GpuState | None = None
    """What the GPU did while they were measured there."""


class Device(OpenDocument):
    """Identity of the machine, or of one of its GPUs: then name and memory are the GPU's, and `gpus` is that one.
    `fingerprint` holds identity only, never a measured speed."""

    kind: Literal["cpu", "cuda"] = "cpu"
    name: str
    isa: tuple[str, ...] = ()
    cores: int
    threads: int
    memory_bytes: int
    host_memory_bytes: int | None = None
    """Of the machine around a GPU; None: `memory_bytes` is the machine's."""
    last_level_cache_bytes: int = 0
    gpus: tuple[Gpu, ...] = ()
    fingerprint: str
    peaks: Peaks | None = None
    notes: tuple[str, ...] = ()
    """Why `device: auto` left a GPU unused."""


class LinearShape(Document):
    """One distinct linear: `y[M, N] = x[M, K] @ w[N, K].T`, `count` of them in the model."""

    name: str
    n: int
    k: int
    count: int
    layers: int = 1
    lm_head: bool = False


class Inventory(OpenDocument):
    """Sizes of a model from its config alone."""

    architecture: str
    layers: int
    hidden: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    max_context_tokens: int | None
    tied_embeddings: bool
    linears: tuple[LinearShape, ...]
    embedding_parameters: int
    linear_parameters: int
    other_parameters: int
    kv_values_per_token: int
    """Cache elements per token over all layers (keys and values); times bytes per element = bytes per token."""
    sliding_window: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        head = 0 if self.tied_embeddings else self.embedding_parameters
        return self.embedding_parameters + self.linear_parameters + self.other_parameters + head


class SourceCheckpoint(OpenDocument):
    """Where the weights came from. `already_quantized` names the grid they lie on, or is null."""

    model: str
    path: str
    sha256: str
    already_quantized: str | None = None
    reparametrised: str | None = None
    notes: tuple[str, ...] = ()


class LedgerItem(Document):
    """One line of the memory ledger, bytes at the declared workload."""

    tensor: Literal["weights", "kv_cache", "activations", "overhead"]
    bytes: int
    kind: NumberClass
    source: str


class MemoryLedger(OpenDocument):
    items: tuple[LedgerItem, ...]
    measured_peak_bytes: int | None = None

    @property
    def total_bytes(self) -> int:
        return sum(item.bytes for item in self.items)


class PhaseTime(OpenDocument):
    """Time of one phase on one runtime, seconds per forward pass, by part. `residue_s` = wall − sum of parts."""

    phase: Literal["prefill", "decode"]
    batch: int
    tokens: int
    context_tokens: int
    wall_s: Figure
    linears_s: float
    attention_s: float
    cache_s: float = 0.0
    other_s: float
    residue_s: float
    gpu: GpuState | None = None
    """What the GPU did while both phases were looked at."""


def only_rounds(operator: str) -> bool:
    """Is it ONNX's QuantizeLinear or its kin? profiling/runtimes/onnxruntime.py, which runs where no document is, names them."""
    return operator.lower().endswith("quantizelinear")


class OperatorCount(OpenDocument):
    """One operator that really ran."""

    name: str
    count: int
    provider: str = ""
    precision: str = ""
    time_s: float | None = None
    linear: bool = False
    quantized: bool = False

    @property
    def rounds(self) -> bool:
        """Between linears: a runtime file counts them to the linears' time."""
        return only_rounds(self.name)


UNQUANTIZED = frozenset(("", "float32", "float16", "bfloat16", "f32", "f16", "bf16", "16 bit"))
"""Number types of a cache that is as it was computed, in the words of the runtimes."""


class Operators(OpenDocument):
    """What ran in one forward pass; `quantized_share` = quantized linears over all linears, by count."""

    phase: Literal["prefill", "decode"] = "prefill"
    operators: tuple[OperatorCount, ...]
    linears: int
    quantized_linears: int
    cache: str = ""
    """Number type in which keys and values are stored, in the runtime's own word; "" where it tells none."""
    notes: tuple[str, ...] = ()

    @property
    def cache_quantized(self) -> bool:
        return not set(self.cache.split(", ")) <= UNQUANTIZED

    @property
    def quantized_share(self) -> float:
        return self.quantized_linears / self.linears if self.linears else 0.0

    @property
    def rounding_share(self) -> float:
        """Of the time of all operators, that of those which only round, or undo it."""
        total = sum(row.time_s or 0.0 for row in self.operators)
        return sum(row.time_s or 0.0 for row in self.operators if row.rounds) / total if total else 0.0


class LayerActivations(Document):
    """Inputs of one linear, over the calibration tokens."""

    name: str
    absmax: float
    absmax_channel_p50: float
    outlier_channels: int
    outlier_tokens_share: float
    error_per_tensor: float
    error_per_token: float
    error_per_channel: float
    """Relative squared error of INT8 rounding of the activations at that granularity."""


class ActivationStats(OpenDocument):
    tokens: int
    layers: tuple[LayerActivations, ...]
    outlier_threshold: float = 6.0
    outlier_layers_share: float
    """Share of linears that have a feature of magnitude ≥ 6 (LLM.int8(), arXiv:2208.07339, section 3.1)."""


class KernelTiming(OpenDocument):
    """One kernel at one (M, N, K): seconds per call, weights cold where they exceed the cache in real use."""

    probe: str
    scheme: Scheme
    runtime: str
    option: str = ""
    m: int
    n: int
    k: int
    time_s: Figure | None = None
    refused: str | None = None
    operator: str = ""
    roofline_share: float | None = None
    rounding_share: float | None = None
    """Of its time, that of QuantizeLinear and DequantizeLinear, where they ran as operators of their own."""
    source: KernelSource = "measured"
    """Measured here; of a GPU also from published tables (measured by others, or interpolated) or from the roofline."""
    gpu: GpuState | None = None
    """What the GPU did while it was timed there."""


class KernelFactors(Document):
    """What kernels take on this device over what tables and roofline say of them."""

    reading: float
    """Of those that are bound by reading."""
    arithmetic: float
    """Of those that are bound by arithmetic."""
    source: str


class Ghost(OpenDocument):
    """A random-weight artifact run whole in the real runtime; it carries predictions for its scheme and runtime."""

    scheme: str
    runtime: str
    options: tuple[str, ...] = ()
    depth: int
    ttft_s: Figure | None = None
    tpot_s: Figure | None = None
    peak_bytes: int | None = None
    refused: str | None = None
    unused: str | None = None
    """Why nothing is predicted from it, though its candidates may run: not run for want of time, or not believed."""
    gpu: GpuState | None = None
    """What the GPU did during its rounds."""


class Profile(OpenDocument):
    """Everything the decision rests on."""

    device: Device
    inventory: Inventory
    source: SourceCheckpoint
    baseline: str
    memory: MemoryLedger
    phases: tuple[PhaseTime, ...]
    activations: ActivationStats | None = None
    kernels: tuple[KernelTiming, ...] = ()
    calibration: KernelFactors | None = None
    """On a GPU: of what its kernels' times before any was timed."""
    ghosts: tuple[Ghost, ...] = ()
