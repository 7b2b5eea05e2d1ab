"""Both sides of a live gate measured interleaved: blocks of A B B A or B A A B, a coin for each, until decided.

Each side runs in its own process, loaded afresh every FRESH_EVERY blocks, so that the luck of one process (where its
memory came to lie) does not pass for a difference; each new process warms up apart.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np

from quantadvisor.documents import CandidateFailed, Document, Traffic
from quantadvisor.profiling.measure import Round, recorded, run_round
from quantadvisor.profiling.workers import RunningWorker

from .gate_times import PairedTimes
from .gate_watch import Snapshot, disturbance, snapshot

SIDES = ("baseline", "candidate")
FRESH_EVERY = 6
WARM_UPS = 2
MOST_OUTPUT_TOKENS = 64
"""More of them lengthen a block and add little: gaps of one request are not independent."""

Start = Callable[[], RunningWorker]


class Block(Document):
    """Two rounds a side, each side's in the order in which they ran; `disturbed`: why the block does not count."""

    order: str
    baseline: tuple[Round, Round]
    candidate: tuple[Round, Round]
    disturbed: str | None = None


class SideFailed(CandidateFailed):
    """Which side broke: "baseline" or "candidate"."""

    def __init__(self, side: str, reason: str) -> None:
        super().__init__(reason)
        self.side = side


class Pair(NamedTuple):
    baseline: RunningWorker
    candidate: RunningWorker


def run_blocks(
    starts: tuple[Start, Start],
    prompts: np.ndarray,
    traffic: Traffic,
    *,
    seed: int,
    budget_s: float,
    decided: Callable[[Sequence[Block]], bool],
    take: Callable[[Sequence[int]], Snapshot] = snapshot,
    say: Callable[[str], None] = lambda _: None,
) -> list[Block]:
    """Blocks until `decided` or until `budget_s` have passed since the first pair was warm."""
    coin, blocks = np.random.default_rng(seed), list[Block]()
    deadline = None
    while True:
        with ExitStack() as stack:
            say("loading and warming up")
            pair = Pair(*(started(stack, side, start, prompts, traffic) for side, start in zip(SIDES, starts, strict=True)))
            if deadline is None:
                deadline = time.monotonic() + budget_s
            process = len(blocks) // FRESH_EVERY
            for _ in range(FRESH_EVERY):
                blocks.append(run_block(pair, prompts, traffic, "ABBA" if coin.random() < 0.5 else "BAAB", process, take))
                say(f"block {len(blocks)}" + (f": {blocks[-1].disturbed}" if blocks[-1].disturbed else ""))
                if (not blocks[-1].disturbed and decided(blocks)) or time.monotonic() > deadline:
                    return blocks


def started(stack: ExitStack, side: str, start: Start, prompts: np.ndarray, traffic: Traffic) -> RunningWorker:
    """A loaded worker of one side, warmed up apart."""
    try:
        worker = stack.enter_context(start())
        if not recorded(traffic):
            for _ in range(WARM_UPS):
                run_round(worker, prompts, traffic, min(4, traffic.output_length))
    except CandidateFailed as error:
        raise SideFailed(side, str(error)) from None
    return worker


def run_block(
    pair: Pair, prompts: np.ndarray, traffic: Traffic, order: str, process: int, take: Callable[[Sequence[int]], Snapshot]
) -> Block:
    pids = [worker.pid for worker in pair]
    before = take(pids)
    made: dict[str, list[Round]] = {"A": [], "B": []}
    tokens = min(traffic.output_length, MOST_OUTPUT_TOKENS)
    for side in order:
        worker = pair.baseline if side == "A" else pair.candidate
        try:
            made[side].append(run_round(worker, prompts, traffic, tokens, process))
        except CandidateFailed as error:
            raise SideFailed(SIDES["AB".index(side)], str(error)) from None
    return Block(
        order=order,
        baseline=(made["A"][0], made["A"][1]),
        candidate=(made["B"][0], made["B"][1]),
        disturbed=disturbance(before, take(pids)),
    )


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
    means = [side.mean(1) for side in sides]
    return PairedTimes(
        baseline_s=np.exp(means[0]).tolist(),
        candidate_s=np.exp(means[1]).tolist(),
        log_ratios=(means[1] - means[0]).tolist(),
        log_self=(sides[0][:, 0] - sides[0][:, 1]).tolist(),
    )


def peak_bytes(blocks: Sequence[Block], side: str) -> float:
    """Median over the processes of a side of their peaks."""
    peaks: dict[int, int] = {}
    for row in (row for block in blocks for row in getattr(block, side)):
        peaks[row.block] = max(peaks.get(row.block, 0), row.peak_bytes)
    return float(statistics.median(peaks.values()))
