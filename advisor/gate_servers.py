"""Two running servers as the sides of a live gate: TTFT, TPOT and ITL as their users see them, over HTTP.

What HTTP does not show is not gated, and that is said: operators, memory, quality, and the luck of a server's process.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from quantadvisor.documents import Device, Traffic, Workload
from quantadvisor.profiling.measure import Round
from quantadvisor.profiling.server import RunningServer

from .gate_blocks import SIDES
from .gate_inspect import OUTPUT_TOKENS, Inspected
from .gate_live import Live, Manner
from .gate_watch import Snapshot, snapshot

SAID = "Write a short story about a lighthouse keeper who finds a letter in a bottle."
UNSEEN = "operators, memory and quality cannot be seen through HTTP, nor can the luck of a server's process"
UNWATCHED = "the load by others was not watched: it cannot be told from a server's own"


def inspect_server(server: RunningServer, prompts: np.ndarray, windows: np.ndarray | None, reference: Path) -> Inspected:
    """The answer to one prompt, greedy, that both servers get alike."""
    pieces = server.greedy(SAID, OUTPUT_TOKENS)
    return Inspected(pieces, {}, notes=tuple(server.notes))


def server_round(
    server: RunningServer, prompts: np.ndarray, traffic: Traffic, output_tokens: int | None = None, process: int = 0
) -> Round:
    """One round of a server's client; `process` is not known to change."""
    made = server.generate(prompts, output_tokens or traffic.output_length)
    return Round(ttft_s=made.ttft_s, itl_s=tuple(made.itl_s), peak_bytes=0, block=process)


def unwatched(pids: Sequence[int]) -> Snapshot:
    """Clocks and throttling only: a server on this machine would count as others."""
    return snapshot(pids)._replace(machine_s=None)


SERVERS = Manner(
    inspect=inspect_server,
    one_round=server_round,
    warm_ups=0,
    take=unwatched,
    not_ready="is no server that can be measured",
    candidate_may_break=False,
)


def servers_live(urls: tuple[str, str], workload: Workload, device: Device, seed: int) -> Live:
    """`device` is where the requests come from. The clients are made once: none of their prompts may come again."""
    made = [
        RunningServer(url, workload.traffic.prompt_length, workload.model, seed=seed, side=side)
        for url, side in zip(urls, SIDES, strict=True)
    ]
    rows = np.zeros((workload.traffic.concurrency, workload.traffic.prompt_length), np.int64)
    return Live(
        named=urls,
        starts=(partial(same, made[0]), partial(same, made[1])),
        prompts=rows,
        workload=workload,
        device=device.model_copy(update={"name": f"servers, asked from {device.name}"}),
        notes=(UNSEEN, UNWATCHED),
        manner=SERVERS,
        seed=seed,
    )


def same(server: RunningServer) -> RunningServer:
    return server
