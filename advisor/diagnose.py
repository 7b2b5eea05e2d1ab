"""Which tensor binds, and the ceiling on what each method could gain: a pure function of the profile.

Time goes to the tensor whose shrinking would shorten it. A linear's whole operator time goes to the side of the roofline
that it is on, found by measuring time against M: flat (elasticity d log t / d log M < 0.5) = weights, proportional =
activations. Attention that reads the cache is kv_cache, attention over the fresh prompt is activations; only time
outside linears and attention is other. Ceilings are Amdahl's law: 1 / (1 - share * (1 - what is left)).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from quantadvisor.documents import (
    Diagnosis,
    KernelTiming,
    MemoryLedger,
    PhaseDiagnosis,
    PhaseTime,
    Profile,
    Scheme,
    Shares,
    Workload,
)
from quantadvisor.kernels.timing import elasticity

FLAT_BELOW = 0.5


def diagnose(profile: Profile, workload: Workload, schemes: Iterable[Scheme] = (), of: str | None = None) -> Diagnosis:
    """The diagnosis of `profile.phases`; `of` names the candidate whose phases they are (default: the baseline)."""
    times = {phase.phase: phase for phase in profile.phases}
    runtime, scheme = split(of or profile.baseline)
    flat = {phase: flat_share(profile.kernels, runtime, scheme, m) for phase, m in phase_sizes(workload).items()}
    prefill, decode = (time_diagnosis(times[phase], flat[phase]) for phase in ("prefill", "decode"))
    capacity = capacity_diagnosis(profile.memory)
    shares = objective_shares(workload, prefill, decode, capacity)
    ceilings = {target: amdahl(getattr(shares, target), 0.0) for target in ("weights", "activations", "kv_cache")}
    by_scheme = {s.name: amdahl_of_scheme(shares, s, scheme) for s in schemes}
    return Diagnosis(
        of=of or profile.baseline,
        capacity=capacity,
        prefill=prefill,
        decode=decode,
        binds=shares.binds,
        shares=shares,
        ceilings=ceilings,
        method_ceilings=by_scheme,
    )


def split(name: str) -> tuple[str, str]:
    """(runtime, scheme) of a candidate's name `method-scheme@runtime+option`."""
    left, _, right = name.rpartition("@")
    return right.partition("+")[0], left.partition("-")[2]


def options_of(name: str) -> tuple[str, ...]:
    """The options in a candidate's name."""
    return tuple(name.rpartition("@")[2].split("+")[1:])


def phase_sizes(workload: Workload) -> dict[str, int]:
    """M of the linears in each phase: rows of the activation matrix in one forward pass."""
    traffic = workload.traffic
    return {"prefill": traffic.prompt_length * traffic.concurrency, "decode": traffic.concurrency}


def flat_share(kernels: Iterable[KernelTiming], runtime: str, scheme: str, m: int) -> float:
    """Share of the linears' time at about `m` rows that is flat in M, weighted by time; 1.0 below M = 16 if unmeasured."""
    kernels = tuple(k for k in kernels if k.runtime == runtime and k.scheme.name == scheme and k.time_s is not None)
    by_shape: dict[tuple[int, int], list[KernelTiming]] = {}
    for kernel in kernels:
        by_shape.setdefault((kernel.n, kernel.k), []).append(kernel)
    total = flat = 0.0
    for timings in by_shape.values():
        nearest = min(timings, key=lambda k: abs(k.m - m))
        assert nearest.time_s is not None
        try:
            slope = elasticity(timings, nearest.m)
        except ValueError:
            continue
        total += nearest.time_s.median
        flat += nearest.time_s.median if slope < FLAT_BELOW else 0.0
    if total == 0.0:
        return 1.0 if m < 16 else 0.0
    return flat / total


def time_diagnosis(time: PhaseTime, flat: float) -> PhaseDiagnosis:
    """Shares of one forward pass's wall time; the residue counts as other."""
    fresh = time.phase == "prefill"
    parts = {
        "weights": time.linears_s * flat,
        "activations": time.linears_s * (1 - flat) + (time.attention_s if fresh else 0.0),
        "kv_cache": time.cache_s + (0.0 if fresh else time.attention_s),
        "other": max(0.0, time.other_s) + max(0.0, time.residue_s),
    }
    shares = normalised(parts)
    return PhaseDiagnosis(binds=shares.binds, shares=shares, total=time.wall_s.median)


def capacity_diagnosis(memory: MemoryLedger) -> PhaseDiagnosis:
    """Shares of bytes at the declared context and concurrency; runtime overhead is other."""
    parts = {"weights": 0.0, "activations": 0.0, "kv_cache": 0.0, "other": 0.0}
    for item in memory.items:
        parts["other" if item.tensor == "overhead" else item.tensor] += item.bytes
    shares = normalised(parts)
    return PhaseDiagnosis(binds=shares.binds, shares=shares, total=memory.total_bytes)


def objective_shares(workload: Workload, prefill: PhaseDiagnosis, decode: PhaseDiagnosis, capacity: PhaseDiagnosis) -> Shares:
    """Shares of what the objective asks for: TTFT + (output - 1) TPOT; a second of steady state; or the memory."""
    if workload.objective == "concurrency":
        return capacity.shares
    steps = workload.traffic.output_length - 1
    names = ("weights", "activations", "kv_cache", "other")
    return normalised(
        {
            name: prefill.total * getattr(prefill.shares, name) + steps * decode.total * getattr(decode.shares, name)
            for name in names
        }
    )


def normalised(parts: Mapping[str, float]) -> Shares:
    total = sum(parts.values()) or 1.0
    return Shares(**{name: value / total for name, value in parts.items()})


def amdahl(share: float, left: float) -> float:
    """Factor gained when `share` of the total shrinks to `left` of itself (Amdahl 1967)."""
    return 1.0 / max(1e-3, 1.0 - share * (1.0 - left))


def amdahl_of_scheme(shares: Shares, scheme: Scheme, baseline: str) -> float:
    """Bound with the bits that the scheme stores: weights and cache shrink with bytes, activations with operand width."""
    bits = 16.0 if baseline.startswith("bf16") else 32.0
    remaining = 1.0
    if scheme.weights is not None:
        remaining -= shares.weights * (1 - scheme.weights.bits / bits)
    if scheme.activations is not None:
        remaining -= shares.activations * (1 - scheme.activations.bits / bits)
    if scheme.keys is not None and scheme.values is not None:
        remaining -= shares.kv_cache * (1 - (scheme.keys.bits + scheme.values.bits) / 2 / bits)
    return 1.0 / max(1e-3, remaining)
