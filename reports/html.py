"""One self-contained HTML file of one or several results: no network, no clock, same input, same bytes.

The page's Content-Security-Policy admits nothing but its own style sheet and script, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from quantadvisor.documents import Results

from . import charts, facts, plots, ranking, units, verdict, wording

HERE = Path(__file__).parent


def render_html(results: Sequence[Results]) -> str:
    """The page; several results get a comparison on top and one article each."""
    if not results:
        raise ValueError("render_html: no results given; give at least one")
    css, script = (_inline(name) for name in ("report.css.j2", "report.js.j2"))
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            css=css,
            script=script,
            policy=policy(css, script),
            title=f"QuantAdvisor · {' · '.join(dict.fromkeys(item.workload.model for item in results))}",
            reports=[view(item, place) for place, item in enumerate(results, start=1)],
            comparison=comparison(results) if len(results) > 1 else [],
            glossary=wording.GLOSSARY,
        )
    )


def policy(css: str, script: str) -> str:
    """Content-Security-Policy: nothing is loaded; only these two inline texts run."""
    style, code = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (css, script))
    return f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{code}'; base-uri 'none'; form-action 'none'"


def _inline(name: str) -> Markup:
    """Our own file, as it is: it holds no markup of others."""
    return Markup((HERE / name).read_text(encoding="utf-8"))


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {
        "duration": units.duration,
        "size": units.size,
        "percent": units.percent,
        "signed": units.signed_percent,
        "times": units.times,
        "nats": units.nats,
        "whole": units.whole,
        "number": units.number,
        "operations": units.operations,
        "bandwidth": units.bandwidth,
    }
    return made


def view(results: Results, place: int) -> dict[str, Any]:
    """All that the template shows of one report."""
    rows = ranking.rank(results)
    drawn = charts.pictures(results)
    return {
        "id": f"r{place}",
        "results": results,
        "headline": verdict.headline(results),
        "reason": verdict.reason(results),
        "numbers": verdict.key_numbers(results),
        "effects": verdict.effects(results),
        "traffic": facts.traffic_words(results),
        "constraints": wording.constraints(results),
        "changed_mind": wording.changed_mind(results),
        "boundaries": wording.boundaries(results),
        "questions": [(wording.QUESTIONS[q.id], q.answer, q.evidence) for q in results.questions],
        "pictures": {picture.key: picture for picture in drawn},
        "binding": wording.binding(results),
        "ceilings": [(found.of, wording.ceilings(found)) for _, found in facts.diagnoses(results)],
        "phases": results.profile.phases,
        "rows": rows,
        "groups": ranking.grouped(rows),
        "objective": facts.OBJECTIVES[results.workload.objective],
        "errors": facts.ledger_errors(results),
        "time_error": facts.time_error(results),
        "ledger": plots.ledger_rows(results),
        "regret": wording.regret(results),
        "source": wording.source(results),
        "memory": wording.memory(results),
        "kernels": wording.kernel_rows(results),
        "environment": wording.environment(results),
        "workload": wording.workload_rows(results),
    }


def comparison(results: Sequence[Results]) -> list[tuple[str, list[str]]]:
    """Rows of the table that puts several reports side by side: what, then one cell per report."""
    table: dict[str, list[str]] = {}
    for place, item in enumerate(results):
        for name, value in wording.column(item):
            cells = table.setdefault(name, [units.ABSENT] * len(results))
            cells[place] = value
    return list(table.items())
