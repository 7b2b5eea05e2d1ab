"""`advisor runtimes`, `methods`, `kernels`, `devices`: what exists here, as one JSON document and as tables for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel
from rich.table import Table

from quantadvisor.documents import Inventory
from quantadvisor.kernels.probe import probe_kernels
from quantadvisor.kernels.registry import PROBES
from quantadvisor.profiling.device import describe_device
from quantadvisor.profiling.environments import interpreter_of
from quantadvisor.profiling.inventory import inventory_from_config

from . import catalogue, kernel_truth, tables
from .context import cache_folder
from .device_choice import named_device, usable
from .model_source import resolve_model
from .slow_passes import contrasts_here
from .slow_paths import PHASES
from .stages import Progress

PROBE_BUDGET_S = 60.0
"""Seconds of timing kernels that are not kept yet."""


class Listing(NamedTuple):
    document: str
    tables: Sequence[Table]


def runtimes(model: str | None, progress: Progress) -> Listing:
    """Runtime by scheme. With a model its kernels are timed, or read where they were, so that slow paths are seen."""
    device = describe_device()
    if model is None:
        found = catalogue.runtimes_here(device)
    else:
        folder, inventory = sizes_of(model)
        with progress.stage(f"Kernels at the sizes of {model}"):
            timings = probe_kernels(
                inventory.linears,
                [m for _, m in PHASES],
                device,
                probes=PROBES,
                budget_s=PROBE_BUDGET_S,
                progress=lambda done, total, what: progress.say(f"{what} ({done} of {total})"),
                cache=cache_folder() / "kernels",
                pythons=kernel_truth.interpreters(),
            )
        with progress.stage("Whole passes of rivals, in turns"):
            known = catalogue.runtimes_here(device, folder, timings, inventory)
            ready = [scheme.name for one in known if not one.refused for scheme in one.schemes if not scheme.refused]
            passes = contrasts_here(folder, device, ready, cache_folder() / "passes", progress.say)
        found = catalogue.runtimes_here(device, folder, timings, inventory, passes)
    return Listing(dumped(found), [tables.runtimes_table(found)])


def methods(model: str | None) -> Listing:
    found = catalogue.methods_here(describe_device(), sizes_of(model)[0] if model else None)
    return Listing(dumped(found), [tables.methods_table(found)])


def kernels(model: str | None, budget_s: float, progress: Progress, device_name: str = "auto") -> Listing:
    pythons = {name: interpreter_of(name) for name in ("triton", "torch")}
    device = named_device(device_name, lambda gpu: usable(gpu, pythons), "--device")
    if model is None:
        found = kernel_truth.KernelTruth(device=device.name, probes=kernel_truth.probes_here(device))
    else:
        _, inventory = sizes_of(model)
        with progress.stage(f"Kernels at the sizes of {model}"):
            found = kernel_truth.time_kernels(
                model,
                inventory,
                device,
                cache_folder() / "kernels",
                budget_s,
                lambda done, total, what: progress.say(f"{what} ({done} of {total})"),
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
