"""The top of the report: one plain sentence and the numbers that matter, each with its class."""

from __future__ import annotations

from dataclasses import dataclass, replace

from quantadvisor.documents import Candidate, NumberClass, Results, Speedup

from . import facts, units

CAPACITY_ONLY = 1.05
"""Below this speed-up the gain is capacity, not speed (contract)."""


@dataclass(frozen=True)
class KeyNumber:
    """One number on top: `value` in human units, its class, and the line that explains it."""

    label: str
    value: str
    detail: str
    kind: NumberClass
    main: bool = False
    """One of the three that a planner asks for first: speed, users, memory."""


def headline(results: Results) -> str:
    """The verdict in one sentence."""
    verdict, chosen = results.verdict, facts.choice(results)
    if verdict.choice is None:
        return "Nothing meets the constraints of this workload."
    if not verdict.change:
        return f"Change nothing: {verdict.choice} serves this workload best."
    if chosen is None:
        return f"Serve {verdict.choice}."
    gain = gain_words(results, chosen)
    return f"{action_words(chosen)}{': ' + gain if gain else ''}."


def reason(results: Results) -> str:
    """The run's own reason, without the words that the headline has said already."""
    said, first = results.verdict.reason.strip(), "Nothing meets the constraints."
    return said.removeprefix(first).strip() if results.verdict.choice is None else said


def action_words(chosen: Candidate) -> str:
    """What to do, in a clause."""
    runtime = facts.runtime_words(chosen.runtime)
    options = f" ({', '.join(chosen.options)})" if chosen.options else ""
    if chosen.url:
        return f"Use the server at {chosen.url}, on {runtime}{options}"
    if chosen.checkpoint:
        return f"Serve the checkpoint {chosen.checkpoint} as it is on {runtime}{options}"
    if facts.unquantized(chosen.scheme):
        return f"Keep the weights as they are ({chosen.scheme.compute}) and serve them on {runtime}{options}"
    what = facts.scheme_words(chosen.scheme)
    return f"Quantize to {what} ({facts.method_words(chosen.method)}) and serve on {runtime}{options}"


def gain_words(results: Results, chosen: Candidate) -> str:
    """What it brings on the objective, in a clause; empty where it was not measured."""
    before, now = facts.baseline(results), chosen
    if results.workload.objective == "concurrency":
        return _capacity_gain(results, now)
    if results.workload.objective == "throughput":
        old, new = facts.measured(before, "objective"), facts.measured(now, "objective")
        ratio = facts.over(new, old)
        return (
            ""
            if ratio is None
            else (f"{units.tokens_rate(new)} instead of {units.tokens_rate(old)}, {units.times(ratio)} the output")
        )
    old, new = facts.request_s(results, before), facts.request_s(results, now)
    ratio = results.verdict.speedup.total if results.verdict.speedup else facts.over(old, new)
    if ratio is None or old is None or new is None:
        guess = facts.predicted_request_s(results, now)
        return "" if guess is None else f"a request is predicted to take {units.duration(guess)}"
    return f"a request takes {units.duration(new)} instead of {units.duration(old)}, {speed_words(ratio)}"


def _capacity_gain(results: Results, chosen: Candidate) -> str:
    capacity, decode = results.verdict.capacity, results.verdict.decode_speedup
    fit = capacity.max_concurrency if capacity else facts.users(chosen)
    if fit is None:
        return ""
    old = facts.users(facts.baseline(results))
    instead = f" instead of {units.whole(old)}" if old is not None else ""
    text = f"{units.whole(fit)} requests fit{instead}"
    if decode is None:
        return text
    if decode.total < CAPACITY_ONLY:
        return f"{text}, which is capacity, not speed (a step is {units.times(decode.total)} as fast)"
    return f"{text}, and a decode step is {units.times(decode.total)} as fast"


def speed_words(ratio: float) -> str:
    """`3.84× as fast`, or `no faster` around 1."""
    if 0.995 <= ratio < 1.005:
        return "no faster"
    return f"{units.times(ratio)} as fast"


def key_numbers(results: Results) -> list[KeyNumber]:
    """Speed, users and memory (users first where they are the objective), then decode and quality; absent ones left out."""
    main = [_objective(results), _users(results), _peak(results)]
    if results.workload.objective == "concurrency":
        main[0], main[1] = main[1], main[0]
    found = [replace(item, main=True) for item in main if item is not None]
    return found + [item for item in (_decode(results), _quality(results)) if item is not None]


def split_words(speedup: Speedup) -> str:
    """The share of the runtime and of the method: `runtime 2.10× · method 1.83×`."""
    return f"runtime {units.times(speedup.runtime)} · method {units.times(speedup.method)}"


def _objective(results: Results) -> KeyNumber | None:
    chosen, speedup = facts.choice(results), results.verdict.speedup
    old, new = facts.request_s(results, facts.baseline(results)), facts.request_s(results, chosen)
    rate = results.workload.objective == "throughput"
    name = "Output tokens per second" if rate else "Request speed"
    if rate:
        before, now = facts.measured(facts.baseline(results), "objective"), facts.measured(chosen, "objective")
        change = f"{units.tokens_rate(before)} → {units.tokens_rate(now)}"
    else:
        change = f"{units.duration(old)} → {units.duration(new)} per request" if old and new else "as modelled"
    kind = facts.chain_kind(results, ("objective",) if rate else facts.TIMES)
    if speedup is not None and results.verdict.change:
        return KeyNumber(name, units.times(speedup.total), f"{change}; {split_words(speedup)}", kind)
    if new is None:
        guess = facts.predicted_request_s(results, chosen)
        return None if guess is None else KeyNumber("Request latency", units.duration(guess), "predicted", "modelled")
    own = facts.worst_kind(facts.figure(chosen, field) for field in facts.TIMES)
    return KeyNumber("Request latency", units.duration(new), _today(results), own)


def _decode(results: Results) -> KeyNumber | None:
    chosen, speedup = facts.choice(results), results.verdict.decode_speedup
    old, new = facts.figure(facts.baseline(results), "tpot_s"), facts.figure(chosen, "tpot_s")
    if speedup is not None and results.verdict.change:
        change = "as modelled"
        if old is not None and new is not None:
            change = f"{units.duration(old.median)} → {units.duration(new.median)} per token"
        kind = facts.chain_kind(results, ("tpot_s",))
        return KeyNumber("Decode speed", units.times(speedup.total), f"{change}; {split_words(speedup)}", kind)
    if new is None:
        guess = facts.predicted(chosen, "tpot_s")
        return None if guess is None else KeyNumber("Time per token", units.duration(guess), "predicted", "modelled")
    return KeyNumber("Time per token", units.duration(new.median), _today(results), new.kind)


def _today(results: Results) -> str:
    return "" if results.verdict.change else "as today"


ENDS = {"memory": "memory is full", "ttft": "TTFT reaches its limit", "tpot": "TPOT reaches its limit"}
"""What ends the users, in words."""


def _users(results: Results) -> KeyNumber | None:
    capacity, chosen = results.verdict.capacity, facts.choice(results)
    known = facts.on_map(results, chosen.name if chosen else None)
    if capacity is not None:
        detail = f"{units.times(capacity.over_baseline)} the baseline"
        if capacity.over_best_unquantized_cache is not None:
            detail += f"; {units.times(capacity.over_best_unquantized_cache)} the fastest without a quantized cache"
        return KeyNumber("Users at once", units.whole(capacity.max_concurrency), detail, capacity.kind)
    if known is None:
        fit = facts.users(chosen)
        return None if fit is None else KeyNumber("Users at once", units.whole(fit), "", facts.users_kind(chosen))
    bound = f"until {ENDS[known.limited_by]}{'' if results.workload.slo else ', no SLO declared'}"
    waits = f"; a request's first token then takes {units.duration(known.ttft_s)}" if known.ttft_s is not None else ""
    return KeyNumber("Users at once", units.whole(known.users), bound + waits, known.users_kind)


def _peak(results: Results) -> KeyNumber | None:
    peak = facts.figure(facts.choice(results), "peak_bytes")
    if peak is None:
        return None
    limit, whence = facts.memory_limit(results)
    before = facts.measured(facts.baseline(results), "peak_bytes")
    today = f"{units.size(before)} → {units.size(peak.median)}; " if before and results.verdict.change else ""
    why = "" if results.workload.memory_limit_gib is not None else f" ({whence})"
    return KeyNumber("Peak memory", units.size(peak.median), f"{today}limit {units.size(limit)}{why}", peak.kind)


def _quality(results: Results) -> KeyNumber | None:
    chosen = facts.choice(results)
    if chosen is None or chosen.quality is None:
        return None
    quality, budget = chosen.quality, results.workload.quality.kl_mean_max
    limit = f"budget {units.nats(budget)}; " if budget is not None else ""
    top1 = f"top-1 agreement {units.percent(quality.top1.mean, 1)}"
    return KeyNumber("KL divergence", units.nats(quality.kl.mean), f"{limit}{top1}", "measured")


def effects(results: Results) -> list[tuple[str, str, NumberClass]]:
    """Speed and capacity, stated apart: (word, sentence, class)."""
    verdict = results.verdict
    if verdict.choice is None or not verdict.change:
        return []
    found: list[tuple[str, str, NumberClass]] = []
    if verdict.speedup is not None:
        decode = f", a decode step {units.times(verdict.decode_speedup.total)}" if verdict.decode_speedup else ""
        total = verdict.speedup.total
        word = "hardly faster" if 1 <= total < CAPACITY_ONLY else f"{units.times(total)} as fast"
        sentence = f"A request is {word}{decode}. {share_sentence(verdict.speedup)}"
        found.append(("Speed", sentence, facts.chain_kind(results, facts.TIMES)))
    if verdict.capacity is not None:
        ratio, fit = verdict.capacity.over_baseline, units.whole(verdict.capacity.max_concurrency)
        gain = "as many as" if 0.995 <= ratio < 1.005 else f"{units.times(ratio)} as many as"
        found.append(("Capacity", f"{fit} requests fit in memory at once, {gain} on the baseline.", verdict.capacity.kind))
    return found


def share_sentence(speedup: Speedup) -> str:
    """Who earned the speed-up: the runtime or the method."""
    runtime, method = units.times(speedup.runtime), units.times(speedup.method)
    if speedup.total < 1:
        return f"The runtime alone gives {runtime}, what is quantized {method} of that: it buys capacity, not speed."
    if speedup.method < CAPACITY_ONLY:
        return f"All of it comes from the runtime ({runtime}); quantization adds {method}."
    if speedup.runtime < CAPACITY_ONLY:
        return f"All of it comes from quantization ({method}); the runtime alone gives {runtime}."
    more = "more" if speedup.runtime > speedup.method else "less"
    return f"The runtime alone gives {runtime} without any quantization, {more} than the method's {method} on top."
