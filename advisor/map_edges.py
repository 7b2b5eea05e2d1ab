"""Over context x concurrency: who is advised at each point, and where that stops. Pure; `run` and `plan` share it.

A source of looks says what every candidate would reach at a point: the measured candidates of a run (decision_map), or
those of a plan (plan_map). The advice stays where it fits and nothing beats it by more than a tie (decide.TIE): whoever
runs it would not change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from quantadvisor.documents import MapCell, MapEdge, Workload

from .decide import TIE, better, maximised

Axis = Literal["concurrency", "context_tokens"]
Limit = Literal["memory", "ttft", "tpot"]
Point = tuple[int, int]
"""Context in tokens, requests in flight."""

FACTORS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16, 32, 64, 128)
"""Of the declared context and concurrency: the lines of the map, as far as the model's positions reach."""
MOST_LINES = 8
STEP = 1.1
"""By how much each look along an axis goes further, before the edge is bisected."""


class Look(NamedTuple):
    """One point: the winner, its objective, how many fit."""

    winner: str | None
    objective: float | None
    fits: int


class Terrain(NamedTuple):
    """What a map is drawn from."""

    choice: str
    declared: Point
    look: Callable[[Sequence[Point]], list[Look]]
    breach: Callable[[Point], Limit | None]
    """What the choice breaks at a point."""


def lines(declared: int, least: int, most: int | None) -> tuple[int, ...]:
    """The declared value times FACTORS, inside [least, most]; at most MOST_LINES of them, more above than below it."""
    values = sorted({max(1, round(declared * factor)) for factor in FACTORS} | {declared})
    inside = [value for value in values if value == declared or (value >= least and (most is None or value <= most))]
    place = inside.index(declared)
    start = max(0, min(place - 3, len(inside) - MOST_LINES))
    return tuple(inside[start : start + MOST_LINES])


def basis_of(workload: Workload) -> str:
    stays = f"the output stays at {workload.traffic.output_length} tokens, the prompt takes the rest of the context"
    return f"{stays}; the advice stays while it fits and nothing beats it by more than {TIE - 1:.0%}"


def advised(values: Mapping[str, float], choice: str | None, workload: Workload, preference: Callable[[str], Any]) -> str:
    """Of the candidates that fit, by objective: the choice where it is tied with the best, else the preferred of the tied."""
    ties = tied(values, workload)
    return choice if choice in ties else min(ties, key=preference)


def tied(values: Mapping[str, float], workload: Workload) -> list[str]:
    """Those that the best beats by no more than a tie."""
    best = (max if maximised(workload) else min)(values.values())
    bound = best / TIE if maximised(workload) else best * TIE
    return [name for name, value in values.items() if not better(bound, value, workload)]


def cells(terrain: Terrain, contexts: Sequence[int], flights: Sequence[int]) -> tuple[MapCell, ...]:
    points = [(context, flight) for context in contexts for flight in flights]
    return tuple(
        MapCell(context_tokens=context, concurrency=flight, **seen._asdict())
        for (context, flight), seen in zip(points, terrain.look(points), strict=True)
    )


def edges(terrain: Terrain, contexts: Sequence[int], flights: Sequence[int]) -> tuple[MapEdge, ...]:
    """Where the advice stops to hold on each side of the declared point, as far as the map reaches; none where it does not
    even hold at that point (others were measured after it was chosen)."""
    if terrain.look([terrain.declared])[0].winner != terrain.choice:
        return ()
    context, flight = terrain.declared
    walks: tuple[tuple[Axis, int, Sequence[int]], ...] = (
        ("concurrency", flight, flights),
        ("context_tokens", context, contexts),
    )
    found = []
    for axis, declared, reach in walks:
        for end in (reach[0], reach[-1]):

            def held(numbers: Sequence[int], axis: Axis = axis) -> list[bool]:
                looks = terrain.look([point(terrain.declared, axis, number) for number in numbers])
                return [one.winner == terrain.choice for one in looks]

            place = first_beyond(declared, end, held)
            if place is not None:
                found.append(edge(terrain, axis, place))
    return tuple(found)


def point(declared: Point, axis: Axis, number: int) -> Point:
    """`number` on one axis, the other as declared."""
    return (declared[0], number) if axis == "concurrency" else (number, declared[1])


def edge(terrain: Terrain, axis: Axis, number: int) -> MapEdge:
    """What happens at the first number past the advice."""
    place = point(terrain.declared, axis, number)
    why = terrain.breach(place)
    return MapEdge(axis=axis, at=number, winner=terrain.look([place])[0].winner, why=why or "better")


def first_beyond(declared: int, end: int, inside: Callable[[Sequence[int]], Sequence[bool]]) -> int | None:
    """The first number from `declared` towards `end` that is not inside: steps of STEP, then bisected; None where all are."""
    numbers = steps(declared, end)
    if not numbers:
        return None
    for before, number, held in zip([declared, *numbers[:-1]], numbers, inside(numbers), strict=True):
        if not held:
            return bisected(before, number, inside)
    return None


def steps(declared: int, end: int) -> list[int]:
    found, number = [], declared
    while number != end:
        further = max(number + 1, round(number * STEP)) if end > declared else min(number - 1, round(number / STEP))
        number = min(further, end) if end > declared else max(further, end)
        found.append(number)
    return found


def bisected(held: int, beyond: int, inside: Callable[[Sequence[int]], Sequence[bool]]) -> int:
    """The number next to the last one inside, between one that is and one that is not."""
    while abs(beyond - held) > 1:
        middle = (held + beyond) // 2
        held, beyond = (middle, beyond) if inside([middle])[0] else (held, middle)
    return beyond
