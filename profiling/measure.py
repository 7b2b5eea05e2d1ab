"""How a candidate is measured under the declared workload: rounds of real requests, interleaved between candidates.

One round is one static batch of `concurrency` requests that all arrive at t = 0: TTFT is the time until each has its
first token (it includes the others' prefill), ITL the gaps after it, TPOT their sum over output_tokens − 1.

Where the batch's prompts exceed PREFILL_TOKENS_MEASURED, one row is prefilled for real, its cache is copied into every
row (recorded keys and values), decode is timed, and TTFT is that row's time times the rows: *modelled*, after a check
that two rows take twice the time of one. So is a request's energy: that row's prefill, and tokens of the timed steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from quantadvisor.documents import CandidateFailed, Document, Figure, Finite, GpuState, Measured, Traffic, Workload
from quantadvisor.kernels.timing import figure

from .gpu_state import state_of
from .memory import PROCESS
from .nvml import Summary
from .rapl import counters, joules_between
from .served import Served
from .workers import RunningWorker, Spent, Steady

PREFILL_TOKENS_MEASURED = 16_384
CPU_ENERGY = "RAPL, all CPU packages"
LEAST_BOARD_S = 1.0
"""Ten times the 100 ms between two readings of an A100's or H100's power (arXiv:2312.02741): they do not tell the energy of
less."""
UNTOLD = f"its energy is not told: what is shorter than {LEAST_BOARD_S:.0f} s is lost between the readings of NVML"
RECORDED_STEPS = 6
LONGER = 1.05
"""A recorded cache is as long as in the middle of a request's decode where that is so much longer than its prompt: it costs a
second prefill."""
ENOUGH_ROUNDS = 3
MOST_TRIES = 6
CLEARLY = {2: 1.0, 3: 0.1}
"""After that many rounds, a candidate whose best round is worse than the leader's worst by more than this has lost."""


class Round(Document):
    """Raw times of one round; `block` is the worker (process) it ran in."""

    ttft_s: Finite
    itl_s: tuple[Finite, ...]
    peak_bytes: int
    block: int = 0
    recorded: bool = False
    served: bool = False
    request_j: Finite | None = None
    """Energy per request, joules; None where it cannot be read, or is not of a whole request here."""
    token_j: Finite | None = None
    """Of `request_j` per output token; where caches are recorded, of decode steps alone per token, measured."""
    energy_from: str = CPU_ENERGY
    memory_from: str = PROCESS
    gpu: Summary | None = None
    """What the GPU did during the round; None on a CPU."""

    @property
    def tpot_s(self) -> float:
        """TPOT = (latency − TTFT) / (output_tokens − 1), seconds."""
        return sum(self.itl_s) / len(self.itl_s) if self.itl_s else 0.0


def recorded(traffic: Traffic) -> bool:
    """Are the caches filled with recorded keys and values instead of a prefill of every row?"""
    return traffic.prompt_length * traffic.concurrency > PREFILL_TOKENS_MEASURED


def recorded_length(traffic: Traffic) -> int:
    """Tokens that a recorded row holds before its first step: TPOT is the mean over a request's decode, whose cache grows."""
    prompt, steps = traffic.prompt_length, min(RECORDED_STEPS, traffic.output_length)
    middle = prompt + (traffic.output_length - steps) // 2
    return middle if middle > LONGER * prompt else prompt


def prompt_batch(stream: np.ndarray, traffic: Traffic) -> np.ndarray:
    """int64 [concurrency, prompt] of real text: each row starts elsewhere in `stream`, int64 [tokens]."""
    length, rows = traffic.prompt_length, traffic.concurrency
    repeated = np.resize(stream, max(len(stream), length + rows))
    starts = np.linspace(0, len(repeated) - length, rows).astype(int)
    return np.stack([repeated[start : start + length] for start in starts])


def run_round(
    worker: RunningWorker | Served, prompts: np.ndarray, traffic: Traffic, output_tokens: int | None = None, block: int = 0
) -> Round:
    """One round of the workload; fewer `output_tokens` than declared give the same TTFT and a shorter decode."""
    if recorded(traffic) and not isinstance(worker, Served):
        steady = worker.steady(prompts, traffic.concurrency, min(RECORDED_STEPS, traffic.output_length), recorded_length(traffic))
        if not steady.rows_equal:
            raise CandidateFailed("rows with the same recorded cache decode to different tokens")
        ttft_s = steady.prefill_row_s * traffic.concurrency
        request_j, token_j = recorded_energy(steady, traffic)
        return Round(
            ttft_s=ttft_s, itl_s=tuple(steady.itl_s[1:]), peak_bytes=steady.peak_bytes, block=block, recorded=True,
            request_j=request_j, token_j=token_j, energy_from=energy(steady.decode.cpu_j, steady.decode.gpu)[1],
            memory_from=steady.memory_from, gpu=steady.gpu,
        )  # fmt: skip
    tokens = output_tokens or traffic.output_length
    before = counters()
    made = worker.generate(prompts, tokens)
    spent, energy_from = energy(joules_between(before, counters()), made.gpu)
    served = isinstance(worker, Served)
    requests = worker.requests(len(prompts)) if isinstance(worker, Served) else len(prompts)
    whole = tokens == traffic.output_length and not (isinstance(worker, Served) and worker.own is None)
    request_j = spent / requests if spent is not None and whole else None
    return Round(
        ttft_s=made.ttft_s, itl_s=tuple(made.itl_s), peak_bytes=made.peak_bytes, block=block, served=served,
        request_j=request_j, token_j=None if request_j is None else request_j / tokens,
        energy_from=energy_from, memory_from=made.memory_from, gpu=made.gpu,
    )  # fmt: skip


def recorded_energy(steady: Steady, traffic: Traffic) -> tuple[float | None, float | None]:
    """Joules of a request and of a token in decode. A request: the prefill of its row, and the tokens after the first."""
    row_j, decode_j = told_energy(steady.prefill_row), told_energy(steady.decode)
    tokens = traffic.concurrency * (len(steady.itl_s) - 1)
    if decode_j is None or not tokens:
        return None, None
    token_j = decode_j / tokens
    return (None if row_j is None else row_j + (traffic.output_length - 1) * token_j), token_j


def told_energy(part: Spent) -> float | None:
    """Joules; None where the GPU's are lost between two readings."""
    return None if part.gpu and part.gpu.seconds < LEAST_BOARD_S else energy(part.cpu_j, part.gpu)[0]


def energy(cpu_j: float | None, gpu: Summary | None) -> tuple[float | None, str]:
    """Joules of what could be read, of the CPUs and of the GPU's board, and where they come from."""
    board = f"NVML, the GPU's board ({gpu.energy_from})" if gpu else ""
    known = {CPU_ENERGY: cpu_j, **({board: gpu.energy_j} if gpu else {})}
    told = {source: joules for source, joules in known.items() if joules is not None}
    return (sum(told.values()), " + ".join(told)) if told else (None, CPU_ENERGY)


def clocks(state: GpuState | None) -> str:
    """The GPU's SM clock over all rounds, what held it back, and whether it is cut up; empty on a CPU."""
    if state is None:
        return ""
    clock = f"SM clock {state.sm_mhz[0]} to {state.sm_mhz[2]} MHz" if state.sm_mhz else ""
    held = f"throttled: {', '.join(state.throttling)}" if state.throttling else ""
    return "; ".join(filter(None, [clock, held, "the GPU is cut into instances (MIG)" if state.mig else ""]))


def interleave(
    workers: Mapping[str, RunningWorker | Served],
    prompts: np.ndarray,
    traffic: Traffic,
    rounds: int,
    *,
    output_tokens: int | None = None,
    block: int = 0,
    deadline: float | None = None,
    least: int = 2,
    warm_up: bool = True,
    enough: Callable[[Mapping[str, Sequence[Round]]], set[str]] = lambda _: set(),
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, list[Round]], dict[str, str]]:
    """`rounds` rounds of each candidate, A B C, C B A, …; and the reason of each that failed.

    A short warm-up goes before, unless it was had before (not `warm_up`); where caches are recorded it is of one row, and the
    first step is left out of each round.
    `enough` names, before each turn, the candidates that need no more rounds. Stops at `deadline` (time.monotonic) once
    every candidate has had `least`.
    """
    done: dict[str, list[Round]] = {name: [] for name in workers}
    failed: dict[str, str] = {}
    for index in range(-1 if warm_up else 0, rounds):
        if deadline is not None and index >= least and time.monotonic() > deadline:
            break
        order = list(workers) if index % 2 else list(workers)[::-1]
        out = set(failed) | enough(done)
        for name in (name for name in order if name not in out):
            progress(f"{name}: " + ("warm-up" if index < 0 else f"round {index + 1} of {rounds}"))
            try:
                if index < 0:
                    warmed(workers[name], prompts, traffic)
                else:
                    done[name].append(run_round(workers[name], prompts, traffic, output_tokens, block))
            except CandidateFailed as error:
                failed[name] = str(error)
    return {name: rows for name, rows in done.items() if name not in failed}, failed


def warmed(worker: RunningWorker | Served, prompts: np.ndarray, traffic: Traffic) -> None:
    """What is slow the first time is done once: a few tokens of all rows, or of the one row that is prefilled for all."""
    few = min(4, traffic.output_length)
    if recorded(traffic) and not isinstance(worker, Served):
        worker.generate(prompts[:1], few)
    else:
        run_round(worker, prompts, traffic, few)


def request_s(traffic: Traffic, ttft_s: float, tpot_s: float) -> float:
    """Latency of a request: TTFT + (output_tokens − 1) · TPOT, seconds."""
    return ttft_s + (traffic.output_length - 1) * tpot_s


def clear_losers(
    rounds: Mapping[str, Sequence[Round]],
    objective: Literal["latency", "throughput", "concurrency"],
    traffic: Traffic,
    to_beat: Sequence[Round] = (),
) -> set[str]:
    """Candidates whose best round is CLEARLY worse than the leader's worst.

    `to_beat` are rounds of a leader measured earlier. Where users count, rounds decide nothing, and ENOUGH_ROUNDS are
    enough for all.
    """
    if objective == "concurrency":
        return {name for name, rows in rounds.items() if len(rows) >= ENOUGH_ROUNDS}
    ready = {name: rows for name, rows in rounds.items() if len(rows) >= min(CLEARLY)}
    if not ready:
        return set()

    def cost(rows: Sequence[Round]) -> list[float]:
        return [request_s(traffic, r.ttft_s, r.tpot_s) for r in rows]

    costs = {name: cost(rows) for name, rows in ready.items()}
    leader = min([*costs.values(), *([cost(to_beat)] if to_beat else [])], key=lambda values: float(np.median(values)))
    margins = {name: min(margin for n, margin in CLEARLY.items() if n <= len(values)) for name, values in costs.items()}
    return {name for name, values in costs.items() if min(values) > max(leader) * (1 + margins[name])}


def objective_value(
    objective: Literal["latency", "throughput", "concurrency"],
    traffic: Traffic,
    ttft_s: float,
    tpot_s: float,
    max_concurrency: float | None = None,
) -> float | None:
    """latency: seconds, minimised. throughput: output tokens/s, maximised. concurrency: requests in flight, maximised."""
    latency_s = request_s(traffic, ttft_s, tpot_s)
    if objective == "latency":
        return latency_s
    if objective == "throughput":
        return traffic.concurrency * traffic.output_length / latency_s
    return max_concurrency


def measured_from_rounds(
    rounds: Sequence[Round], workload: Workload, load_s: Sequence[float], max_concurrency: Figure | None = None
) -> Measured:
    """Medians and intervals of the rounds; TTFT is *modelled* where the caches were recorded."""
    kind: Literal["measured", "modelled"] = "modelled" if rounds[0].recorded else "measured"
    source = "one row's prefill x rows" if rounds[0].recorded else "static batch, all rows at t = 0"
    peak_source = rounds[0].memory_from
    if rounds[0].served:
        source, peak_source = "mean of a closed loop's requests (vllm bench serve)", "the server's processes, imports too"
    loading = "until the server answers" if rounds[0].served else "open_session"
    peak = peak_of(rounds)
    values = [objective_value(workload.objective, workload.traffic, r.ttft_s, r.tpot_s, None) for r in rounds]
    numbers = [value for value in values if value is not None]
    objective = of_rounds(rounds, numbers, kind, workload.objective) if numbers else max_concurrency
    joules = [r.request_j for r in rounds if r.request_j is not None]
    tokens_j = [r.token_j for r in rounds if r.token_j is not None]
    energy_from = rounds[0].energy_from
    row_j, step_j = (", one row's prefill and its tokens", ", decode steps alone") if rounds[0].recorded else ("", "")
    state = state_of([r.gpu for r in rounds])
    gaps = "; ".join(filter(None, ["mean gap per round", clocks(state)]))
    return Measured(
        ttft_s=of_rounds(rounds, [r.ttft_s for r in rounds], kind, source),
        tpot_s=of_rounds(rounds, [r.tpot_s for r in rounds], "measured", gaps),
        peak_bytes=figure([float(peak)], "measured", peak_source) if peak else None,
        max_concurrency=max_concurrency,
        load_s=figure(list(load_s), "measured", loading) if load_s else None,
        request_j=figure(joules, kind, energy_from + row_j) if joules else None,
        token_j=figure(tokens_j, "measured", energy_from + step_j) if tokens_j else None,
        gpu=state,
        objective=objective,
    )


def of_rounds(rounds: Sequence[Round], samples: Sequence[float], kind: Literal["measured", "modelled"], source: str) -> Figure:
    """One sample of each round, with the round's block where there were several."""
    blocks = tuple(r.block for r in rounds)
    return figure(samples, kind, source).model_copy(update={"blocks": blocks if len(set(blocks)) > 1 else ()})


def peak_of(rounds: Sequence[Round]) -> int:
    """Peak memory, bytes. Of the first round where caches are recorded: to fill them again beside the old ones is
    our doing, not the workload's."""
    return rounds[0].peak_bytes if rounds[0].recorded else max(r.peak_bytes for r in rounds)


def linear_check(worker: RunningWorker, prompts: np.ndarray, row_s: float) -> float:
    """Time of a two-row prefill over twice that of one row (`row_s`): 1.0 where the runtime scales linearly."""
    return worker.generate(np.repeat(prompts[:1], 2, 0), 1).ttft_s / (2 * row_s)


def largest_batch(
    run: Callable[[int], Steady], limit_bytes: int, tpot_limit_s: float | None, first_guess: int, known: Mapping[int, int],
    slow: Mapping[int, float] | None = None,
) -> tuple[Figure, list[str]]:  # fmt: skip
    """The most rows at the declared context whose peak stays under `limit_bytes` (and TPOT under its limit).

    `run` decodes that many rows in a process that has not held more before; `known` are peaks by rows that were already
    measured, `slow` TPOT by rows, seconds, that was over its limit. *Measured* only if that batch ran inside the limits and one
    at most 10 % larger did not; else *modelled*.
    """
    notes: list[str] = []
    peaks, times = dict(known), dict(slow or {})
    best = max((rows for rows, peak in peaks.items() if peak <= limit_bytes and rows not in times), default=0)
    worst = min((*times, *(rows for rows, peak in peaks.items() if peak > limit_bytes)), default=None)
    guess = max(1, first_guess)

    def settled() -> bool:
        return worst is not None and best > 0 and worst <= max(best + 1, int(best * 1.1))

    def another() -> int:
        """Where time ended it, the rows whose share of that time the limit is; where it broke and told nothing, the middle."""
        if worst is not None and worst not in times and worst not in peaks:
            return max(1, (best + worst) // 2)
        if worst is None or worst not in times or tpot_limit_s is None:
            return next_guess(best, worst, peaks, limit_bytes)
        return between(int(worst * tpot_limit_s / times[worst]), best, worst)

    for _ in range(MOST_TRIES):
        if guess == best or (worst is not None and guess >= worst):
            guess = another()
        try:
            seen = run(guess)
        except CandidateFailed as error:
            notes.append(f"{guess} rows: {error}")
            worst = guess if worst is None else min(worst, guess)
            if worst == 1 or settled():
                break
            guess = another()
            continue
        peaks[guess] = seen.peak_bytes
        if tpot_limit_s is not None and min(seen.itl_s) > tpot_limit_s:
            times[guess] = min(seen.itl_s)
        if seen.peak_bytes <= limit_bytes and guess not in times:
            best = max(best, guess)
        else:
            worst = guess if worst is None else min(worst, guess)
        if worst == 1 or settled():
            break
        guess = another()
    source = "ran inside the limits, one step above did not" if settled() else "largest that was tried inside the limits"
    return figure([float(best)], "measured" if settled() else "modelled", source), notes


def next_guess(best: int, worst: int | None, peaks: Mapping[int, int], limit_bytes: int) -> int:
    """Rows to try next: on the line through the two nearest peaks, between what fits and what does not."""
    if len(peaks) >= 2:
        (b0, p0), (b1, p1) = sorted(peaks.items(), key=lambda item: abs(item[1] - limit_bytes))[:2]
        slope = (p1 - p0) / (b1 - b0) if b1 != b0 and p1 != p0 else 0.0
        aim = int(b0 + (limit_bytes - p0) / slope) if slope > 0 else 2 * max(peaks)
    else:
        (b0, p0) = next(iter(peaks.items()))
        aim = max(1, int(b0 * 0.6)) if p0 > limit_bytes else max(b0 + 1, int(b0 * 1.5))
    return between(aim, best, worst)


def between(aim: int, best: int, worst: int | None) -> int:
    """The rows aimed at, or a step above what fits, or below what does not."""
    if best and aim <= best:
        aim = best + max(1, int(best * 0.1))
    if worst is not None and aim >= worst:
        aim = max(best + 1, min(worst - 1, worst - max(1, int((worst - best) * 0.1))))
    return max(1, aim)
