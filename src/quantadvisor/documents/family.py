"""A size of a family at some bits, as the k-bit scaling law ranks it: said by a plan and by a run."""

from __future__ import annotations

from .base import Document, Finite


class FamilyMember(Document):
    """A size of the family at some bits within the memory limit."""

    model: str
    scheme: str
    bits: int
    """Of a weight."""
    weights_bytes: int
    fits: bool
    why_not: str | None = None
    """What of the workload it does not hold, or why it cannot run."""
    tpot_s: Finite | None = None
    """Modelled: in a run from what ran here."""
    rank: int | None
    source: str
