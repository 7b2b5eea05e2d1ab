"""`advisor runtimes`, `methods`, `kernels`, `devices`: what exists here, as one JSON document and as tables for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel
from rich.table import Table

from quantadvisor.documents import BadInput, Device, Inventory, KernelTiming
from quantadvisor.kernels.probe import probe_kernels
from quantadvisor.kernels.registry import PROBES
from quantadvisor.profiling.device import describe_device
from quantadvisor.profiling.environments import interpreter_of
from quantadvisor.profiling.inventory import inventory_from_config

from . import catalogue, kernel_truth, tables
from .candidates import asked_runtimes
from .context import cache_folder
from .device_choice import named_device
from .first_contact import proven_products
from .gpu_probe import timed_here
from .model_source import resolve_model
from .slow_passes import Contrast, contrasts_here
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
    pythons = asked_runtimes(workload)
    if not pythons:
        raise BadInput(f"{spec}: runtimes", "names servers alone, of which a run asks", "name a runtime beside them")
    return Asked(workload.model, pythons)


def device_of(asked: Asked, name: str, progress: Progress) -> Device:
    """The device of `--device`, chosen as that of a spec is; of a GPU the runtimes count whose kernels are timed there."""
    pythons = {runtime: interpreter_of(runtime, asked.pythons.get(runtime)) for runtime in ("triton", "torch")}
    device = named_device(name, pythons, "--device")
    for note in device.notes:
        progress.say(note)
    return device


def runtimes(asked: Asked, progress: Progress, device_name: str = "auto") -> Listing:
    """Runtime by scheme. With a model the device's kernels are timed, or read where they were, so that slow paths are seen: what
    runs on another device stays untimed."""
    host, device = describe_device(), device_of(asked, device_name, progress)
    gpu = device if device.kind == "cuda" else None
    if asked.model is None:
        found = catalogue.runtimes_here(host, gpu=gpu)
    else:
        folder, inventory = sizes_of(asked.model)
        with progress.stage(f"Kernels at the sizes of {asked.model}"):
            timings = kernels_on(device, inventory, asked.pythons, progress)
        passes: tuple[Contrast, ...] = ()
        if gpu is None:
            with progress.stage("Whole passes of rivals, in turns"):
                known = catalogue.runtimes_here(host, folder, timings, inventory, (), asked.pythons)
                ready = [scheme.name for one in known if not one.refused for scheme in one.schemes if not scheme.refused]
                passes = contrasts_here(folder, device, ready, cache_folder() / "passes", progress.say, asked.pythons)
        found = catalogue.runtimes_here(host, folder, timings, inventory, passes, asked.pythons, gpu)
    return Listing(dumped(found), [tables.runtimes_table(found)])


def kernels_on(device: Device, inventory: Inventory, pythons: Mapping[str, str], progress: Progress) -> tuple[KernelTiming, ...]:
    """Timings in both phases: on a CPU of all probes, on a GPU of what a run times there."""
    rows, cache = [m for _, m in PHASES], cache_folder() / "kernels"
    if device.kind == "cuda":
        return timed_here(inventory, device, proven_products(device, rows), rows, cache, progress.say, PROBE_BUDGET_S)
    return probe_kernels(
        inventory.linears,
        rows,
        device,
        probes=PROBES,
        budget_s=PROBE_BUDGET_S,
        progress=lambda done, total, what: progress.say(f"{what} ({done} of {total})"),
        cache=cache,
        pythons=kernel_truth.interpreters(pythons),
    )


def methods(model: str | None) -> Listing:
    found = catalogue.methods_here(describe_device(), sizes_of(model)[0] if model else None)
    return Listing(dumped(found), [tables.methods_table(found)])


def kernels(asked: Asked, budget_s: float, progress: Progress, device_name: str = "auto") -> Listing:
    device = device_of(asked, device_name, progress)
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
