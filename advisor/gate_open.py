"""From what a live gate is asked to what it is measured on: sides, workload, prompts, texts; checked before a worker starts."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from quantadvisor.documents import BadInput, Device, Workload
from quantadvisor.profiling.device import describe_device

from .gate_anomalies import of_experts
from .gate_blocks import SIDES
from .gate_input import Asked
from .gate_live import BUDGET_S, Live
from .gate_servers import servers_live
from .gate_sides import Side, artifact_bytes, differing, side_of, versions
from .gate_specs import check_same_traffic, server_of, side_of_spec
from .gate_texts import texts_of
from .spec import load_workload
from .stages import Progress
from .stored_graphs import saturation_notes


@contextmanager
def open_live(asked: Asked, progress: Progress) -> Iterator[Live]:
    """What is to be measured; artifacts that specs ask for are there while it is open."""
    device = describe_device()
    specs = [load_workload(Path(side)) if kind == "spec" else None for side, kind in zip(asked.sides, asked.kinds, strict=True)]
    workload = workload_of(asked, specs)
    urls = servers_of(asked, specs)
    if urls is not None:
        yield judged(servers_live(urls, workload, device, secrets.randbits(32)), asked)
        return
    with tempfile.TemporaryDirectory(prefix="quantadvisor-gate-") as out:
        sides = [
            side_of(where, Path(asked.sides[i]), asked.runtime, asked.pythons[i], device)
            if (spec := specs[i]) is None
            else side_of_spec(where, spec, asked.pythons[i], device, Path(out) / where, progress)
            for i, where in enumerate(SIDES)
        ]
        yield judged(artifacts_live(asked, sides, workload, device, progress), asked)


def judged(live: Live, asked: Asked) -> Live:
    """With the numbers that were asked for."""
    return replace(
        live,
        alpha=asked.alpha,
        threshold=asked.threshold,
        budget_s=asked.budget_s or BUDGET_S,
        budget_asked=asked.budget_s is not None,
    )


def workload_of(asked: Asked, specs: list[Workload | None]) -> Workload:
    """The spec given with --workload, or the sides' own where their traffic is the same."""
    named = [spec for spec in specs if spec is not None]
    if len(named) == 2:
        check_same_traffic(*named)
    if named:
        return named[0]
    if asked.workload is None:
        raise BadInput("--workload", "is missing: live sides are measured under a workload", "advisor init writes one")
    return load_workload(asked.workload)


def servers_of(asked: Asked, specs: list[Workload | None]) -> tuple[str, str] | None:
    """URLs of both sides; None where neither is a server."""
    urls = [
        side if kind == "server" else server_of(spec) if spec else None
        for side, kind, spec in zip(asked.sides, asked.kinds, specs, strict=True)
    ]
    if urls[0] is None and urls[1] is None:
        return None
    if urls[0] is None or urls[1] is None:
        raise BadInput("gate", "one side names a running server, the other none: HTTP would be gated too", "give two of a kind")
    return urls[0], urls[1]


def artifacts_live(asked: Asked, sides: list[Side], workload: Workload, device: Device, progress: Progress) -> Live:
    found = [versions(where, side) for where, side in zip(SIDES, sides, strict=True)]
    limit = int(device.memory_bytes * 0.4)
    texts = texts_of(workload, device, sides[0].artifact, asked.quality, progress)
    sizes = artifact_bytes(sides[0].artifact), artifact_bytes(sides[1].artifact)
    said = [f"{where}: {note}" for where, side in zip(SIDES, sides, strict=True) for note in saturation_notes(side.artifact)]
    return Live(
        named=asked.sides,
        starts=(partial(sides[0].start, device.threads, limit), partial(sides[1].start, device.threads, limit)),
        prompts=texts.prompts,
        workload=workload,
        device=device,
        sizes=sizes,
        read_bytes=None if of_experts(sides[1].artifact) else sizes[1],
        windows=texts.windows,
        reference=texts.reference,
        factors=tuple(differing(*found)),
        notes=(*texts.notes, *said),
    )
