"""Ghosts, run within their share of budget.advise_s: the most promising first, each for one round, then more in turn.

A runtime whose start takes longer than its rounds runs its ghosts one after the other in one process (SHARED). So there is
never more than one of its pools of cache in memory. On a GPU that does not hold all of them each leaves when it is done. Who
was not reached, and whose time cannot be, is said.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from quantadvisor.documents import Candidate, CandidateFailed, Document, Ghost
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.measure import Round, interleave, recorded
from quantadvisor.profiling.workers import RunningWorker

from .context import Context, export_format
from .expected import Expected, doubt, promise
from .ghosts import ghost_of
from .predict import TWINS
from .room import in_parts
from .survey import SHORT_DECODE

SHARED = ("vllm",)
ROUNDS = 3
FURTHER_SHARE = 0.25
"""Part of budget.advise_s after which no ghost gets a second round, but those of which a ratio is taken (paired)."""
LAST_SHARE = 0.5
"""Part after which no ghost is begun; who does not answer within it is out."""


class Ghosts(Document):
    ghosts: tuple[Ghost, ...]
    baseline: tuple[Round, ...] = ()
    """Short rounds of the baseline among those of the ghosts: what its own prediction is."""


def run_ghosts(
    context: Context, chosen: Sequence[Candidate], baseline: Candidate | None, expectations: Mapping[str, Expected | None]
) -> Ghosts:
    """Each chosen candidate's ghost and the baseline, run whole. Built before, and not counted: the fp32 export of the model
    for each format, its random twin, and from that the ghosts."""
    order = sorted(chosen, key=lambda c: promise(context.workload, expectations.get(c.name)))
    runtimes = {export_format(c.runtime): c.runtime for c in chosen}.values()
    bases = [context.build("none", scheme("fp32"), name, ghost) for ghost in (False, True) for name in runtimes]
    builds = {c.name: context.build_of(c, ghost=True) for c in chosen}
    done = context.build_all([*bases, *builds.values()])
    artifacts = {c.name: builds[c.name].out for c in chosen}
    if baseline is not None:
        artifacts[baseline.name] = context.build_of(baseline).out
    failed = {c.name: reason for c in chosen if (reason := done[artifacts[c.name]].failed)}
    rows, broke, unused = in_turn(context, [*([baseline] if baseline else []), *order], artifacts, failed, expectations)
    depth = context.inventory.layers
    return Ghosts(
        ghosts=tuple(
            ghost_of(
                c.scheme.name, c.runtime, c.options, depth,
                rows.get(c.name, ()), (failed | broke).get(c.name), unused.get(c.name),
            )
            for c in chosen
        ),
        baseline=tuple(rows.get(baseline.name, ())) if baseline else (),
    )  # fmt: skip


def in_turn(
    context: Context,
    order: Sequence[Candidate],
    artifacts: Mapping[str, Path],
    failed: Mapping[str, str],
    expectations: Mapping[str, Expected | None],
) -> tuple[dict[str, list[Round]], dict[str, str], dict[str, str]]:
    """By name: rounds, why one failed, why one's rounds are not used. `failed`: those that are out from the beginning."""
    rows: dict[str, list[Round]] = {}
    broke: dict[str, str] = {}
    unused: dict[str, str] = {}
    took: dict[str, float] = {}
    rounds = 1 if recorded(context.workload.traffic) else ROUNDS
    advise_s, began = context.workload.budget.advise_s, time.monotonic()
    further, last = began + FURTHER_SHARE * advise_s, began + LAST_SHARE * advise_s
    crowded = len(in_parts(context, order)) > 1
    with Seats(context, artifacts) as seats:
        able = [c for c in order if c.name not in failed]
        broke |= seats.start(able)
        for candidate in (c for c in able if c.name not in broke):
            name, start = candidate.name, time.monotonic()
            if start + took.get(candidate.runtime, 0.0) > last:
                unused[name] = f"not run: the others took the {LAST_SHARE * advise_s:.0f} s that ghosts have of budget.advise_s"
                continue
            try:
                worker = seats.load(candidate)
                rows[name] = once(context, name, worker, warm_up=True)
                said = doubt_of(rows[name], expectations.get(name))
                if said and time.monotonic() < last:
                    rows[name] = once(context, name, worker)
                    said = doubt_of(rows[name], expectations.get(name))
                if said:
                    unused[name] = said
                elif crowded or candidate.runtime in SHARED:  # its seat goes to the next
                    rows[name] += more(context, {name: worker}, rounds - 1, further)[0].get(name, [])
            except CandidateFailed as error:
                broke[name] = str(error)
            if crowded or name in broke:
                seats.leave(candidate)
            took[candidate.runtime] = max(took.get(candidate.runtime, 0.0), time.monotonic() - start)
        waiting = [c for c in able if not crowded and c.runtime not in SHARED]
        alone = {c.name: seats.of(c) for c in waiting if c.name in rows and c.name not in broke | unused}
        again, failures = more(context, paired(alone, able), rounds - 1, last)
        others, more_failures = more(context, {n: w for n, w in alone.items() if n not in again | failures}, rounds - 1, further)
        again, failures = again | others, failures | more_failures
    rows = {name: made + again.get(name, []) for name, made in rows.items() if name not in broke | failures}
    return rows, broke | failures, unused


def paired(workers: Mapping[str, RunningWorker], candidates: Sequence[Candidate]) -> dict[str, RunningWorker]:
    """The workers of one scheme on two runtimes with the same kernels: the ratio of their times predicts all of one of them
    (predict.through_twin), so that a slow moment of a single round would be in every one."""
    here = [c for c in candidates if c.name in workers]
    pairs = [(c, d) for c in here for d in here if c.scheme.name == d.scheme.name and TWINS.get(c.runtime) == d.runtime]
    return {one.name: workers[one.name] for pair in pairs for one in pair}


class Seats:
    """The workers of ghosts: one for each, or for all of a runtime's; a context manager."""

    def __init__(self, context: Context, artifacts: Mapping[str, Path]) -> None:
        self.context, self.artifacts = context, artifacts
        self._workers: dict[str, RunningWorker] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self._workers.values():
            worker.close()

    def of(self, candidate: Candidate) -> RunningWorker:
        """Its worker, which starts to import its runtime where it is new."""
        seat = seat_of(candidate)
        if seat not in self._workers:
            artifact = self.artifacts[candidate.name]
            self._workers[seat] = self.context.worker(candidate.runtime, artifact, candidate.options, candidate.scheme)
        return self._workers[seat]

    def start(self, candidates: Sequence[Candidate]) -> dict[str, str]:
        """Imports run side by side; when this returns they disturb nobody's times. Who could not, and why."""
        for candidate in candidates:
            self.of(candidate)
        failed = {}
        for candidate in candidates:
            try:
                self.of(candidate).ready()
            except CandidateFailed as error:
                failed[candidate.name] = str(error)
        return failed

    def load(self, candidate: Candidate) -> RunningWorker:
        """Its worker with its artifact; what the seat held before goes."""
        worker = self.of(candidate)
        worker.allowance = self.context.allowance(candidate.name)
        worker.time_limit_s = min(worker.time_limit_s, LAST_SHARE * self.context.workload.budget.advise_s)
        worker.ready()
        options = self.context.options_of(candidate.runtime, candidate.options, candidate.scheme)
        worker.load(str(self.artifacts[candidate.name]), options, self.context.device.threads)
        return worker

    def leave(self, candidate: Candidate) -> None:
        """End its worker: whoever has the same seat gets a fresh one."""
        if worker := self._workers.pop(seat_of(candidate), None):
            worker.close()


def seat_of(candidate: Candidate) -> str:
    return candidate.runtime if candidate.runtime in SHARED else candidate.name


def once(context: Context, name: str, worker: RunningWorker, warm_up: bool = False) -> list[Round]:
    """One round; CandidateFailed where it breaks."""
    rows, failed = more(context, {name: worker}, 1, None, warm_up)
    if name in failed:
        raise CandidateFailed(failed[name])
    return rows[name]


def more(
    context: Context, workers: Mapping[str, RunningWorker], rounds: int, deadline: float | None, warm_up: bool = False
) -> tuple[dict[str, list[Round]], dict[str, str]]:
    """Short rounds, interleaved; none is begun after `deadline`."""
    traffic = context.workload.traffic
    return interleave(
        workers, context.prompts, traffic, rounds, output_tokens=min(SHORT_DECODE, traffic.output_length),
        deadline=deadline, least=0, warm_up=warm_up, progress=lambda what: context.progress.say(f"ghost of {what}"),
    )  # fmt: skip


def doubt_of(rows: Sequence[Round], of: Expected | None) -> str | None:
    """Of the last round."""
    return doubt(of, rows[-1].ttft_s, rows[-1].tpot_s)
