"""What `advisor explain` answers: why a quantized checkpoint is not faster, its time taken apart into named causes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from .base import Finite, NumberClass, OpenDocument
from .profile import Operators, PhaseTime
from .scheme import Scheme
from .workload import Workload

Cause = Literal[
    "fallback_or_slow_kernel",
    "activation_quantization",
    "layers_left_unquantized",
    "attention",
    "launches_and_framework",
    "wrong_phase",
    "wrong_tensor",
]


class Checkpoint(OpenDocument):
    """What a file or folder says about itself, before anything runs."""

    path: str
    format: Literal["onnx", "openvino", "transformers", "gguf"]
    runtime: str
    options: tuple[str, ...] = ()
    scheme: Scheme
    plain: Literal["fp32", "bf16"] = "fp32"
    """Float type of the unquantized model that it is set against."""
    linears: int
    stored_quantized: int
    """Linears whose weights lie in the files as low-bit codes."""
    accuracy_levels: tuple[int, ...] = ()
    unpacked: tuple[str, ...] = ()
    """Of an ONNX graph: what keeps MatMulNBits from packing its weights for a fast kernel."""
    """Of MatMulNBits: 4 multiplies INT8, 0 and 1 compute in fp32."""
    layouts: Mapping[str, str] = {}
    """Of llama.cpp: type -> the buffer that its build here puts such weights in, or how its kernel crashed there."""
    layers: int | None = None
    vocabulary: int | None = None

    @property
    def place(self) -> str:
        """`runtime+option`, as in a candidate's name."""
        return "+".join((self.runtime, *self.options))


class Observation(OpenDocument):
    """One model on one runtime under the workload. The prefill is that of all requests in flight, the decode one step."""

    name: str
    kind: NumberClass = "measured"
    prefill: PhaseTime
    decode: PhaseTime
    prefill_operators: Operators
    decode_operators: Operators


class StepTimes(OpenDocument):
    """Seconds: the unquantized model's; shrunk whole by the format; shrunk where the roofline lets it; and measured."""

    unquantized_s: Finite
    hoped_s: Finite
    attainable_s: Finite | None
    """None where the runtime's profiler tells no times of operators: then nobody knows how much of it is linears."""
    measured_s: Finite


class CauseTime(OpenDocument):
    """Seconds of one request (one static batch) that a cause takes; `share` of the gap."""

    cause: Cause
    seconds: Finite
    prefill_s: Finite
    decode_s: Finite
    share: Finite
    evidence: str
    change: str
    """What would mend it."""


class Explanation(OpenDocument):
    """`gap_s` = measured − hoped, of one request; the causes and `gained_s` (≤ 0, better than hoped) sum to it. Neither is there
    where `attainable_speedup` is None: then the gap cannot be taken apart."""

    model_config = OpenDocument.model_config | {"populate_by_name": True, "serialize_by_alias": True}

    schema_: Literal["quantadvisor/explanation/1"] = Field("quantadvisor/explanation/1", alias="schema")
    workload: Workload
    checkpoint: Checkpoint
    against: str
    hoped_factor: Finite
    """How much smaller the format makes what it quantizes: unquantized bytes over stored bytes."""
    speedup: Finite
    attainable_speedup: Finite | None
    request: StepTimes
    prefill: StepTimes
    decode: StepTimes
    gap_s: Finite
    gained_s: Finite
    causes: tuple[CauseTime, ...]
    """Those that take time, the largest first."""
    largest: Cause | None
    verdict: str
    change: str
    quantized: Observation
    unquantized: Observation
    notes: tuple[str, ...] = ()
