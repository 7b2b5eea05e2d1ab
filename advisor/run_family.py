"""Which size of a family at which bits on this machine, beside a run of one of them: the k-bit scaling law (plan_family).

Only the workload's model ran. Another size's decode step is taken at the pace of the fastest candidate of those bits here: its
bytes of weights and cache over that candidate's, times that candidate's TPOT. Peak memory: the weights and caches exchanged,
all else as it was. Both are *modelled*; the order by quality is *cited*, and bits that only failed the quality budget here are
no bits of any size. Pure, but for the configs of the other sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantadvisor.documents import BadInput, Candidate, FamilyMember, Inventory, Results, Workload
from quantadvisor.profiling.inventory import inventory_from_config
from quantadvisor.profiling.ledger import bytes_of_weights
from quantadvisor.profiling.published import config_of

from .decide import breach_of_limits, breach_of_memory, breach_of_prediction, limit_bytes
from .plan_family import SOURCE, ranked
from .predict import cache_row_bytes

GIB = 2**30


def sizes_of(workload: Workload) -> dict[str, Inventory]:
    """The inventories of the other sizes; BadInput names the one that is unknown here."""
    found = {}
    for model in dict.fromkeys(workload.family):
        if model != workload.model:
            try:
                found[model] = inventory_from_config(config_of(model))
            except BadInput as error:
                raise BadInput("family", str(error), "name folders with a config.json, or published models") from None
    return found


def family_of(results: Results, sizes: Mapping[str, Inventory]) -> tuple[FamilyMember, ...]:
    """Every size at the bits that some candidate here has times for; empty where the spec names no other size."""
    if not sizes:
        return ()
    everyone = {results.workload.model: results.profile.inventory, **sizes}
    fastest = fastest_by_bits([one for one in results.candidates if holds_its_quality(one, results.workload)])
    found = [member(results, model, everyone[model], one, bits) for model in everyone for bits, one in fastest.items()]
    return ranked([(everyone[one.model].parameters, one) for one in found])


def holds_its_quality(one: Candidate, workload: Workload) -> bool:
    """Is nothing known against a candidate but SLO and memory, which each size is asked anew?"""
    reasons = [breach_of_prediction(one.predicted, workload)] if one.predicted else []
    reasons += [breach_of_limits(one.measured, workload)] if one.measured else []
    return one.refused is None and one.excluded in (None, *reasons)


def fastest_by_bits(candidates: Sequence[Candidate]) -> dict[int, Candidate]:
    """Bits of a weight -> the candidate of least TPOT; a mixture of bits is of none."""
    found: dict[int, Candidate] = {}
    for one in candidates:
        bits = bits_of(one)
        if one.url or one.checkpoint or bits is None or tpot_of(one) is None or peak_of(one) is None:
            continue
        if bits not in found or (tpot_of(one) or 0) < (tpot_of(found[bits]) or 0):
            found[bits] = one
    return dict(sorted(found.items(), reverse=True))


def bits_of(one: Candidate) -> int | None:
    if one.scheme.weights is None:
        return 32 if one.scheme.compute == "fp32" else 16
    bits = int(one.scheme.weights.bits)
    return bits if bits in (4, 8) else None


def tpot_of(one: Candidate) -> float | None:
    """Seconds, measured before predicted."""
    if one.measured and one.measured.tpot_s:
        return one.measured.tpot_s.median
    return one.predicted.tpot_s if one.predicted else None


def peak_of(one: Candidate) -> float | None:
    if one.measured and one.measured.peak_bytes:
        return one.measured.peak_bytes.median
    return one.predicted.peak_bytes if one.predicted else None


def member(results: Results, model: str, inventory: Inventory, like: Candidate, bits: int) -> FamilyMember:
    """A size at `like`'s scheme on `like`'s runtime, and what of the workload it does not hold."""
    workload, mine = results.workload, results.profile.inventory
    tpot, peak = tpot_of(like), peak_of(like)
    assert tpot is not None and peak is not None
    before, after = (read_bytes(one, like, workload) for one in (mine, inventory))
    tpot, peak = tpot * sum(after) / sum(before), peak + sum(after) - sum(before)
    limit = limit_bytes(workload, results.device)
    reason = breach_of_memory(peak, workload, 1.0, "peak memory")
    if reason is None and peak > limit:
        reason = f"peak memory {peak / GIB:.2f} GiB is over the {limit / GIB:.2f} GiB of this machine"
    context, most = workload.traffic.context_length, inventory.max_context_tokens
    if most is not None and context > most:
        reason = f"a context of {context:,} tokens is beyond its {most:,}"
    if reason is None and workload.slo and workload.slo.tpot_ms and tpot * 1e3 > workload.slo.tpot_ms:
        reason = f"TPOT {tpot * 1e3:.1f} ms is over the SLO of {workload.slo.tpot_ms:g} ms"
    return FamilyMember(
        model=model, scheme=f"{like.scheme.name}@{'+'.join((like.runtime, *like.options))}", bits=bits, weights_bytes=after[0],
        fits=reason is None, why_not=reason, tpot_s=tpot, rank=None, source=SOURCE,
    )  # fmt: skip


def read_bytes(inventory: Inventory, like: Candidate, workload: Workload) -> tuple[int, int]:
    """(weights, caches of all requests at the declared context)."""
    cache = workload.traffic.concurrency * cache_row_bytes(inventory, like.scheme, like.runtime, workload)
    return bytes_of_weights(inventory, like.scheme), cache
