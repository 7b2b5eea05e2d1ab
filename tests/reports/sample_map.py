"""SYNTHETIC TEST DATA, measured nowhere: a decision map of the sample results, by simple formulas.

The choice holds 12,000 cached tokens, its rival 25,000; the rival wins where the choice does not fit.
"""

from __future__ import annotations

from quantadvisor.documents import DecisionMap, MapCandidate, MapCell, MapEdge

from .sample_profile import BASELINE, MIB

CONTEXTS = (160, 320, 640, 1280, 2560, 5120)
FLIGHTS = (1, 2, 4, 8, 16, 32, 64, 128)
LIMIT = 1024 * MIB
CHOICE, RIVAL = "rtn-w8-g64@onnxruntime", "rtn-w8-g64-kv8@onnxruntime"
HELD = {CHOICE: 12_000, RIVAL: 25_000, BASELINE: 9_000}


def member(name: str, weights_mib: int, rest_mib: int) -> MapCandidate:
    """The line that reaches the limit at that many tokens."""
    each = (LIMIT - (weights_mib + rest_mib) * MIB) / HELD[name]
    return MapCandidate(
        name=name,
        weights_bytes=weights_mib * MIB,
        rest_bytes=rest_mib * MIB,
        cache_bytes_per_token=each,
        users=HELD[name] // 640,
        limited_by="memory",
        ttft_s=9.5,
        tpot_s=0.041,
        basis="measured peak, cache bytes of the format; linears by kernel probes",
    )


def cell(context: int, flight: int) -> MapCell:
    held = context * flight
    winner = CHOICE if held <= HELD[CHOICE] else RIVAL if held <= HELD[RIVAL] else None
    fits = sum(held <= most for most in HELD.values())
    return MapCell(
        context_tokens=context, concurrency=flight, winner=winner, fits=fits, objective=0.001 * held if winner else None
    )


def decision_map() -> DecisionMap:
    slow = MapCandidate(
        name="none-fp32@torch", outside="not on the map: its time was not taken apart", weights_bytes=513 * MIB,
        rest_bytes=480 * MIB, cache_bytes_per_token=46080, users=1,
    )  # fmt: skip
    return DecisionMap(
        limit_bytes=LIMIT,
        contexts=CONTEXTS,
        concurrencies=FLIGHTS,
        candidates=(member(BASELINE, 269, 370), member(CHOICE, 143, 245), member(RIVAL, 143, 214), slow),
        cells=tuple(cell(context, flight) for context in CONTEXTS for flight in FLIGHTS),
        edges=(
            MapEdge(axis="concurrency", at=19, winner=RIVAL, why="memory"),
            MapEdge(axis="context_tokens", at=200, winner=BASELINE, why="better"),
        ),
        basis="the output stays at 128 tokens, the prompt takes the rest of the context",
    )


def coarse(drawn: DecisionMap) -> DecisionMap:
    """Nine of its points: the choice wins, the rival does, nothing fits; the declared one is among them."""
    contexts, flights = (640, 2560, 5120), (1, 8, 128)
    cells = tuple(one for one in drawn.cells if one.context_tokens in contexts and one.concurrency in flights)
    return drawn.model_copy(update={"contexts": contexts, "concurrencies": flights, "cells": cells})
