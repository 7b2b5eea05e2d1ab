"""One self-contained HTML file of one or several results: no network, no clock, same input, same bytes.

The page's Content-Security-Policy admits nothing but its own style sheet and script, by their hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from quantadvisor.documents import Results

from . import charts, facts, family, plots, ranking, side_by_side, units, verdict, wording
from .policy import policy
from .svg import Picture

HERE = Path(__file__).parent


def render_html(results: Sequence[Results]) -> str:
    """The page; several results get a comparison on top and one article each."""
    if not results:
        raise ValueError("render_html: no results given; give at least one")
    return page(
        "report.html.j2",
        title=f"QuantAdvisor · {' · '.join(dict.fromkeys(item.workload.model for item in results))}",
        reports=[view(item, place) for place, item in enumerate(results, start=1)],
        side=beside(results) if len(results) > 1 else None,
        glossary=wording.GLOSSARY,
    )


def page(template: str, **shown: Any) -> str:
    """A template with the style sheet, the script and the policy of every page."""
    css, script = (_inline(name) for name in ("report.css.j2", "report.js.j2"))
    return _environment().get_template(template).render(css=css, script=script, policy=policy(css, script), **shown)


def _inline(name: str) -> Markup:
    """Our own file, as it is: it holds no markup of others."""
    return Markup((HERE / name).read_text(encoding="utf-8"))


@cache
def _environment() -> Environment:
    """Templates are compiled once a process."""
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
        "reason": units.typeset(verdict.reason(results)),
        "numbers": verdict.key_numbers(results),
        "effects": verdict.effects(results),
        "traffic": facts.traffic_words(results.workload.traffic),
        "constraints": wording.constraints(results),
        "changed_mind": wording.changed_mind(results),
        "boundaries": wording.boundaries(results),
        "questions": [
            (wording.QUESTIONS[q.id], q.answer, units.typeset(q.evidence), evidence_links(results, q.id, rows, drawn))
            for q in results.questions
        ],
        "numbered": {row.name: row.number for row in rows},
        "pictures": {picture.key: picture for picture in drawn},
        "binding": wording.binding(results),
        "ceilings": [(found.of, wording.ceilings(found)) for _, found in facts.diagnoses(results)],
        "phases": results.profile.phases,
        "rows": rows,
        "groups": ranking.grouped(rows),
        "objective": facts.OBJECTIVES[results.workload.objective],
        "objective_unit": {"latency": "s", "throughput": "tokens/s", "concurrency": "requests"}[results.workload.objective],
        "errors": facts.ledger_errors(results),
        "time_error": facts.time_error(results),
        "ledger": plots.ledger_rows(results),
        "regret": wording.regret(results),
        "family": [family.row(one) for one in results.family],
        "family_head": family.HEAD,
        "family_said": family.of_run(results),
        "source": wording.source(results),
        "memory": wording.memory(results),
        "kernels": wording.kernel_rows(results),
        "kernels_head": wording.KERNELS,
        "environment": wording.environment(results),
        "workload": wording.workload_rows(results),
    }


def beside(results: Sequence[Results]) -> dict[str, Any]:
    """The part that several results share."""
    head, rows = side_by_side.candidates(results)
    return {
        "id": "side",
        "names": side_by_side.run_names(results),
        "rows": side_by_side.comparison(results),
        "pictures": {item.key: item for item in side_by_side.pictures(results)},
        "head": head,
        "candidates": rows,
    }


def evidence_links(
    results: Results, question: str, rows: Sequence[ranking.Row], drawn: Sequence[Picture]
) -> list[tuple[str, str]]:
    """(anchor without the report's id, words) of where a question's evidence is, one click away."""
    chosen = next((row.number for row in rows if row.name == results.verdict.choice), None)
    own = f"c{chosen}" if chosen else "ranking"
    wanted = {
        "target": [("diagnosis", "What binds"), ("p-time-decode", "time by tensor"), ("p-memory", "memory by tensor")],
        "quality": [("p-quality-speed", "Quality against speed"), (own, "tokens and intervals")],
        "operator": [(own, "Operators that ran"), ("evidence", "kernels")],
        "bottleneck": [("p-time-decode", "Before and after"), ("p-memory", "memory by tensor"), (own, "samples")],
    }[question]
    there = {f"p-{picture.key}" for picture in drawn}
    return [(target, words) for target, words in wanted if not target.startswith("p-") or target in there]
