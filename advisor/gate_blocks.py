"""Both sides of a live gate measured interleaved: blocks of A B B A or B A A B, a coin for each, until decided.

Each block has its own two processes, warmed up apart, and the coin also says which of them starts first. Two processes of
the same thing differ for good: by where their memory came to lie (5 % of TPOT seen), and the next process on the same side
tends to get the same pages again. So the pair of processes is the unit, and the coin is fair only if it swaps everything.
The longer loading takes beside four rounds, the more of them a block has: A B B A A B B A and so on, up to sixteen. A side's
reading is their median: a stall that hits one round is not the side's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from quantadvisor.documents import CandidateFailed, Document, Traffic
from quantadvisor.profiling.measure import Round, recorded, run_round

from .gate_times import PairedTimes
from .gate_watch import Snapshot, disturbance, snapshot

SIDES = ("baseline", "candidate")
MOST_REPEATS = 4
WARM_UPS = 2
MOST_OUTPUT_TOKENS = 64
"""More of them lengthen a block and add little: gaps of one request are not independent."""


class Measurable(Protocol):
    """A worker of ours or the client of a running server: warm once entered."""

    @property
    def pid(self) -> int: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None: ...


Start = Callable[[], Any]
"""Starts a Measurable of the kind that the run's OneRound takes."""
OneRound = Callable[[Any, np.ndarray, Traffic, int, int], Round]
"""(side, prompts, traffic, output tokens, number of the process) -> raw times."""


class Block(Document):
    """As many rounds on either side, in the order in which they ran; `disturbed`: why the block does not count."""

    order: str
    baseline: tuple[Round, ...]
    candidate: tuple[Round, ...]
    disturbed: str | None = None


class SideFailed(CandidateFailed):
    """Which side broke: "baseline" or "candidate"."""

    def __init__(self, side: str, reason: str) -> None:
        super().__init__(reason)
        self.side = side


class Task(NamedTuple):
    """What a round is made of."""

    prompts: np.ndarray
    traffic: Traffic
    one_round: OneRound
    warm_ups: int


class Run(NamedTuple):
    blocks: list[Block]
    seconds: float
    """From the first pair being warm to the verdict."""


def run_blocks(
    starts: tuple[Start, Start],
    prompts: np.ndarray,
    traffic: Traffic,
    *,
    seed: int,
    budget_s: float,
    decided: Callable[[Sequence[Block]], bool],
    one_round: OneRound = run_round,
    warm_ups: int = WARM_UPS,
    take: Callable[[Sequence[int]], Snapshot] = snapshot,
    say: Callable[[str], None] = lambda _: None,
) -> Run:
    """Blocks until `decided` or until `budget_s` have passed since the first pair was warm."""
    coin, blocks = np.random.default_rng(seed), list[Block]()
    warm: float | None = None
    clocks: Mapping[str, float] = {}
    repeats: int | None = None
    task = Task(prompts, traffic, one_round, 0 if recorded(traffic) else warm_ups)
    while True:
        order = "ABBA" if coin.random() < 0.5 else "BAAB"
        loading = time.monotonic()
        with ExitStack() as stack:
            importing = {side: starts["AB".index(side)]() for side in order[:2]}
            for one in importing.values():
                stack.callback(one.close)
            pair = {side: started(stack, side, one, task) for side, one in importing.items()}
            loaded = time.monotonic()
            warm = warm or loaded
            before = take([side.pid for side in pair.values()])
            rounds = run_order(pair, order, task, len(blocks))
            if repeats is None:
                repeats = min(MOST_REPEATS, 1 + round((loaded - loading) / (time.monotonic() - loaded)))
            for _ in range(repeats - 1):
                for side, more in run_order(pair, order, task, len(blocks)).items():
                    rounds[side] += more
            after = take([side.pid for side in pair.values()])
        why = disturbance(before._replace(clocks_mhz=clocks), after)
        clocks = after.clocks_mhz
        blocks.append(Block(order=order, baseline=tuple(rounds["A"]), candidate=tuple(rounds["B"]), disturbed=why))
        say(f"block {len(blocks)}" + (f": {why}" if why else ""))
        spent = time.monotonic() - warm
        if (not why and decided(blocks)) or spent > budget_s:
            return Run(blocks, spent)


def started(stack: ExitStack, side: str, importing: Measurable, task: Task) -> Measurable:
    """One side ("A" or "B") in a process of its own, which imports beside the other's and is loaded and warmed up apart."""
    try:
        entered = stack.enter_context(importing)
        for _ in range(task.warm_ups):
            task.one_round(entered, task.prompts, task.traffic, min(4, task.traffic.output_length), 0)
    except CandidateFailed as error:
        raise SideFailed(SIDES["AB".index(side)], str(error)) from None
    return entered


def run_order(pair: Mapping[str, Measurable], order: str, task: Task, block: int) -> dict[str, list[Round]]:
    """One round for each letter of `order`."""
    made: dict[str, list[Round]] = {"A": [], "B": []}
    tokens = min(task.traffic.output_length, MOST_OUTPUT_TOKENS)
    for side in order:
        try:
            made[side].append(task.one_round(pair[side], task.prompts, task.traffic, tokens, block))
        except CandidateFailed as error:
            raise SideFailed(SIDES["AB".index(side)], str(error)) from None
    return made


def quiet(blocks: Sequence[Block]) -> list[Block]:
    return [block for block in blocks if block.disturbed is None]


def itl_s(row: Round) -> float:
    """Median gap between tokens, seconds."""
    return statistics.median(row.itl_s)


def paired_times(blocks: Sequence[Block]) -> dict[str, PairedTimes]:
    """TTFT, TPOT and ITL of the blocks that count; a metric that these rounds do not have is absent."""
    counted = quiet(blocks)
    readings: dict[str, Callable[[Round], float]] = {"ttft_s": lambda row: row.ttft_s}
    if counted and all(row.itl_s for block in counted for row in block.baseline + block.candidate):
        readings |= {"tpot_s": lambda row: row.tpot_s, "itl_s": itl_s}
    return {name: paired_time(counted, read) for name, read in readings.items()} if counted else {}


def paired_time(blocks: Sequence[Block], read: Callable[[Round], float]) -> PairedTimes:
    sides = [np.log([[read(row) for row in getattr(block, side)] for block in blocks]) for side in ("baseline", "candidate")]
    middles, half = [np.median(side, 1) for side in sides], sides[0].shape[1] // 2
    return PairedTimes(
        baseline_s=np.exp(middles[0]).tolist(),
        candidate_s=np.exp(middles[1]).tolist(),
        log_ratios=(middles[1] - middles[0]).tolist(),
        log_self=(sides[0][:, :half].mean(1) - sides[0][:, half:].mean(1)).tolist(),
    )


def peak_bytes(blocks: Sequence[Block], side: str) -> float:
    """Median over the processes of a side of their peaks."""
    peaks: dict[int, int] = {}
    for row in (row for block in blocks for row in getattr(block, side)):
        peaks[row.block] = max(peaks.get(row.block, 0), row.peak_bytes)
    return float(statistics.median(peaks.values()))
