"""The model card of an artifact: a Markdown page that goes along with it, from the results that chose it."""

from __future__ import annotations

from quantadvisor.documents import Candidate, Results

from . import facts, units, wording


def render_card(results: Results) -> str:
    """What it is, what was measured of it, how to serve it, with which versions; "" where there is no artifact."""
    chosen = facts.choice(results)
    if results.artifact is None or chosen is None:
        return ""
    blocks = [
        [f"# {results.workload.model}, {chosen.name}"],
        [*_what(results, chosen)],
        ["## Measured", "", *_measured(results, chosen)],
        ["## Serve", *_serve(results)],
        ["## Made with", "", *_made_with(results)],
        ["## Files", "", "| file | SHA-256 |", "|---|---|", *(f"| {k} | `{v}` |" for k, v in results.artifact.sha256.items())],
    ]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _what(results: Results, chosen: Candidate) -> list[str]:
    assert results.artifact
    lines = [
        f"- Format: {results.artifact.format}",
        f"- Method: {facts.METHODS.get(chosen.method, chosen.method)}",
        f"- Scheme: {chosen.scheme.name}: {facts.scheme_words(chosen.scheme)}",
        f"- Made for: {facts.traffic_words(results.workload.traffic)}, on {results.device.name}",
    ]
    source = results.environment.source_already_quantized
    return [*lines, f"- The source was already quantized: {source}"] if source else lines


def _measured(results: Results, chosen: Candidate) -> list[str]:
    found, quality = chosen.measured, chosen.quality
    rows = ["| what | value | class |", "|---|---|---|"]
    if found:
        for label, figure, unit in (
            ("TTFT", found.ttft_s, units.duration),
            ("TPOT", found.tpot_s, units.duration),
            ("peak memory", found.peak_bytes, units.size),
            ("load", found.load_s, units.duration),
            ("energy per request", found.request_j, units.joules),
            ("energy per output token", found.token_j, units.joules),
            ("requests in flight", found.max_concurrency, units.whole),
        ):
            if figure:
                rows.append(f"| {label} | {units.spread(figure, unit)} | {figure.kind} |")
    if quality:
        rows.append(f"| mean KL against fp32, {quality.tokens:,} tokens | {units.interval(quality.kl, units.nats)} | measured |")
        rows.append(f"| top-1 agreement | {units.percent(quality.top1.mean, 1)} | measured |")
        rows.append(f"| perplexity | {units.number(quality.perplexity)} | measured |")
    if chosen.operators:
        share = f"{chosen.operators.quantized_linears} of {chosen.operators.linears}"
        rows.append(f"| linears that ran quantized in a decode step | {share} | measured |")
    return rows


def _serve(results: Results) -> list[str]:
    assert results.artifact
    lines = []
    for item in results.artifact.serve:
        state = "ran once here, with a coherent completion" if item.verified else f"not verified: {item.reason}"
        name = facts.RUNTIMES.get(item.runtime, item.runtime)
        lines += ["", f"{name} ({state}), beside this folder:", "", "```", item.command, "```"]
    return lines or ["", "No runtime here serves this format by one command."]


def _made_with(results: Results) -> list[str]:
    return [f"- {name}: {value}" for name, value in wording.environment(results) if not name.startswith("Time to")]
