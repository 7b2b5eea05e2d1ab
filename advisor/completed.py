"""What is worked out from a whole results document: the decision map, and the diagnoses of the choice and
of the best unquantized candidate, each with its own memory, beside the baseline's.

`run` stores both; `report` works them out again for results that were written before they existed.
"""

from __future__ import annotations

from collections.abc import Mapping

from quantadvisor.documents import Diagnosis, LedgerItem, MapCandidate, MemoryLedger, Results

from .decision_map import decision_map
from .diagnose import diagnose


def completed(results: Results) -> Results:
    """The same document with what can be worked out and is not there yet."""
    if results.decision_map is not None:
        return results
    found = decision_map(results)
    known = {c.name: c for c in found.candidates} if found else {}
    plain, choice = results.unquantized_diagnosis, results.verdict.choice if results.verdict.change else None
    return results.model_copy(
        update={
            "decision_map": found,
            "choice_diagnosis": results.choice_diagnosis or diagnosis_of(results, choice, known),
            "unquantized_diagnosis": (diagnosis_of(results, plain.of, known) if plain else None) or plain,
        }
    )


def diagnosis_of(results: Results, name: str | None, known: Mapping[str, MapCandidate]) -> Diagnosis | None:
    """A candidate's own phases and memory, diagnosed as the baseline's were; None where they were not seen."""
    one = next((c for c in results.candidates if c.name == name), None)
    if one is None or one.name not in known or {phase.phase for phase in one.phases} != {"prefill", "decode"}:
        return None
    own = {"phases": one.phases, "memory": ledger(known[one.name], results)}
    return diagnose(results.profile.model_copy(update=own), results.workload, of=one.name)


def ledger(known: MapCandidate, results: Results) -> MemoryLedger:
    """The memory line at the declared point, as a ledger."""
    traffic = results.workload.traffic
    cached = round(known.cache_bytes(traffic.context_length, traffic.concurrency))
    peak = known.weights_bytes + known.rest_bytes + cached
    return MemoryLedger(
        items=(
            LedgerItem(tensor="weights", bytes=known.weights_bytes, kind="modelled", source="bytes of the format"),
            LedgerItem(tensor="kv_cache", bytes=cached, kind="modelled", source=known.basis),
            LedgerItem(tensor="overhead", bytes=known.rest_bytes, kind="modelled", source="the rest of the measured peak"),
        ),
        measured_peak_bytes=peak,
    )
