"""Sizes of a family, ranked by the k-bit scaling law: rows for tables, and what a run of one of them says of the others."""

from __future__ import annotations

from collections.abc import Sequence

from quantadvisor.documents import CapacityPlan, FamilyMember, Results

from . import units

HEAD = ("Rank", "Model", "Bits", "Scheme", "Weights", "TPOT", "Holds")


def row(one: FamilyMember) -> tuple[str, ...]:
    """A line of the table."""
    rank = units.ABSENT if one.rank is None else str(one.rank)
    time = units.ABSENT if one.tpot_s is None else units.duration(one.tpot_s)
    return (rank, one.model, str(one.bits), one.scheme, units.size(one.weights_bytes), time, one.why_not or "yes")


def of_run(results: Results) -> str | None:
    return sentence(results.family, results.workload.model, "It did not run here: advisor run with model: {} measures it.")


def of_plan(plan: CapacityPlan) -> str | None:
    return sentence(plan.family, plan.workload.model, "advisor plan with model: {} shows how it serves.")


def sentence(family: Sequence[FamilyMember], model: str, further: str) -> str | None:
    """Which size is expected to be the best that holds; None where the spec names no other. `further`: what to do about one
    that is not the spec's own `model`."""
    if not family:
        return None
    first = next((one for one in family if one.rank == 1), None)
    if first is None:
        return "Of the sizes named none holds memory and SLO (modelled)."
    time = "" if first.tpot_s is None else f", about {units.duration(first.tpot_s)} a token"
    law = f"expected to be the best of the sizes that hold memory and SLO ({first.source}; quality cited, the rest modelled)"
    if first.model == model:
        return f"Keep this size: {first.model} at {first.bits} bit is {law}."
    return f"Consider {first.model} at {first.bits} bit ({first.scheme}{time}): {law}. {further.format(first.model)}"
