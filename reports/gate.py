"""One gate decision for people and machines: text, Markdown, JUnit XML, GitHub annotations, one self-contained HTML page.

Everything comes from the Gate document; the same document gives the same bytes.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import NamedTuple
from xml.etree import ElementTree

from quantadvisor.documents import Gate, GateMetric

from . import gate_history, units
from .gate_history import interval
from .policy import policy

MARKS = {"pass": "✓", "regression": "✗", "anomalous": "!", "inconclusive": "?"}
HEADLINES = {
    "pass": "no regression",
    "regression": "regression",
    "anomalous": "cannot be trusted",
    "inconclusive": "inconclusive",
}
UNSPEAKABLE = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold."""
CSS = """
:root { color-scheme: light dark; --paper: #fbfaf7; --ink: #1d1c1a; --soft: #5d5a54; --rule: #dedad1; --good: #17694a;
  --bad: #a33225; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171a; --ink: #e9e6df; --soft: #aaa69c; --rule: #34383e;
  --good: #74cfa4; --bad: #f19a8c; --warn: #e3b864; } }
body { margin: 0 auto; max-width: 84rem; padding: 1.5rem clamp(1rem, 4vw, 3rem); background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
h1 { font: 400 clamp(1.4rem, 1rem + 1.6vw, 2.2rem)/1.25 Georgia, serif; overflow-wrap: anywhere; }
.table { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; } .soft { color: var(--soft); overflow-wrap: anywhere; }
.pass { color: var(--good); } .regression { color: var(--bad); } .anomalous, .inconclusive { color: var(--warn); }
"""


class Row(NamedTuple):
    state: str
    of: str
    name: str
    baseline: str
    candidate: str
    ratio: str
    itself: str
    reason: str


def value(metric: GateMetric, number: float | None) -> str:
    if metric.kind == "time":
        return units.duration(number)
    if metric.kind in ("memory", "bytes"):
        return units.size(number)
    return units.whole(number) if metric.kind == "operators" else units.number(number)


def row(metric: GateMetric) -> Row:
    itself = metric.self_against_self
    return Row(
        state=metric.state,
        of=metric.of,
        name=metric.name,
        baseline=value(metric, metric.baseline),
        candidate=value(metric, metric.candidate),
        ratio=interval(metric.ratio, metric.low, metric.high) if metric.kind in ("time", "memory") else units.ABSENT,
        itself=interval(itself.ratio, itself.low, itself.high) if itself else units.ABSENT,
        reason=metric.reason,
    )


def ordered(gate: Gate) -> list[GateMetric]:
    """What failed first."""
    states = list(MARKS)[1:]
    return sorted(gate.metrics, key=lambda m: states.index(m.state) if m.state in states else len(states))


def label(gate: Gate, metric: GateMetric) -> str:
    """A metric's name, with its candidate's where there are several."""
    return metric.name if len({m.of for m in gate.metrics}) <= 1 else f"{metric.of} {metric.name}"


def headline(gate: Gate) -> str:
    """The decision in one line."""
    named = [
        f"{m.name} {m.reason}" for m in gate.metrics if m.state == gate.state and (m.decides or gate.state != "inconclusive")
    ]
    said = f": {named[0]}" if named and gate.state != "pass" else ""
    more = f" (and {len(named) - 1} more)" if gate.state != "pass" and len(named) > 1 else ""
    return f"{HEADLINES[gate.state]}{said}{more}"


def facts(gate: Gate) -> list[str]:
    """Beside the table: what was compared, how, the noise floor, what differs, what must be known."""
    how = "interleaved in one run" if gate.mode == "live" else "stored results, unpaired"
    lines = [
        f"{gate.candidate} against {gate.baseline}",
        f"{gate.workload}; {gate.device}",
        f"{how}; {gate.blocks} blocks"
        + (f" and {gate.rejected_blocks} rejected" if gate.rejected_blocks else "")
        + (f" in {gate.seconds:.0f} s" if gate.mode == "live" else "")
        + f"; threshold {gate.threshold:.1%}, alpha {gate.alpha:g}",
    ]
    floors = [f"{label(gate, m)} ±{m.noise_floor:.1%}" for m in gate.metrics if m.noise_floor is not None and m.decides]
    if floors:
        lines.append(f"noise floor: {', '.join(floors)}")
    lines += [f"differs: {factor.name} {factor.baseline} → {factor.candidate}" for factor in gate.factors]
    return lines + [f"note: {note}" for note in gate.notes]


HEADS = ("", "candidate", "metric", "baseline", "now", "ratio", "A/A", "why")


def cells(metrics: Sequence[GateMetric]) -> list[tuple[str, ...]]:
    """The table's body, without the column of names where there is one name only, headed by its heads."""
    rows = [row(metric) for metric in metrics]
    one = len({r.of for r in rows}) <= 1
    table = [HEADS, *((MARKS[r.state], *r[1:]) for r in rows)]
    return [tuple(cell for i, cell in enumerate(line) if not (one and i == 1)) for line in table]


def markdown(gate: Gate) -> str:
    """For the step summary of a CI job, or a pull request."""

    def safe(text: str) -> str:
        return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|").replace("`", "\\`").replace("[", "\\[")

    heads, *body = cells(ordered(gate))
    lines = [f"### {MARKS[gate.state]} advisor gate: {safe(headline(gate))}", ""]
    lines += [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    lines += [f"| {' | '.join(safe(cell) for cell in line)} |" for line in body]
    return "\n".join([*lines, "", *(f"- {safe(fact)}" for fact in facts(gate)), ""])


def junit(gate: Gate) -> str:
    """One test case a metric: `failure` where it regressed, `error` where it is anomalous, `skipped` where undecided."""

    def clean(text: str) -> str:
        return UNSPEAKABLE.sub("�", text)

    def count(state: str) -> str:
        return str(sum(metric.state == state for metric in gate.metrics))

    suite = ElementTree.Element(
        "testsuite",
        name="advisor gate",
        tests=str(len(gate.metrics)),
        failures=count("regression"),
        errors=count("anomalous"),
        skipped=count("inconclusive"),
        time=f"{gate.seconds:.3f}",
        timestamp=gate.created_at,
    )
    tags = {"regression": "failure", "anomalous": "error", "inconclusive": "skipped"}
    for metric in gate.metrics:
        case = ElementTree.SubElement(suite, "testcase", classname=clean(f"gate.{metric.of}"), name=clean(metric.name))
        if metric.state in tags:
            made = ElementTree.SubElement(case, tags[metric.state], message=clean(metric.reason))
            if metric.state != "inconclusive":
                made.set("type", metric.kind)
                made.text = clean("; ".join(cell for cell in row(metric)[1:] if cell != units.ABSENT))
    ElementTree.SubElement(suite, "system-out").text = clean("\n".join(facts(gate)))
    ElementTree.indent(suite)
    text = ElementTree.tostring(suite, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def workflow_commands(gate: Gate) -> list[str]:
    """GitHub workflow commands, one for each metric that did not pass."""

    def data(text: str) -> str:
        return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")

    def title(text: str) -> str:
        return data(text).replace(":", "%3A").replace(",", "%2C")

    def level(metric: GateMetric) -> str:
        return "warning" if metric.state == "inconclusive" else "error"

    def command(metric: GateMetric) -> str:
        heading = title(f"advisor gate: {metric.state} of {metric.name}")
        return f"::{level(metric)} title={heading}::{data(f'{metric.of}: {metric.reason}')}"

    return [
        command(metric)
        for metric in ordered(gate)
        if metric.state != "pass" and (metric.decides or metric.state != "inconclusive")
    ]


def page(gate: Gate, history: Sequence[Gate] = ()) -> str:
    """One file that loads nothing and runs nothing; `history`: the recorded gates, this one among them."""
    metrics, style = ordered(gate), CSS + gate_history.CSS
    heads, *body = cells(metrics)
    safe = html.escape

    def line(metric: GateMetric, columns: tuple[str, ...]) -> str:
        first = f'<td class="{metric.state}">{safe(columns[0])} {metric.state}</td>'
        return f"<tr>{first}{''.join(f'<td>{safe(cell)}</td>' for cell in columns[1:])}</tr>"

    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy(style)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>advisor gate: {HEADLINES[gate.state]}</title>",
            f"<style>{style}</style>\n</head>\n<body>\n<main>",
            f'<h1><span class="{gate.state}">{MARKS[gate.state]}</span> {safe(headline(gate))}</h1>',
            '<div class="table" tabindex="0" role="region" aria-label="Gated metrics">\n<table>\n<thead><tr>',
            "".join(f'<th scope="col">{safe(head) or "decision"}</th>' for head in heads) + "</tr></thead>\n<tbody>",
            *(line(metric, columns) for metric, columns in zip(metrics, body, strict=True)),
            "</tbody>\n</table>\n</div>",
            *(f'<p class="soft">{safe(fact)}</p>' for fact in facts(gate)),
            str(gate_history.section(gate, history)) + "</main>\n</body>\n</html>\n",
        ]
    )
