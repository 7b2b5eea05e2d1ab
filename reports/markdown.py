"""The same results as Markdown, for pull requests and step summaries: the verdict first, the tables folded away."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from quantadvisor.documents import Results

from . import charts, facts, family, ranking, side_by_side, units, verdict, wording
from .svg import Picture

TABLES = ("map", "users", "memory", "time-prefill", "time-decode", "origin", "prediction")
"""Pictures whose numbers go along."""
SPECIAL = re.compile(r"([\\`*_{}\[\]|~#])")


def render_markdown(results: Sequence[Results]) -> str:
    """One section per run; several get a table that compares them on top."""
    if not results:
        raise ValueError("render_markdown: no results given; give at least one")
    parts = []
    if len(results) > 1:
        head = ("", *side_by_side.run_names(results))
        rows = [(name, *cells) for name, cells in side_by_side.comparison(results)]
        parts += [f"# {len(results)} runs side by side", table(head, rows)]
    parts += [section(item, "##" if len(results) > 1 else "#") for item in results]
    return "\n\n".join(parts) + "\n"


def escaped(words: str) -> str:
    """As text, whatever it holds: no markup, no line break."""
    return SPECIAL.sub(r"\\\1", html.escape(" ".join(words.split()), quote=False))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[escaped(cell) for cell in line] for line in (head, *rows)]
    written = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([written[0], "|" + "---|" * len(head), *written[1:]])


def section(results: Results, level: str) -> str:
    """One run: verdict, numbers, what holds, questions, how to serve, ranking, and the pictures' tables folded away."""
    numbers = [(item.label, item.value, item.detail, item.kind) for item in verdict.key_numbers(results)]
    said = [
        f"{level} {escaped(verdict.headline(results))}",
        escaped(f"{results.workload.model} · {results.device.name} · {facts.traffic_words(results.workload.traffic)}"),
        escaped(verdict.reason(results)),
        table(("", "", "", "class"), numbers) if numbers else "",
        "\n".join(f"- {escaped(line)}" for line in wording.boundaries(results)),
        "\n".join(_questions(results)),
        *_serve(results),
        escaped(family.of_run(results) or ""),
        folded("Sizes of the family", table(family.HEAD, [family.row(one) for one in results.family])) if results.family else "",
        folded("Ranking", table(RANKING, _ranking(results))) if results.candidates else "",
    ]
    drawn: dict[str, Picture] = {picture.key: picture for picture in charts.pictures(results, TABLES)}
    said += [folded(drawn[key].title, table(drawn[key].head, drawn[key].rows)) for key in TABLES if key in drawn]
    said.append(folded("Environment", table(("", ""), wording.environment(results))))
    return "\n\n".join(part for part in said if part)


def folded(title: str, body: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>\n\n{body}\n\n</details>"


def _questions(results: Results) -> list[str]:
    return [
        f"- {'✓' if question.answer else '✗'} **{escaped(wording.QUESTIONS[question.id])}** {escaped(question.evidence)}"
        for question in results.questions
    ]


def _serve(results: Results) -> list[str]:
    """Commands as code: a fence longer than any run of backticks in them."""
    if results.artifact is None:
        return []
    commands = [item.command for item in results.artifact.serve]
    longest = max((len(run) for command in commands for run in re.findall("`+", command)), default=0)
    fence = "`" * max(3, longest + 1)
    return ["\n".join([fence, *commands, fence])] if commands else []


RANKING = ("#", "Candidate", "Standing", "Objective", "TTFT", "TPOT", "Peak memory", "KL", "Speed", "Why")


def _ranking(results: Results) -> list[tuple[str, ...]]:
    return [
        (
            str(row.number), row.name + (" (baseline)" if row.is_baseline else ""), row.status,
            row.objective.measured if row.objective.measured != units.ABSENT else f"{row.objective.predicted} predicted",
            row.ttft.measured, row.tpot.measured, row.peak.measured, row.kl, row.speed, row.reason,
        )
        for row in ranking.rank(results)
    ]  # fmt: skip
