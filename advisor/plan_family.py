"""Which size of a family at which bits inside a memory limit: weights to the byte, quality by the k-bit scaling law.

Dettmers and Zettlemoyer (arXiv:2212.09720, section 4) find that at equal total bits of the weights zero-shot accuracy
is best at 4 bit for every family and size from 19M to 176B that they tried: a larger model at 4 bit beats a smaller one
at 8. So sizes that fit are ranked by parameters, and of one size by bits. Cited, never measured here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quantadvisor.documents import FamilyMember, GpuModel, PlanCandidate, Workload
from quantadvisor.kernels.gpu_schemes import arithmetic, gpu_scheme
from quantadvisor.profiling.gpu_memory import memory_of
from quantadvisor.profiling.shard import shard_of

from .plan_candidates import known_config, limit_bytes_of

BITS = {"bf16": 16, "w8a16": 8, "fp8": 8, "w8a8-int8": 8, "nvfp4": 4, "w4a16": 4}
Planned = Callable[[Mapping[str, Any]], Sequence[PlanCandidate]]
"""A model's config -> its candidates on the device, with their times or the reason of a refusal."""
SOURCE = "k-bit inference scaling laws, arXiv:2212.09720: a larger model at 4 bit before a smaller one at 8"


def family(workload: Workload, device: GpuModel, planned: Planned) -> tuple[FamilyMember, ...]:
    """Each size and scheme on one device, those that hold memory and SLO ranked; empty where the spec names no family."""
    if not workload.family:
        return ()
    found: list[tuple[int, FamilyMember]] = []
    for model in dict.fromkeys((workload.model, *workload.family)):
        config = known_config(model)
        shard = shard_of(config, workload.parallel.tensor)
        candidates = [one for one in planned(config) if one.tensor == workload.parallel.tensor]
        for name, bits in BITS.items():
            scheme = gpu_scheme(name)
            if arithmetic(scheme) not in device.flops_per_s:
                continue
            best = min((one for one in candidates if one.scheme == name), key=soonest, default=None)
            why_not = (best.refused or best.excluded) if best else f"{model} cannot be split over {workload.parallel.tensor} GPUs"
            memory = memory_of(shard, device, scheme, workload.traffic.context_length, limit_bytes_of(workload))
            member = FamilyMember(
                model=model,
                scheme=name,
                bits=bits,
                weights_bytes=memory.weights_bytes,
                fits=why_not is None,
                why_not=why_not,
                tpot_s=best.tpot_ms.value / 1e3 if best and best.tpot_ms else None,
                rank=None,
                source=SOURCE,
            )
            found.append((shard.inventory.parameters, member))
    return ranked(found)


def soonest(one: PlanCandidate) -> tuple[bool, bool, float]:
    """What runs and holds the SLO first, then the least time per output token."""
    return one.refused is not None, one.excluded is not None, one.tpot_ms.value if one.tpot_ms else 0.0


def ranked(sized: Sequence[tuple[int, FamilyMember]]) -> tuple[FamilyMember, ...]:
    """(parameters, member)s in the law's order, those that fit first and numbered: more parameters, then more bits."""
    ordered = [one for _, one in sorted(sized, key=lambda pair: (not pair[1].fits, -pair[0], -pair[1].bits))]
    return tuple(one.model_copy(update={"rank": i if one.fits else None}) for i, one in enumerate(ordered, 1))
