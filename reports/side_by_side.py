"""Several runs beside each other: models, devices, workloads. Before and after of each, and each candidate across all."""

from __future__ import annotations

from collections.abc import Sequence

from quantadvisor.documents import NumberClass, Results

from . import facts, units, wording
from .charts import Bar, bars_twice
from .svg import Legend, Picture


def run_names(results: Sequence[Results]) -> list[str]:
    """`1. model · 512 + 128 tokens × 1 · device`, without what all runs share; the model where they share everything."""
    told = [
        (
            item.workload.model,
            f"{traffic.prompt_length:,} + {traffic.output_length:,} tokens × {traffic.concurrency:,}",
            item.device.name,
        )
        for item in results
        for traffic in (item.workload.traffic,)
    ]
    differs = [len(set(part)) > 1 for part in zip(*told, strict=True)]
    kept = differs if any(differs) else [True, False, False]
    return [
        f"{place}. " + " · ".join(part for part, keep in zip(parts, kept, strict=True) if keep)
        for place, parts in enumerate(told, start=1)
    ]


def pictures(results: Sequence[Results]) -> list[Picture]:
    """Speed, users and memory of every run's advice over its own baseline; none for a single run."""
    if len(results) < 2:
        return []
    made = (speed(results), users(results), memory(results))
    return [picture for picture in made if picture is not None]


def speed(results: Sequence[Results]) -> Picture | None:
    """How much faster a request is on the advice than on that run's baseline."""
    rows, table = [], []
    for name, item in zip(run_names(results), results, strict=True):
        chosen = facts.choice(item)
        ratio = facts.speed_effect(item, chosen) if chosen is not None else None
        if chosen is None or ratio is None:
            continue
        split = item.verdict.speedup if item.verdict.change else None
        parts = (units.times(split.runtime), units.times(split.method)) if split else (units.ABSENT, units.ABSENT)
        rows.append(Bar(name, (("t-good", ratio, units.times(ratio)),), units.times(ratio)))
        table.append((name, chosen.name, units.times(ratio), *parts, facts.chain_kind(item, facts.TIMES)))
    head = ("Run", "Advised", "Request speed", "Runtime", "Method", "Class")
    return _picture("side-speed", "Request speed over the baseline", "A request on each run's advice", rows, head, table)


def users(results: Sequence[Results]) -> Picture | None:
    """Requests in flight that fit, before and after."""

    def found(item: Results, name: str | None) -> tuple[float | None, NumberClass]:
        known, candidate = facts.on_map(item, name), facts.candidate(item, name)
        return (float(known.users), known.users_kind) if known else (facts.users(candidate), facts.users_kind(candidate))

    rows, table = [], []
    for name, item in zip(run_names(results), results, strict=True):
        for what, style, candidate in _before_after(item):
            value, kind = found(item, candidate)
            if value is not None:
                rows.append(Bar(f"{what}: {name}", ((style, value, units.whole(value)),), units.whole(value)))
                table.append((name, what, candidate, units.whole(value), kind))
    head = ("Run", "What", "Candidate", "Users", "Class")
    return _picture("side-users", "Users at once", "Requests in flight inside each run's limits", rows, head, table)


def memory(results: Sequence[Results]) -> Picture | None:
    """Peak memory before and after; each run has its own limit."""
    rows, table = [], []
    for name, item in zip(run_names(results), results, strict=True):
        limit = units.size(facts.memory_limit(item)[0])
        for what, style, candidate in _before_after(item):
            figure = facts.figure(facts.candidate(item, candidate), "peak_bytes")
            if figure is not None:
                end = units.size(figure.median)
                rows.append(Bar(f"{what}: {name}", ((style, figure.median, end),), end))
                table.append((name, what, candidate, end, limit, figure.kind))
    head = ("Run", "What", "Candidate", "Peak memory", "Limit", "Class")
    return _picture("side-memory", "Peak memory", "At the declared workload, each run with its own limit", rows, head, table)


def _before_after(item: Results) -> list[tuple[str, str, str]]:
    """(word, colour, candidate): today's, and the advice where it is another one."""
    found = [("today", "t-none", item.profile.baseline)]
    if item.verdict.choice is not None and item.verdict.choice != item.profile.baseline:
        found.append(("advised", "t-good", item.verdict.choice))
    return found


def _picture(
    key: str, title: str, what: str, rows: list[Bar], head: tuple[str, ...], table: Sequence[tuple[str, ...]]
) -> Picture | None:
    if not rows:
        return None
    most = max(rows, key=lambda row: (row.total, row.label))
    summary = f"{what}; the most is {most.end}, {most.label}."
    wide, narrow = bars_twice(title, summary, rows, thick=10)
    used = {style for row in rows for style, _, _ in row.parts}
    legend = tuple(Legend(style, name) for style, name in (("t-none", "today"), ("t-good", "advised")) if style in used)
    return Picture(key, title, summary, wide, narrow, head, tuple(table), legend)


def candidates(results: Sequence[Results]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows: request speed of each candidate over its run's own baseline, and the class of all of them together; those
    measured in two runs at least."""
    names = [name for item in results for name in (c.name for c in item.candidates)]
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys(names):
        own = [(item, facts.candidate(item, name)) for item in results]
        effects = [facts.speed_effect(item, found) if found is not None else None for item, found in own]
        if sum(effect is not None for effect in effects) >= 2:
            marks = [" (advised)" if item.verdict.choice == name else "" for item in results]
            kinds = [
                facts.speed_kind(item, found)
                for (item, found), effect in zip(own, effects, strict=True)
                if found is not None and effect is not None
            ]
            rows.append(
                (name, *(units.times(e) + mark for e, mark in zip(effects, marks, strict=True)), facts.least_certain(kinds))
            )
    return ("Candidate", *run_names(results), "Class"), rows


def comparison(results: Sequence[Results]) -> list[tuple[str, list[str]]]:
    """Rows of the table that puts several runs side by side: what, then one cell per run."""
    table: dict[str, list[str]] = {}
    for place, item in enumerate(results):
        for name, value in wording.column(item):
            cells = table.setdefault(name, [units.ABSENT] * len(results))
            cells[place] = value
    return list(table.items())
