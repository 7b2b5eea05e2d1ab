"""Sentences and small tables of the report, from facts: shared by the page and the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from quantadvisor.documents import DecisionMap, Diagnosis, MapCell, MapEdge, Results, Traffic, Workload

from . import facts, units, verdict

QUESTIONS = {
    "target": "Was it the right tensor?",
    "quality": "Did quality hold?",
    "operator": "Did the quantized operator really run?",
    "bottleneck": "Did the bottleneck shrink?",
}
GLOSSARY = (
    (
        "TTFT",
        "Time to first token: from the request's arrival to its first output token, waiting for the others' prefill included.",
    ),
    ("TPOT", "Time per output token after the first: (latency − TTFT) / (output tokens − 1)."),
    ("Request latency", "TTFT + (output tokens − 1) · TPOT at the declared number of requests in flight."),
    ("Prefill, decode", "Reading the whole prompt at once; then writing one token per step."),
    (
        "KL divergence",
        "How far the next-token distribution moved from that of the same model in fp32, nats per token; 0 is identical.",
    ),
    ("Top-1 agreement", "Share of tokens whose most likely next token is the fp32 model's."),
    (
        "W4A16, W8A8",
        "Bits of weights and of activations: W4A16 stores weights in 4 bits and computes in 16; W8A8 computes in 8-bit integers.",
    ),
    ("KV cache", "Keys and values of every token so far, kept per request; kv8 stores them in 8 bits."),
    ("Group size (g64)", "Weights that share one scale."),
    ("RTN", "Round to nearest: the simplest quantization, no calibration."),
    ("Binds", "The tensor whose shrinking would shorten the time (or the bytes) most."),
    ("Ceiling", "Amdahl's bound: the best possible gain if that tensor cost nothing."),
    (
        "Roofline",
        "The most operations per second that memory bandwidth and arithmetic peak allow at a given number of "
        "operations per byte.",
    ),
    ("M", "Rows that a linear processes at once: requests in decode, prompt tokens × requests in prefill."),
    ("Context", "Prompt and output tokens of one request; on the map the output stays as declared."),
    (
        "Pareto front",
        "The candidates that no other one beats in both speed and quality.",
    ),
    (
        "Ghost",
        "An artifact of the right shapes with random weights, run before anything is quantized; predictions rest on it.",
    ),
    ("Regret", "How much worse the advice is than the best candidate found by measuring all of them."),
    (
        "Measured, modelled, cited",
        "Timed or counted here; computed from measured parts; taken from a source that is named.",
    ),
)
"""Words of the page, each in a sentence."""


def constraints(results: Results) -> list[str]:
    """What bounds the choice, in short clauses; the objective apart."""
    work = results.workload
    found = []
    if work.memory_limit_gib is not None:
        found.append(f"memory limit {units.size(work.memory_limit_gib * 2**30)}")
    if work.slo is not None:
        bounds = [f"{n} ≤ {v:g} ms" for n, v in (("TTFT", work.slo.ttft_ms), ("TPOT", work.slo.tpot_ms)) if v is not None]
        found.append(f"{', '.join(bounds) or 'no bound'} for {work.slo.percentile:g} % of requests")
    return found + quality_budget(work)


def quality_budget(work: Workload) -> list[str]:
    """What bounds quality, in short clauses."""
    budget, found = work.quality, []
    if budget.kl_mean_max is not None:
        found.append(f"mean KL ≤ {units.plain(budget.kl_mean_max)}")
    if budget.top1_agreement_min is not None:
        found.append(f"top-1 agreement ≥ {units.percent(budget.top1_agreement_min, 1)}")
    return found + [f"score of {task} down by ≤ {units.percent(one.max_drop, 1)}" for task, one in budget.tasks.items()]


def changed_mind(results: Results) -> str:
    """Said where the measured winner is not the predicted one."""
    guess, final = results.verdict.predicted_choice, results.verdict.choice
    if guess is None or guess == final:
        return ""
    return f"The prediction favoured {guess}; measured, {final or 'nothing'} won. Both are in the ledger."


def boundaries(results: Results) -> list[str]:
    """What the advice holds until: by concurrency and context from the map, then by what else was declared."""
    work = results.workload
    counted: dict[str, tuple[str, float | None]] = {
        "concurrency": ("requests in flight", work.traffic.concurrency),
        "prompt_tokens": ("prompt tokens", work.traffic.prompt_length),
        "output_tokens": ("output tokens", work.traffic.output_length),
    }
    limits: dict[str, tuple[str, float | None]] = {
        "kl_mean_max": ("a budget of mean KL {}", work.quality.kl_mean_max),
        "memory_limit_gib": ("a memory limit of {} GiB", work.memory_limit_gib or results.device.memory_bytes / 2**30),
    }
    found = holds(results)
    for edge in results.verdict.boundaries:
        what, now = (counted | limits).get(edge.axis, (edge.axis.replace("_", " "), None))
        side = "Below" if now is not None and edge.at < now else "Beyond"
        if edge.axis in limits:
            found.append(f"{side} {what.format(f'{edge.at:.3g}')}, {edge.winner} wins.")
            continue
        factor = facts.over(edge.at, now)
        times = f" ({units.times(factor)} the declared {now:,})" if factor is not None and now is not None else ""
        found.append(f"{side} {units.count_or_digits(edge.at)} {what}{times}, {edge.winner} wins.")
    return found


BREAKS = {
    "memory": "the advice's memory is full",
    "ttft": "the advice's TTFT is over the SLO",
    "tpot": "the advice's TPOT is over the SLO",
}


def _contested(results: Results, winner: str | None) -> str:
    """Where the map, made of each candidate's own rounds, names another winner at the declared point."""
    if winner in results.verdict.tied_with:
        return f"At the declared point {winner} ties with it: no difference that counts."
    again = results.regret
    if winner and again and again.best == again.advised:
        return f"In rounds at another time {winner} was better; side by side with it, measured afresh, the advice is."
    other = f": by what was measured afterwards, {winner} is better" if winner else ""
    return f"It does not hold at the declared point{other}."


def holds(results: Results) -> list[str]:
    """How far the advice holds along concurrency and context, a sentence each; empty without a map."""
    drawn, traffic = results.decision_map, results.workload.traffic
    if drawn is None or results.verdict.choice is None:
        return []
    here = next(c for c in (*drawn.cells, None) if c is None or at_declared(c, traffic))
    if here is None or here.winner != results.verdict.choice:
        return [_contested(results, here.winner if here else None)]
    return reaches(drawn, traffic)


def reaches(drawn: DecisionMap, traffic: Traffic) -> list[str]:
    """The same of a map whose advice holds at the declared point."""
    axes = (
        ("concurrency", "requests in flight", traffic.concurrency, drawn.concurrencies),
        ("context_tokens", "tokens of context", traffic.context_length, drawn.contexts),
    )
    return [
        _held(what, declared, reach, [edge for edge in drawn.edges if edge.axis == axis]) for axis, what, declared, reach in axes
    ]


def at_declared(cell: MapCell, traffic: Traffic) -> bool:
    return (cell.context_tokens, cell.concurrency) == (traffic.context_length, traffic.concurrency)


def _held(what: str, declared: int, reach: Sequence[int], edges: Sequence[MapEdge]) -> str:
    """`Holds until 55 requests in flight (2.3× the declared 24); then nothing fits: the advice's memory is full.`"""
    above = next((edge for edge in edges if edge.at > declared), None)
    below = next((edge for edge in edges if edge.at < declared), None)
    last = above.at - 1 if above else max((*reach, declared))
    end = f"; then {_taken(above)}" if above else ", as far as was looked"
    one = what.replace("requests", "request", 1) if declared == 1 else what
    if above and last == declared:
        said = f"Holds at the declared {declared:,} {one}; from {above.at:,} on {_taken(above)}."
    else:
        said = f"Holds until {last:,} {what} ({units.times(last / declared)} the declared {declared:,}){end}."
    return said + (f" Below {below.at + 1:,} {what} {_taken(below)}." if below else "")


def _taken(edge: MapEdge) -> str:
    """Who takes over past an edge, and why."""
    why = BREAKS.get(edge.why, "")
    if edge.winner is None:
        return f"nothing fits{': ' + why if why else ''}"
    return f"{edge.winner} wins{': ' + why if why else ''}"


def regret(results: Results) -> list[tuple[str, str]]:
    """The regret of the advice as rows, empty without `--exhaustive`."""
    found = results.regret
    if found is None:
        return []
    unit = {"latency": units.duration, "throughput": units.tokens_rate, "concurrency": units.whole}[results.workload.objective]
    rows = [
        (
            "Regret",
            f"{units.percent(found.ratio, 1)} [{units.percent(found.low, 1)} to {units.percent(found.high, 1)}]",
        ),
        ("Advised", f"{found.advised}: {unit(found.advised_objective)}"),
        ("Best of all", f"{found.best}: {unit(found.best_objective)}"),
        ("Measuring share", f"{units.percent(found.measuring_share)} of the time that measuring everything takes"),
    ]
    compared = (facts.candidate(results, name) for name in (found.advised, found.best))
    rows.append(("Class", facts.worst_kind(facts.figure(one, "objective") for one in compared)))
    if found.not_measured:
        rows.append(("Not reached", ", ".join(found.not_measured)))
    return rows


def source(results: Results) -> list[str]:
    """Notes on where the weights came from, and what that does to the figures."""
    checkpoint = results.profile.source
    grid = checkpoint.already_quantized or results.environment.source_already_quantized
    notes = []
    if grid:
        notes.append(f"The source was already quantized: its weights lie on the {grid} grid.")
    if checkpoint.reparametrised:
        notes.append(f"They were taken off that grid by a function-preserving rescaling ({checkpoint.reparametrised}).")
    if results.source_quality is not None:
        found = results.source_quality
        notes.append(
            f"Round-to-nearest INT4 on the source as shipped: KL {units.nats(found.rtn_int4_kl_before)}; after the "
            f"rescaling: KL {units.nats(found.rtn_int4_kl_after)} ({found.tokens:,} tokens). The first figure flatters "
            "every 4-bit method, the second is the fair one."
        )
    if checkpoint.reparametrised:
        notes.append("A gain of AWQ or SmoothQuant here is partly this rescaling undone.")
    return notes + list(checkpoint.notes)


def memory(results: Results) -> tuple[list[tuple[str, ...]], str]:
    """The memory ledger's lines (tensor, bytes, class, source) and its error against the measured peak."""
    ledger = results.profile.memory
    lines: list[tuple[str, ...]] = []
    for item in ledger.items:
        lines.append((facts.TENSORS[item.tensor], units.size(item.bytes), item.kind, item.source))
    if not lines:
        return lines, ""
    lines.append(("together", units.size(ledger.total_bytes), "modelled", ""))
    peak = ledger.measured_peak_bytes
    if peak is None or peak <= 0:
        return lines, "The peak of the process was not measured."
    error = units.signed_percent(ledger.total_bytes / peak - 1)
    return lines, f"The process's measured peak is {units.size(peak)}: the ledger is off by {error}."


def binding(results: Results) -> list[tuple[str, list[tuple[str, str, list[str]]]]]:
    """Per diagnosis: its candidate, and per side what binds and the shares of weights, cache, activations, other."""
    found = []
    for what, diagnosis in facts.diagnoses(results):
        sides = [(side, getattr(diagnosis, side)) for side in ("capacity", "prefill", "decode")] + [("objective", diagnosis)]
        rows = [
            (side, facts.TENSORS[part.binds], [units.percent(getattr(part.shares, name)) for name in facts.PARTS])
            for side, part in sides
        ]
        found.append((f"{what}: {diagnosis.of}", rows))
    return found


def ceilings(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    """Amdahl's bounds: best factor on the objective by target, then by scheme."""
    targets = [(f"{facts.TENSORS.get(name, name)} for free", units.times(v)) for name, v in diagnosis.ceilings.items()]
    return targets + [(name, units.times(value)) for name, value in diagnosis.method_ceilings.items()]


KERNELS = ("Kernel", "Runtime", "M", "N", "K", "Time per call", "Samples", "Class", "Of the roof", "Operator")


def kernel_rows(results: Results) -> list[tuple[str, ...]]:
    """Every kernel timing or refusal, under KERNELS."""
    found: list[tuple[str, ...]] = []
    for item in results.profile.kernels:
        option = f" +{item.option}" if item.option else ""
        time, many, kind = f"not available: {item.refused or 'not timed'}", units.ABSENT, units.ABSENT
        if item.time_s:
            time, many, kind = units.spread(item.time_s, units.duration), f"{len(item.time_s.samples):,}", item.time_s.kind
        found.append(
            (
                f"{item.probe} {item.scheme.name}", item.runtime + option, f"{item.m:,}", f"{item.n:,}", f"{item.k:,}",
                time, many, kind, units.percent(item.roofline_share), item.operator or units.ABSENT,
            )
        )  # fmt: skip
    return found


def environment(results: Results) -> list[tuple[str, str]]:
    """The machine and the software, as rows."""
    device, made = results.device, results.environment
    rows = [
        ("Device", device.name),
        ("Cores, threads used", f"{device.cores}, {made.threads}"),
        ("Memory", units.size(device.memory_bytes)),
        *([("Memory of the machine", units.size(device.host_memory_bytes))] if device.host_memory_bytes else []),
        ("Last-level cache", units.size(device.last_level_cache_bytes or None)),
        ("Instruction sets", ", ".join(device.isa) or units.ABSENT),
    ]
    rows += [("GPU", f"{gpu.name}, {units.size(gpu.memory_bytes)}, driver {gpu.driver or '?'}") for gpu in device.gpus]
    rows += [("Note", note) for note in device.notes]
    peaks = device.peaks or results.profile.device.peaks
    if peaks is not None:
        read = peaks.read_bytes_per_s
        rows.append((f"Memory read, {read.kind}", units.spread(read, units.bandwidth)))
        rows += [
            (f"Peak {name}, {value.kind}", units.spread(value, units.operations))
            for name, value in sorted(peaks.flops_per_s.items())
        ]
        rows += [(f"Peak {name}", f"not available: {why}") for name, why in sorted(peaks.refused.items())]
    if (by := results.profile.calibration) is not None:
        rows.append(
            (
                "Kernels here over tables",
                f"reading {units.times(by.reading)}, arithmetic {units.times(by.arithmetic)}; {by.source}",
            )
        )
    rows.append(("Fingerprint", device.fingerprint))
    rows += [("Python", made.python)] if made.python else []
    rows += [(name, version) for name, version in sorted(made.versions.items())]
    rows += [(f"Time to {name.replace('_', ' ')}", units.duration(value)) for name, value in results.timing_s.items()]
    return [*rows, ("Written", results.created_at or units.ABSENT)]


def workload_rows(results: Results) -> list[tuple[str, str]]:
    """The declared workload and the model, as rows."""
    work, held = results.workload, results.profile.inventory
    runtimes = work.runtimes if isinstance(work.runtimes, str) else ", ".join(
        item if isinstance(item, str) else item.name for item in work.runtimes
    )  # fmt: skip
    rows = [
        ("Model", work.model),
        (
            "Architecture",
            f"{held.architecture}, {held.layers} layers, {units.digits(held.parameters / 1e6)} M parameters",
        ),
        ("Checkpoint, SHA-256", results.profile.source.sha256 or units.ABSENT),
        ("Traffic", facts.traffic_words(results.workload.traffic)),
        ("Longest context", f"{work.traffic.context_length:,} tokens"),
        ("Objective", facts.OBJECTIVES[work.objective]),
        ("Constraints", "; ".join(constraints(results)) or "none"),
        ("Baseline", results.profile.baseline),
        ("Runtimes considered", runtimes),
        (
            "Time budget",
            f"{units.duration(work.budget.advise_s)} to advise"
            + (f", {units.duration(work.budget.train_s)} to train each method that trains" if work.budget.train_s else ""),
        ),
    ]
    return rows


def column(results: Results) -> list[tuple[str, str]]:
    """One report's column in the side-by-side table."""
    chosen = facts.choice(results)
    rows = [
        ("Model", results.workload.model),
        ("Workload", facts.traffic_words(results.workload.traffic)),
        ("Objective", facts.OBJECTIVES[results.workload.objective]),
        ("Constraints", "; ".join(constraints(results)) or "none"),
        ("Device", results.device.name),
        ("Binds", facts.TENSORS[results.diagnosis.binds]),
        ("Verdict", verdict.headline(results)),
        ("Advised", results.verdict.choice or units.ABSENT),
        ("Baseline", results.profile.baseline),
    ]
    for item in verdict.key_numbers(results):
        rows.append((item.label, f"{item.value} ({item.detail}; {item.kind})" if item.detail else f"{item.value} ({item.kind})"))
    rows += [("Holds until", " ".join(holds(results)))] if results.decision_map else []
    for field in facts.TIMES:
        own = facts.figure(chosen, field)
        rows.append((facts.QUANTITIES[field], f"{units.spread(own, units.duration)} ({own.kind})" if own else units.ABSENT))
    yes = ", ".join(f"{QUESTIONS[q.id]} {'yes' if q.answer else 'no'}" for q in results.questions)
    rows.append(("Four questions", yes or units.ABSENT))
    error = facts.time_error(results)
    rows.append(("Prediction error, median", units.percent(error[0], 1) if error else units.ABSENT))
    if results.regret is not None:
        rows.append(("Regret", units.percent(results.regret.ratio, 1)))
    return rows
