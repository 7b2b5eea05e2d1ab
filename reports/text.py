"""The same results for a terminal: plain text, no colour, no markup."""

from __future__ import annotations

import re

from quantadvisor.documents import Results

from . import facts, family, ranking, units, verdict, wording

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What would move a terminal's cursor or colour it: names come from files."""


def verdict_lines(results: Results) -> list[str]:
    """The verdict in a few lines: the sentence, the numbers with their class, the questions, how to serve."""
    lines = [verdict.headline(results)]
    if verdict.reason(results):
        lines.append(verdict.reason(results))
    for item in verdict.key_numbers(results):
        lines.append(f"{item.label}: {item.value} ({item.detail + '; ' if item.detail else ''}{item.kind})")
    lines += [f"{word} ({kind}): {sentence}" for word, sentence, kind in verdict.effects(results)]
    lines += wording.holds(results)
    lines += [line] if (line := family.of_run(results)) else []
    for question in results.questions:
        answer = "yes" if question.answer else "no"
        lines.append(f"{wording.QUESTIONS[question.id]} {answer}. {question.evidence}")
    if results.artifact is not None:
        lines.append(f"Artifact: {results.artifact.path} ({results.artifact.format})")
        lines += [f"Serve: {item.command}" for item in results.artifact.serve]
    return lines


def render_text(results: Results) -> str:
    """The whole report: verdict, diagnosis, ranking with reasons, predictions, environment."""
    blocks = [
        [f"QuantAdvisor · {results.workload.model} · {results.device.name}", facts.traffic_words(results.workload.traffic)],
        verdict_lines(results),
        ["What the advice rests on", *_advice(results)],
        ["Diagnosis", *_diagnosis(results)],
        ["Users at the declared context", *_users(results)],
        ["Sizes of the family", *("  " + "  ".join(family.row(one)) for one in results.family)],
        ["Ranking", *_ranking(results)],
        ["Predictions", *_predictions(results)],
        ["Source of the weights", *wording.source(results)],
        ["Environment", *(f"  {name}: {value}" for name, value in wording.environment(results))],
    ]
    text = "\n\n".join("\n".join(block) for block in blocks if len(block) > 1 or block is blocks[1]) + "\n"
    return CONTROL.sub("\ufffd", text)


def _advice(results: Results) -> list[str]:
    found = [
        f"  Objective: {facts.OBJECTIVES[results.workload.objective]}",
        f"  Constraints: {'; '.join(wording.constraints(results)) or 'none'}",
    ]
    found += [f"  Tied with: {name}" for name in results.verdict.tied_with]
    found += [f"  {line}" for line in wording.boundaries(results)]
    return found + ([f"  {wording.changed_mind(results)}"] if wording.changed_mind(results) else [])


def _diagnosis(results: Results) -> list[str]:
    lines = []
    for _, found in facts.diagnoses(results):
        lines.append(f"  {found.of}: {facts.TENSORS[found.binds]} bind the objective")
        for side in ("capacity", "prefill", "decode"):
            part = getattr(found, side)
            unit = units.size if side == "capacity" else units.duration
            share = units.percent(getattr(part.shares, part.binds))
            lines.append(f"    {side}: {facts.TENSORS[part.binds]} {share} of {unit(part.total)}")
        bounds = ", ".join(f"{facts.TENSORS.get(name, name)} ≤ {units.times(v)}" for name, v in found.ceilings.items())
        lines += [f"    ceilings: {bounds}"] if bounds else []
    return lines + ([f"  {line}"] if (line := wording.memory(results)[1]) else [])


def _users(results: Results) -> list[str]:
    """Most first, with what ends them."""
    known = results.decision_map.candidates if results.decision_map is not None else ()
    held = sorted((item for item in known if item.outside is None), key=lambda item: (-item.users, item.name))
    return [f"  {item.name}: {item.users:,}, until {verdict.ENDS[item.limited_by]} ({item.users_kind})" for item in held]


def _ranking(results: Results) -> list[str]:
    """An aligned table; the reason follows each candidate on its own line."""
    rows = ranking.rank(results)
    if not rows:
        return []
    head = (
        "#",
        "candidate",
        facts.OBJECTIVES[results.workload.objective],
        "TTFT",
        "TPOT",
        "peak",
        "KL",
        "speed",
        "users",
    )
    table = [head] + [
        (
            str(row.number), row.name + (" (baseline)" if row.is_baseline else ""), _both(row.objective),
            row.ttft.measured, row.tpot.measured, row.peak.measured, row.kl, row.speed,
            row.users.measured if row.users.measured != units.ABSENT else row.users.predicted,
        )
        for row in rows
    ]  # fmt: skip
    widths = [max(len(line[place]) for line in table) for place in range(len(head))]
    lines = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    indent = " " * (4 + widths[0])
    reasons = ["", *(f"\n{indent}{row.reason}" for row in rows)]
    return [line + reason for line, reason in zip(lines, reasons, strict=True)]


def _both(cell: ranking.Cell) -> str:
    """Measured, and what was predicted where it was."""
    guess = f" (predicted {cell.predicted})" if cell.predicted != units.ABSENT else ""
    return f"{cell.measured} {cell.interval}".rstrip() + guess


def _predictions(results: Results) -> list[str]:
    lines = [
        f"  {facts.QUANTITIES[quantity]}, {runtime}: {units.percent(error, 1)} in the median of {count}"
        for quantity, runtime, error, count in facts.ledger_errors(results)
    ]
    return lines + [f"  {name}: {value}" for name, value in wording.regret(results)]
