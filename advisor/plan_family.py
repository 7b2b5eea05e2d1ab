"""Which size of a family at which bits inside a memory limit: weights to the byte, quality by the k-bit scaling law.

Dettmers and Zettlemoyer (arXiv:2212.09720, section 4) find that at equal total bits of the weights zero-shot accuracy
is best at 4 bit for every family and size from 19M to 176B that they tried: a larger model at 4 bit beats a smaller one
at 8. So sizes that fit are ranked by parameters, and of one size by bits. Cited, never measured here.
"""

from __future__ import annotations

from collections.abc import Sequence

from quantadvisor.documents import FamilyMember, GpuModel, Workload
from quantadvisor.kernels.gpu_schemes import arithmetic, gpu_scheme
from quantadvisor.profiling.gpu_memory import memory_of
from quantadvisor.profiling.published import config_of
from quantadvisor.profiling.shard import shard_of

from .plan_candidates import limit_bytes_of

BITS = {"bf16": 16, "fp8": 8, "w8a8-int8": 8, "nvfp4": 4, "w4a16": 4}
SOURCE = "k-bit inference scaling laws, arXiv:2212.09720: a larger model at 4 bit before a smaller one at 8"


def family(workload: Workload, devices: Sequence[GpuModel]) -> tuple[FamilyMember, ...]:
    """Each size and scheme on the largest of the devices, those that fit ranked; empty where the spec names no family."""
    if not workload.family:
        return ()
    device = max(devices, key=lambda one: one.memory_bytes)
    limit = limit_bytes_of(workload)
    context, users = workload.traffic.context_length, workload.traffic.concurrency
    found: list[tuple[int, FamilyMember]] = []
    for model in dict.fromkeys((workload.model, *workload.family)):
        shard = shard_of(config_of(model), workload.parallel.tensor)
        for name, bits in BITS.items():
            scheme = gpu_scheme(name)
            if arithmetic(scheme) not in device.flops_per_s:
                continue
            memory = memory_of(shard, device, scheme, context, limit)
            member = FamilyMember(
                model=model,
                scheme=name,
                bits=bits,
                weights_bytes=memory.weights_bytes,
                fits=memory.max_concurrency >= users,
                rank=None,
                source=SOURCE,
            )
            found.append((shard.inventory.parameters, member))
    return ranked(found)


def ranked(sized: Sequence[tuple[int, FamilyMember]]) -> tuple[FamilyMember, ...]:
    """(parameters, member)s in the law's order, those that fit first and numbered: more parameters, then more bits."""
    ordered = [one for _, one in sorted(sized, key=lambda pair: (not pair[1].fits, -pair[0], -pair[1].bits))]
    return tuple(one.model_copy(update={"rank": i if one.fits else None}) for i, one in enumerate(ordered, 1))
