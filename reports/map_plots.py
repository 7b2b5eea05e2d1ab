"""Over context x concurrency: who is advised, and the memory of a candidate by tensor against the limit. All modelled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from quantadvisor.documents import DecisionMap, MapCandidate, MapCell, Results, Workload

from . import facts, units, wording
from .svg import NARROW, WIDE, Legend, Picture, drawing, rect, text

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
OTHERS = 7
"""Winners beside the advice that have a colour of their own; further ones share the last."""
OBJECTIVE = {"latency": units.duration, "throughput": units.tokens_rate, "concurrency": units.whole}
OBJECTIVE_NAMES = {"latency": "Request latency", "throughput": "Output", "concurrency": "Users at that context"}
DIGIT = 7.5
"""Px of a character of a tick, with a gap on both sides."""
LEFT, TOP, BELOW = 58.0, 22.0, 40.0
"""Px of the map's margins: for the concurrencies, the axis name above, and the contexts below."""


def decision_map(results: Results) -> Picture | None:
    """The candidate that would be advised at each context and concurrency, the declared point marked."""
    drawn, choice = results.decision_map, results.verdict.choice
    if drawn is None or choice is None:
        return None
    able = sum(1 for item in drawn.candidates if item.outside is None)
    compared = f"{able} measured candidates inside the quality budget take part."
    return map_of(drawn, choice, results.workload, wording.holds(results), compared)


def map_of(drawn: DecisionMap, choice: str, workload: Workload, holds: Sequence[str], compared: str) -> Picture:
    """`holds`: how far the choice does; `compared`: who took part."""
    names = winners(drawn, choice)
    own = sum(1 for cell in drawn.cells if cell.winner == choice)
    title = "Decision map over context and concurrency"
    summary = f"{choice} is advised at {own} of {len(drawn.cells)} points. {' '.join(holds)}"
    marks = {
        name: (LETTERS[place], "c-choice" if name == choice else f"c{min(place, OTHERS)}") for place, name in enumerate(names)
    }
    objective = OBJECTIVE[workload.objective]
    wide, narrow = (
        _grid(width, f"{title}. {summary}", drawn, workload, lambda cell, *box: _winner(cell, marks, objective, *box))
        for width in (WIDE, NARROW)
    )
    legend = [Legend(style, f"{letter}: {name}") for name, (letter, style) in marks.items()]
    return Picture(
        "map", title, summary, wide, narrow,
        ("Context, tokens", "In flight", "Advised", "Candidates that fit", OBJECTIVE_NAMES[workload.objective], "Class"),
        tuple(_map_row(cell, workload) for cell in drawn.cells),
        (*legend, Legend("c-none", "–: nothing fits"), Legend("c-declared", "declared")),
        f"Modelled. {drawn.basis[:1].upper()}{drawn.basis[1:]}. {compared}",
    )  # fmt: skip


def winners(drawn: DecisionMap, choice: str) -> list[str]:
    """The advice first, then the others by how many points they win."""
    counts: dict[str, int] = {}
    for cell in drawn.cells:
        if cell.winner is not None:
            counts[cell.winner] = counts.get(cell.winner, 0) + 1
    order = sorted(counts, key=lambda name: (name != choice, -counts[name], name))
    return order[: len(LETTERS)]


def _map_row(cell: MapCell, workload: Workload) -> tuple[str, ...]:
    mark = ", declared" if wording.at_declared(cell, workload.traffic) else ""
    return (
        f"{cell.context_tokens:,}",
        f"{cell.concurrency:,}{mark}",
        cell.winner or "nothing fits",
        str(cell.fits),
        OBJECTIVE[workload.objective](cell.objective),
        "modelled",
    )


def across(tokens: int, width: float) -> str:
    """A context under its column: whole thousands where more digits would run into the next one's."""
    said = units.digits_short(tokens)
    return said if len(said) * DIGIT <= width else f"{tokens / 1000:.0f}k"


Unit = Callable[[float | None], str]
Draw = Callable[[MapCell, float, float, float, float], list[Markup]]
"""Parts of one cell in its box: x, y, width, height."""


def _grid(width: float, label: str, drawn: DecisionMap, workload: Workload, draw: Draw) -> Markup:
    """Contexts across, concurrencies upwards; the declared cell framed."""
    step_x = (width - LEFT - 2) / max(1, len(drawn.contexts))
    step_y = 38.0 if width > 400 else 30.0
    bottom = TOP + step_y * len(drawn.concurrencies)
    parts = [text(0, 12, "requests in flight", "axis"), text(width, bottom + 34, "tokens of context", "axis", "end")]
    for place, number in enumerate(drawn.concurrencies):
        y = bottom - (place + 0.5) * step_y + 4
        parts.append(text(LEFT - 8, y, units.digits_short(number), "tick", "end"))
    for place, number in enumerate(drawn.contexts):
        parts.append(text(LEFT + (place + 0.5) * step_x, bottom + 16, across(number, step_x), "tick", "middle"))
    frame: list[Markup] = []
    for cell in drawn.cells:
        if cell.context_tokens not in drawn.contexts or cell.concurrency not in drawn.concurrencies:
            continue
        x = LEFT + drawn.contexts.index(cell.context_tokens) * step_x
        y = bottom - (drawn.concurrencies.index(cell.concurrency) + 1) * step_y
        parts += draw(cell, x + 1, y + 1, step_x - 2, step_y - 2)
        if wording.at_declared(cell, workload.traffic):
            frame.append(rect(x, y, step_x, step_y, "declared"))
    return drawing(width, bottom + BELOW, label, *parts, *frame)


def _winner(
    cell: MapCell, marks: Mapping[str, tuple[str, str]], objective: Unit, x: float, y: float, width: float, height: float
) -> list[Markup]:
    value = objective(cell.objective)
    where = f"{cell.context_tokens:,} tokens, {cell.concurrency:,} in flight"
    if cell.winner is None:
        return [
            rect(x, y, width, height, "cell c-none", f"{where}: nothing fits"),
            text(x + width / 2, y + height / 2 + 4, "–", "tick", "middle"),
        ]
    letter, style = marks.get(cell.winner, ("+", f"c{OTHERS}"))
    hint = f"{where}: {cell.winner}, {value}; {cell.fits} candidates fit"
    said = f"{letter} · {value}" if width > 60 and len(value) < 9 else letter
    return [
        rect(x, y, width, height, f"cell {style}", hint),
        text(x + width / 2, y + height / 2 + 4, said, "inside", "middle"),
    ]


def memory_grid(results: Results) -> Picture | None:
    """The advised candidate's memory."""
    return _memory_in(results, results.verdict.choice, "memory-grid", "the advice")


def memory_grid_before(results: Results) -> Picture | None:
    """The baseline's, where it is another one."""
    if results.profile.baseline == results.verdict.choice:
        return None
    return _memory_in(results, results.profile.baseline, "memory-grid-before", "the baseline")


def _memory_in(results: Results, name: str | None, key: str, whose: str) -> Picture | None:
    drawn, known = results.decision_map, facts.on_map(results, name)
    return None if drawn is None or known is None else memory_of(drawn, known, results.workload, key, whose)


def memory_of(drawn: DecisionMap, known: MapCandidate, workload: Workload, key: str, whose: str) -> Picture:
    """One candidate's memory by tensor at every point of a map."""
    limit = drawn.limit_bytes
    inside = sum(1 for cell in drawn.cells if known.held_bytes(cell.context_tokens, cell.concurrency) <= limit)
    title = f"Memory of {whose} over context and concurrency"
    summary = f"{known.name} stays under {units.size(limit)} at {inside} of {len(drawn.cells)} points; "
    summary += f"a cached token takes {units.size(known.cache_bytes_per_token)}."
    wide, narrow = (
        _grid(width, f"{title}. {summary}", drawn, workload, lambda cell, *box: _held(cell, known, limit, *box))
        for width in (WIDE, NARROW)
    )
    head = (
        "Context, tokens",
        "In flight",
        "Weights",
        "KV cache",
        "Activations and overhead",
        "Together",
        "Of the limit",
        "Class",
    )
    legend = (
        Legend("t-weights", facts.TENSORS["weights"]), Legend("t-kv_cache", facts.TENSORS["kv_cache"]),
        Legend("t-other", "activations, overhead"), Legend("over", "over the limit"), Legend("c-declared", "declared"),
    )  # fmt: skip
    note = f"The width of each cell is the limit of {units.size(limit)}. Rests on: {known.basis.partition(';')[0]}."
    rows = tuple(_memory_row(cell, known, limit) for cell in drawn.cells)
    return Picture(key, title, summary, wide, narrow, head, rows, legend, note)


def _memory_row(cell: MapCell, known: MapCandidate, limit: int) -> tuple[str, ...]:
    place = cell.context_tokens, cell.concurrency
    sizes = (known.weights_bytes, known.cache_bytes(*place), known.rest_bytes, known.held_bytes(*place))
    share = units.percent(facts.over(known.held_bytes(*place), limit))
    return (f"{place[0]:,}", f"{place[1]:,}", *(units.size(size) for size in sizes), share, "modelled")


def _held(cell: MapCell, known: MapCandidate, limit: int, x: float, y: float, width: float, height: float) -> list[Markup]:
    """A bar by tensor across the cell, cut at the limit, and the sum above it."""
    place = cell.context_tokens, cell.concurrency
    total = known.held_bytes(*place)
    where = f"{place[0]:,} tokens, {place[1]:,} in flight: {units.size(total)}"
    over, bar = total > limit, 10.0
    parts = [rect(x, y, width, height, "cell over" if over else "cell free", where)]
    start = 0.0
    for style, size in (
        ("t-weights", float(known.weights_bytes)),
        ("t-kv_cache", known.cache_bytes(*place)),
        ("t-other", float(known.rest_bytes)),
    ):
        end = min(1.0, start + size / limit) if limit > 0 else 1.0
        parts.append(rect(x, y + height - bar, (end - start) * width, bar, style, where))
        x, start = x + (end - start) * width, end
    left = x - start * width
    said = units.size(total) if width > 60 else share_short(facts.over(total, limit))
    return [*parts, text(left + width / 2, y + height - bar - 4, said, "tick", "middle")]


def share_short(share: float | None) -> str:
    """`85%`, `3.2×`, `57×`: as little room as it takes."""
    if share is None or share < 1:
        return units.percent(share).replace(" ", "")
    return units.times_short(round(share, 1) if share < 10 else round(share))
