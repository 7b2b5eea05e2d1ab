"""`advisor runtimes`, `methods`, `kernels`, `devices`: what exists here, as one JSON document and as tables for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel
from rich.table import Table

from quantadvisor.documents import BadInput, Inventory
from quantadvisor.kernels.probe import probe_kernels
from quantadvisor.kernels.registry import PROBES
from quantadvisor.profiling.device import describe_device
from quantadvisor.profiling.environments import interpreter_of
from quantadvisor.profiling.inventory import inventory_from_config

from . import catalogue, kernel_truth, tables
from .candidates import asked_runtimes
from .context import cache_folder
from .device_choice import named_device
from .model_source import resolve_model
from .slow_passes import contrasts_here
from .slow_paths import PHASES
from .spec import load_workload
from .stages import Progress

PROBE_BUDGET_S = 60.0
"""Seconds of timing kernels that are not kept yet."""


class Listing(NamedTuple):
    document: str
    tables: Sequence[Table]


class Asked(NamedTuple):
    """What to list for: a model (None: nothing is timed), and interpreters by runtime (none named: those that are here)."""

    model: str | None = None
    pythons: Mapping[str, str] = {}


def asked_of(model: str | None, spec: Path | None) -> Asked:
    """Of the command line: a model, or a spec's model and the runtimes that it names."""
    if spec is None:
        return Asked(model)
    if model is not None:
        raise BadInput("--model", "the spec names a model already", "give --model or --workload")
    workload = load_workload(spec)
    return Asked(workload.model, asked_runtimes(workload))


def runtimes(asked: Asked, progress: Progress) -> Listing:
    """Runtime by scheme. With a model its kernels are timed, or read where they were, so that slow paths are seen."""
    device = describe_device()
    if asked.model is None:
        found = catalogue.runtimes_here(device)
    else:
        folder, inventory = sizes_of(asked.model)
        with progress.stage(f"Kernels at the sizes of {asked.model}"):
            timings = probe_kernels(
                inventory.linears,
                [m for _, m in PHASES],
                device,
                probes=PROBES,
                budget_s=PROBE_BUDGET_S,
                progress=lambda done, total, what: progress.say(f"{what} ({done} of {total})"),
                cache=cache_folder() / "kernels",
                pythons=kernel_truth.interpreters(asked.pythons),
            )
        with progress.stage("Whole passes of rivals, in turns"):
            known = catalogue.runtimes_here(device, folder, timings, inventory, (), asked.pythons)
            ready = [scheme.name for one in known if not one.refused for scheme in one.schemes if not scheme.refused]
            passes = contrasts_here(folder, device, ready, cache_folder() / "passes", progress.say, asked.pythons)
        found = catalogue.runtimes_here(device, folder, timings, inventory, passes, asked.pythons)
    return Listing(dumped(found), [tables.runtimes_table(found)])


def methods(model: str | None) -> Listing:
    found = catalogue.methods_here(describe_device(), sizes_of(model)[0] if model else None)
    return Listing(dumped(found), [tables.methods_table(found)])


def kernels(asked: Asked, budget_s: float, progress: Progress, device_name: str = "auto") -> Listing:
    pythons = {name: interpreter_of(name, asked.pythons.get(name)) for name in ("triton", "torch")}
    device = named_device(device_name, pythons, "--device")
    for note in device.notes:
        progress.say(note)
    if asked.model is None:
        found = kernel_truth.KernelTruth(device=device.name, probes=kernel_truth.probes_here(device, asked.pythons))
    else:
        _, inventory = sizes_of(asked.model)
        with progress.stage(f"Kernels at the sizes of {asked.model}"):
            found = kernel_truth.time_kernels(
                asked.model,
                inventory,
                device,
                cache_folder() / "kernels",
                budget_s,
                lambda done, total, what: progress.say(f"{what} ({done} of {total})"),
                asked.pythons,
            )
    return Listing(found.model_dump_json(), [tables.kernels_table(found), *tables.truth_tables(found)])


def devices() -> Listing:
    found = catalogue.devices_here(describe_device())
    return Listing(dumped(found), [tables.devices_table(found)])


def sizes_of(model: str) -> tuple[Path, Inventory]:
    """Folder and sizes of a model by name."""
    folder, _ = resolve_model(model, cache_folder())
    return folder, inventory_from_config(json.loads((folder / "config.json").read_text()))


def dumped(found: Sequence[BaseModel]) -> str:
    return json.dumps([one.model_dump(mode="json") for one in found])
