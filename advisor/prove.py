"""Applied artifacts and their proof: built, run under the workload interleaved with the baseline, scored."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

from quantadvisor.documents import (
    Candidate,
    CandidateFailed,
    Document,
    Figure,
    Operators,
    PhaseTime,
    Quality,
    TaskScore,
    Traffic,
    Workload,
    write_text,
)
from quantadvisor.kernels.timing import figure
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.measure import (
    UNTOLD,
    Round,
    clear_losers,
    interleave,
    largest_batch,
    linear_check,
    measured_from_rounds,
    peak_of,
    recorded,
    request_s,
)
from quantadvisor.profiling.quality import CHUNK, passkey_found, quality_of, straddles
from quantadvisor.profiling.served import Served
from quantadvisor.profiling.workers import RunningWorker, Steady

from .builds import Built
from .context import EVALUATION_TOKENS, MOST_EVALUATION_TOKENS, Context
from .decide import TIE, better, breach_of_limits, limit_bytes, maximised, objective_of, ranked
from .predict import users_within
from .room import in_parts
from .serve import continued
from .servers import IN_A_WORKER, evidence_of, own_server, serves_here, session_with
from .survey import BaselineRun, look_at_operators, make_reference, reference_finds

ROUNDS = 5
BLOCKS = 5
"""Processes that the choice is measured in."""
TRIES = 2
"""For each of them: one that fails is started once more."""
SEARCH_STEPS = 2
"""Decode steps of each try in the search for users, of which the first warms up."""


class Trial(Document):
    """What one applied candidate did: raw rounds and the evidence."""

    name: str
    failed: str | None = None
    rounds: tuple[Round, ...] = ()
    load_s: tuple[float, ...] = ()
    users: Figure | None = None
    quality: Quality | None = None
    operators: Operators | None = None
    prefill_operators: Operators | None = None
    phases: tuple[PhaseTime, ...] = ()
    built: Built | None = None
    said: str = ""
    """Its greedy continuation of serve.PROMPT, in the worker that was measured."""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    """Measuring time of this candidate: build, load, rounds, search, scoring."""


class Trials(Document):
    trials: tuple[Trial, ...]


def run_trials(
    context: Context,
    chosen: Sequence[Candidate],
    baseline: BaselineRun,
    rounds: int = ROUNDS,
    deadline_s: float | None = None,
    to_beat: Sequence[Round] = (),
) -> Trials:
    """Build the artifacts, then measure them interleaved (as many as the device holds), search their largest batch, score them.

    `to_beat`: rounds of the choice, where it is not measured again among these.
    """
    builds = {c.name: context.build_of(c) for c in chosen if not c.url}
    made = context.build_all(list(builds.values()))
    done = {name: made[build.out] for name, build in builds.items()}
    end = time.monotonic() + deadline_s if deadline_s else None
    trials: list[Trial] = []
    parts = in_parts(context, chosen)
    for place, part in enumerate(parts):
        now = time.monotonic()
        share = None if end is None else now + max(0.0, end - now) / (len(parts) - place)
        trials += measured_together(context, part, done, baseline, rounds, share, to_beat)
        to_beat = fastest([to_beat, *(trial.rounds for trial in trials)], context.workload.traffic)
    open_ = undecided([with_trial(c, t, context) for c, t in zip(chosen, trials, strict=True)], context.workload)
    return Trials(trials=tuple(t if t.name not in open_ else on_more_tokens(context, open_[t.name], t) for t in trials))


def measured_together(
    context: Context,
    chosen: Sequence[Candidate],
    done: Mapping[str, Built],
    baseline: BaselineRun,
    rounds: int,
    deadline: float | None,
    to_beat: Sequence[Round],
) -> list[Trial]:
    """Trials of candidates that are loaded side by side."""
    failed = {c.name: reason for c in chosen if c.name in done and (reason := done[c.name].failed)}
    started = time.monotonic()
    with ExitStack() as stack:
        context.progress.say("loading the artifacts")
        starting = {c.name: session_of(context, c) for c in chosen if c.name not in failed}
        workers, broke = start_workers(starting, stack)
        failed |= broke
        traffic, objective = context.workload.traffic, context.workload.objective
        rows, broke = interleave(
            workers,
            context.prompts,
            traffic,
            rounds,
            deadline=deadline,
            enough=lambda rows: clear_losers(rows, objective, traffic, to_beat),
            progress=context.progress.say,
        )
        failed |= broke
        shared_s = (time.monotonic() - started) / max(1, len(workers))
        trials = []
        for candidate in chosen:
            built = done.get(candidate.name)
            if candidate.name in failed:
                seconds = built.seconds if built else 0.0
                trials.append(Trial(name=candidate.name, failed=failed[candidate.name], seconds=seconds))
                continue
            worker = workers[candidate.name]
            trials.append(evidence(context, candidate, worker, rows[candidate.name], built, shared_s, baseline))
            worker.close()
    return trials


def fastest(measured: Sequence[Sequence[Round]], traffic: Traffic) -> Sequence[Round]:
    """The rounds of the lowest median request latency; none where nobody has any."""
    there = [rounds for rounds in measured if rounds]
    return min(there, key=lambda rows: np.median([request_s(traffic, r.ttft_s, r.tpot_s) for r in rows]), default=())


def undecided(candidates: Sequence[Candidate], workload: Workload) -> dict[str, Candidate]:
    """Those inside SLO and memory whose quality's interval lies on both sides of the budget, and who are clearly better than
    everyone for whom it does not: more tokens decide whether they win."""
    measured = [c for c in candidates if c.excluded is None and objective_of(c) and c.quality and not c.url]
    measured = [c for c in measured if c.measured and breach_of_limits(c.measured, workload) is None]
    unsure = {c.name: c for c in measured if c.quality and straddles(c.quality, workload)}
    sure = ranked([c for c in measured if c.name not in unsure], workload)
    if not sure:
        return unsure
    best = objective_of(sure[0])
    assert best
    wins = best.median * TIE if maximised(workload) else best.median / TIE
    return {name: c for name, c in unsure.items() if (mine := objective_of(c)) and better(mine.median, wins, workload)}


def on_more_tokens(context: Context, candidate: Candidate, trial: Trial) -> Trial:
    """The trial with a quality from as many tokens as it takes, up to MOST_EVALUATION_TOKENS."""
    started = time.monotonic()
    context.progress.say(f"{candidate.name}: quality on more tokens")
    try:
        with context.worker_of(candidate) as worker:
            quality = quality_of_candidate(context, candidate, worker, MOST_EVALUATION_TOKENS)
    except CandidateFailed as error:
        return trial.model_copy(update={"notes": (*trial.notes, f"quality on more tokens could not be scored: {error}")})
    return trial.model_copy(update={"quality": quality, "seconds": trial.seconds + time.monotonic() - started})


def run_blocks(context: Context, candidate: Candidate, trial: Trial) -> Trial:
    """The trial with one more round from each of BLOCKS - 1 fresh processes: the luck of a process (where its memory came
    to lie) is the same in all of its rounds, so a stored result that is compared later needs several."""
    rounds, loads, notes = list(trial.rounds), list(trial.load_s), list(trial.notes)
    for block in (block for block in range(1, BLOCKS) for _ in range(TRIES)):
        if any(one.block == block for one in rounds):
            continue
        context.progress.say(f"{candidate.name}: process {block + 1} of {BLOCKS}")
        with ExitStack() as stack:
            workers, failed = start_workers({candidate.name: session_of(context, candidate)}, stack)
            done, broke = interleave(workers, context.prompts, context.workload.traffic, 1, block=block)
            rounds += done.get(candidate.name, [])
            loads += [worker.loaded.load_s for worker in workers.values()]
            notes += [f"process {block + 1} of {BLOCKS} failed: {reason}" for reason in (failed | broke).values()]
    return trial.model_copy(update={"rounds": tuple(rounds), "load_s": tuple(loads), "notes": tuple(notes)})


Session = RunningWorker | Served
AnySession = TypeVar("AnySession", RunningWorker, Session)


def session_of(context: Context, candidate: Candidate) -> Session:
    """Where a candidate's rounds run: its worker, or a server."""
    if candidate.url:
        return session_with(context, candidate)
    return own_server(context, candidate) if serves_here(context.workload, candidate) else context.worker_of(candidate)


@contextmanager
def reading(context: Context, candidate: Candidate, session: Session) -> Iterator[RunningWorker]:
    """Where quality and operators are looked at: the worker that was timed, or one that takes the place of our server."""
    if isinstance(session, Served):
        session.close()
        with context.worker_of(candidate) as worker:
            yield worker
    else:
        yield session


def start_workers(starting: Mapping[str, AnySession], stack: ExitStack) -> tuple[dict[str, AnySession], dict[str, str]]:
    """Loaded workers, and the reason of each that failed. Imports run side by side, loads one at a time."""
    workers: dict[str, AnySession] = {}
    failed: dict[str, str] = {}
    for worker in starting.values():
        stack.callback(worker.close)
    for name, worker in starting.items():
        try:
            worker.ready()
        except CandidateFailed as error:
            failed[name] = str(error)
    for name, worker in starting.items():
        if name not in failed:
            try:
                worker.__enter__()  # `close` is in the stack already
                workers[name] = worker
            except CandidateFailed as error:
                failed[name] = str(error)
    return workers, failed


def evidence(
    context: Context,
    candidate: Candidate,
    session: Session,
    rounds: Sequence[Round],
    built: Built | None,
    shared_s: float,
    baseline: BaselineRun,
) -> Trial:
    """Largest batch, quality and operators of a candidate whose rounds are done; the baseline's operators are known."""
    started = time.monotonic()
    notes: list[str] = list(built.notes) if built else []
    spent = shared_s + (built.seconds if built else 0.0)
    say = context.progress.say
    try:
        if isinstance(session, Served) and candidate.url:
            found, seen, remarks = evidence_of(context, candidate, session)
            done = {"rounds": tuple(rounds), "users": found, "quality": seen, "notes": tuple(remarks)}
            return Trial(name=candidate.name, seconds=spent + time.monotonic() - started, **done)
        with reading(context, candidate, session) as worker:
            if isinstance(session, Served):
                notes.append(IN_A_WORKER)
            elif recorded(context.workload.traffic):
                row_s = float(np.median([r.ttft_s for r in rounds])) / context.workload.traffic.concurrency
                ratio = linear_check(worker, context.prompts, row_s)
                notes.append(f"TTFT is modelled as rows x one row: a prefill of two rows took {ratio:.2f}x of twice one row's")
                notes += [UNTOLD] if rounds[0].gpu and rounds[0].request_j is None else []
            found = users(context, candidate, rounds, notes)
            say(f"{candidate.name}: quality")
            quality = quality_of_candidate(context, candidate, worker)
            said = continued(context.model_folder, worker)
            if candidate.name == baseline.name:
                prefill, operators, phases = baseline.prefill_operators, baseline.operators, baseline.phases
            else:
                say(f"{candidate.name}: operators")
                prefill, operators, phases = look_at_operators(context, worker)
            notes += operators.notes
    except CandidateFailed as error:
        return Trial(name=candidate.name, failed=str(error), built=built, seconds=spent)
    return Trial(
        name=candidate.name,
        rounds=tuple(rounds),
        load_s=(session.loaded.load_s,),
        users=found,
        quality=quality,
        operators=operators,
        prefill_operators=prefill,
        phases=phases,
        built=built,
        said=said,
        notes=tuple(notes),
        seconds=spent + time.monotonic() - started,
    )


def memory_limit(context: Context) -> int:
    return limit_bytes(context.workload, context.device)


def users(context: Context, candidate: Candidate, rounds: Sequence[Round], notes: list[str]) -> Figure | None:
    """Requests in flight inside limit and SLO: searched for where that is the objective, else from the ledger."""
    workload, peak = context.workload, peak_of(rounds)
    if workload.objective != "concurrency" and workload.memory_limit_gib is None:
        return None
    guess = users_within(context.inventory, candidate.scheme, candidate.runtime, workload, peak, memory_limit(context))
    if workload.objective != "concurrency":
        return figure([float(guess)], "modelled", "peak at the declared concurrency, and whole caches more")
    found, said = search_users(context, candidate, guess, {workload.traffic.concurrency: peak}, min(r.tpot_s for r in rounds))
    notes += said
    return found


def search_users(
    context: Context, candidate: Candidate, guess: int, known: Mapping[int, int], tpot_s: float = 0.0
) -> tuple[Figure, list[str]]:
    """The largest batch inside the limits, each try in a worker of its own, its rows at the end of the declared context.
    `tpot_s`: the least that was measured at the declared concurrency."""
    slo, length = context.workload.slo, context.workload.traffic.context_length
    whole = np.resize(context.prompts[:1], (1, max(1, length - 1 - SEARCH_STEPS)))  # a request's last token is in no cache

    def run(rows: int) -> Steady:
        context.progress.say(f"{candidate.name}: {rows} users")
        with context.worker_of(candidate, rows) as worker:
            return worker.steady(whole, rows, SEARCH_STEPS)

    tpot = slo.tpot_ms / 1e3 if slo and slo.tpot_ms else None
    slow = {context.workload.traffic.concurrency: tpot_s} if tpot is not None and tpot_s > tpot else {}
    return largest_batch(run, memory_limit(context), tpot, guess, known, slow)


def quality_of_candidate(context: Context, candidate: Candidate, worker: RunningWorker, most: int = EVALUATION_TOKENS) -> Quality:
    """Through the runtime, with a passkey for a quantized cache; on up to `most` tokens while the interval straddles the
    budget. A quantized cache is scored in chunks, so that later ones really read it."""
    from quantadvisor.profiling import tasks

    _, text = context.evaluation
    chunk, task_chunk = (CHUNK, tasks.CHUNK) if candidate.scheme.quantizes_cache else (None, None)
    most = min(most, context.windows(MOST_EVALUATION_TOKENS).size)
    scores: list[np.ndarray] = []
    start, end = 0, EVALUATION_TOKENS
    while True:
        scores.append(worker.score(context.windows(end, start), make_reference(context, end, start), chunk))
        quality = quality_of(np.concatenate(scores, axis=1), f"{text.name} ({text.licence})", chunk)
        if end * 2 > most or not straddles(quality, context.workload):
            break
        start, end = end, end * 2
    if candidate.scheme.quantizes_cache:
        found = passkey_found(worker, *context.passkey())
        reference = None if found else reference_finds(context)
        quality = quality.model_copy(update={"passkey_found": found, "passkey_reference_found": reference})
    return quality.model_copy(update={"tasks": tuple(task_scores(context, worker, task_chunk))})


def task_scores(context: Context, worker: RunningWorker, chunk: int | None) -> Iterator[TaskScore]:
    """The workload's tasks through the runtime, `chunk` tokens a pass, each paired with the fp32 model's answers; none by
    default."""
    from quantadvisor.profiling.tasks import answers, paired

    for file, budget in context.workload.quality.tasks.items():
        context.progress.say(f"{budget.items} items of {file}")
        metric, mine = answers(worker, context.model_folder, Path(file), budget.items, chunk)
        yield paired(file, metric, mine, reference_answers(context, Path(file), budget.items, mine))


def reference_answers(context: Context, file: Path, items: int, wanted: Iterable[str]) -> dict[str, float]:
    """Of the fp32 model in torch; kept by the task file's bytes as long as they are of the items that are `wanted`."""
    from quantadvisor.profiling.tasks import answers

    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    path = context.model_cache / f"task-{digest}-{items}.json"
    kept: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    if not {*wanted} <= {*kept}:
        with context.worker("torch", context.model_folder, (), scheme("fp32")) as worker:
            _, kept = answers(worker, context.model_folder, file, items, None)
        write_text(path, json.dumps(kept))
    return kept


def with_trial(candidate: Candidate, trial: Trial, context: Context) -> Candidate:
    """The candidate with what was measured of it."""
    if trial.failed:
        return candidate.model_copy(update={"refused": trial.failed})
    built = trial.built
    return candidate.model_copy(
        update={
            "measured": measured_from_rounds(trial.rounds, context.workload, trial.load_s, trial.users),
            "quality": trial.quality,
            "operators": trial.operators,
            "prefill_operators": trial.prefill_operators,
            "phases": trial.phases,
            "apply_s": built.seconds if built else None,
            "apply_peak_bytes": built.peak_bytes if built else None,
            "artifact_bytes": built.bytes if built else None,
            "notes": (*candidate.notes, *trial.notes),
        }
    )


def clean(folder: Path, keep: set[Path]) -> None:
    """Remove built artifacts that are no longer needed."""
    import shutil

    for path in folder.glob("*@*"):
        if path not in keep and path.is_dir():
            shutil.rmtree(path)


def named(candidates: Sequence[Candidate], name: str) -> Candidate | None:
    """The candidate of that name, where it can run."""
    return next((c for c in candidates if c.name == name and c.refused is None), None)
