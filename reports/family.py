"""Sizes of a family, ranked by the k-bit scaling law: rows for tables, and what a run of one of them says of the others."""

from __future__ import annotations

from collections.abc import Sequence

from quantadvisor.documents import FamilyMember, Results

from . import units

HEAD = ("Rank", "Model", "Bits", "Scheme", "Weights", "TPOT", "Holds")


def row(one: FamilyMember) -> tuple[str, ...]:
    """A line of a run's table."""
    rank = units.ABSENT if one.rank is None else str(one.rank)
    time = units.ABSENT if one.tpot_s is None else units.duration(one.tpot_s)
    return (rank, one.model, str(one.bits), one.scheme, units.size(one.weights_bytes), time, one.why_not or "yes")


def plan_row(one: FamilyMember) -> tuple[str, ...]:
    return (*row(one)[:5], "yes" if one.fits else "no")


def sentence(results: Results) -> str | None:
    """Which size is expected to be the best that holds; None where the spec names no other."""
    family: Sequence[FamilyMember] = results.family
    if not family:
        return None
    first = next((one for one in family if one.rank == 1), None)
    if first is None:
        return "Of the sizes named none holds memory and SLO here (modelled)."
    time = "" if first.tpot_s is None else f", about {units.duration(first.tpot_s)} a token"
    law = f"expected to be the best of the sizes that hold memory and SLO ({first.source}; quality cited, the rest modelled)"
    if first.model == results.workload.model:
        return f"Keep this size: {first.model} at {first.bits} bit is {law}."
    did = f"It did not run here: advisor run with model: {first.model} measures it."
    return f"Consider {first.model} at {first.bits} bit ({first.scheme}{time}): {law}. {did}"
