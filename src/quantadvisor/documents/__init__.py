"""Documents that pass between the stages. Nothing here knows anything but pydantic."""

from .base import Document, Figure, Finite, NumberClass, OpenDocument, Target, canonical, write_text
from .errors import AdvisorError, BadInput, CandidateFailed, Interrupted, NotComparable, Unavailable
from .profile import (
    ActivationStats,
    Device,
    Ghost,
    Gpu,
    Inventory,
    KernelTiming,
    LayerActivations,
    LedgerItem,
    LinearShape,
    MemoryLedger,
    OperatorCount,
    Operators,
    Peaks,
    PhaseTime,
    Profile,
    SourceCheckpoint,
)
from .results import (
    Artifact,
    Boundary,
    Candidate,
    Capacity,
    Diagnosis,
    Environment,
    Interval,
    LedgerRow,
    Measured,
    PhaseDiagnosis,
    Predicted,
    Quality,
    Question,
    Regret,
    Results,
    RunnerUp,
    Serve,
    Shares,
    SourceQuality,
    Speedup,
    Verdict,
)
from .scheme import Format, Scheme
from .workload import SLO, Lengths, RuntimeChoice, Traffic, Workload

__all__ = [name for name in dir() if name[0].isupper()] + ["canonical", "write_text"]
