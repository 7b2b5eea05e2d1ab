"""What exists here, as documents: runtimes, methods and devices, each ready or refused with its reason. Prints nothing.

Without a model, a nominal Llama answers: one whose sizes every group divides; then nothing is timed, and nothing quantized is
called ready. With one, its own config does, and what loads but is slow (`slow_paths.py`) is said to be: from kernel timings,
not believed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from quantadvisor.documents import Candidate, Device, Inventory, KernelTiming, OpenDocument, Scheme, SelfCheck
from quantadvisor.kernels import selfcheck_record
from quantadvisor.kernels.gpu_devices import gpus
from quantadvisor.kernels.gpu_fractions import runtimes_with, tables
from quantadvisor.kernels.processes import crashed
from quantadvisor.kernels.registry import PROBES, TRAPS
from quantadvisor.kernels.timing_cache import versions
from quantadvisor.methods.registry import METHODS, method
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.environments import interpreter_of, refusal
from quantadvisor.profiling.gpus import device_class, on_gpu
from quantadvisor.profiling.runtimes.registry import RUNTIMES, runtime

from .builds import missing_writer
from .candidates import candidate, catalogue_of, gpu_places, recipe
from .predict import EIGHT_BIT_SHARE, Probes, family
from .slow_passes import Contrast, chunk_traps, slow_pass
from .slow_paths import place_of, same_operator, slow_path, untimed

NOMINAL = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 1024, "intermediate_size": 4096,
    "num_hidden_layers": 2, "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 32768,
}  # fmt: skip
UNTIMED = "loads; --model M times it"
NO_GPU_PATH = "no path to an NVIDIA GPU"
NEVER_ON_GPU = "never run on a GPU (advisor selfcheck there)"


class SchemeHere(OpenDocument):
    """One method and scheme on a runtime, with the runtime's options in its name; of a trap the scheme alone."""

    name: str
    refused: str | None = None
    slow: str | None = None
    """Loads, but was timed no faster than what is unquantized on the same runtime, or slower than with another option: its
    kernels (slow_paths.py) or its whole passes (slow_passes.py)."""
    untimed: str | None = None
    """Loads, but what it quantizes was not timed: whether that is fast is not known."""

    @property
    def status(self) -> str:
        return "refused" if self.refused else "slow path" if self.slow else "not timed" if self.untimed else "ready"


class RuntimeHere(OpenDocument):
    name: str
    what: str
    versions: dict[str, str]
    refused: str | None
    gpu: str
    schemes: tuple[SchemeHere, ...]


class MethodHere(OpenDocument):
    name: str
    what: str
    target: str
    cost: str
    """What applying it takes."""
    schemes: tuple[str, ...]
    runtimes: dict[str, str | None]
    """runtime -> null where the method can write for it here, else why not."""


def runtimes_here(
    device: Device,
    model_folder: Path | None = None,
    kernels: Sequence[KernelTiming] = (),
    inventory: Inventory | None = None,
    passes: Sequence[Contrast] = (),
    pythons: Mapping[str, str] | None = None,
    gpu: Device | None = None,
) -> tuple[RuntimeHere, ...]:
    """Every runtime (or those of `pythons`: name -> its interpreter), and every scheme of the catalogue on it; where there is a
    GPU also those of the GPU: of `gpu`, else of the first."""
    with folder_or_nominal(model_folder) as folder:
        probes = Probes(kernels, inventory, EIGHT_BIT_SHARE) if inventory is not None else None
        found, reports = [], selfcheck_record.shipped()
        for name, python in (pythons or {name: interpreter_of(name) for name in RUNTIMES}).items():
            candidates = {
                one.name: one
                for here in (device, *([gpu or on_gpu(device, 0)] if device.gpus else []))
                for entry in catalogue_of(here)
                for place in entry.runtimes
                if place.split("+")[0] == name
                for one in [candidate(entry, name, tuple(place.split("+")[1:]), folder, here, python)]
            }
            module = runtime(name)
            found.append(
                RuntimeHere(
                    name=name,
                    what=first_line(module.__doc__),
                    versions=versions(name, python),
                    refused=refusal(name, python, None, (), device.isa),
                    gpu=gpu_path(name, reports, device),
                    schemes=(
                        *(scheme_here(one, kernels, probes, passes) for one in candidates.values()),
                        *(traps(name, probes) if probes else ()),
                        *(SchemeHere(name=place, slow=words) for place, words in chunk_traps(name, passes)),
                    ),
                )
            )
    return tuple(found)


def scheme_here(one: Candidate, kernels: Sequence[KernelTiming], probes: Probes | None, passes: Sequence[Contrast]) -> SchemeHere:
    """Whether a candidate loads here, by what is known without timings and, where there are some, by them."""
    if refused := one.refused or crash(one, kernels):
        return SchemeHere(name=one.name, refused=refused)
    linears = slow_path(one.scheme, one.runtime, one.options, probes) if probes else None
    return SchemeHere(
        name=one.name,
        slow="; ".join(filter(None, (linears, slow_pass(one.name, passes)))) or None,
        untimed=untimed_of(one, probes, passes),
    )


def untimed_of(one: Candidate, probes: Probes | None, passes: Sequence[Contrast]) -> str | None:
    """What a candidate quantizes and nobody timed: its linears, or attention over its cache."""
    if one.target == "none" or (one.target == "kv_cache" and any(one.name in (pair.ours, pair.theirs) for pair in passes)):
        return None
    if probes is None:
        return UNTIMED
    if one.target == "kv_cache":
        return "its passes were not set beside those with a plain cache"
    return untimed(one.scheme, one.runtime, one.options, probes)


def gpu_path(name: str, reports: Sequence[SelfCheck], device: Device) -> str:
    """What is known of a runtime on GPUs, by its options, from the reports of `advisor selfcheck` in the repository: on which it
    computed what it should, and on which of this machine's it was not seen."""
    if not hasattr(runtime(name), "on_gpu"):
        return NO_GPU_PATH
    here = {device_class(on_gpu(device, number)) for number in range(len(device.gpus))}
    said: dict[str, list[str]] = {}
    for place in gpu_places(name):
        seen = selfcheck_record.ran(name, tuple(place.split("+")[1:]), reports)
        words = f"checked on {' and '.join(seen)}" if seen else NEVER_ON_GPU
        if seen and (unseen := sorted(here - {*seen})):
            words += f", not on {' and '.join(unseen)} (advisor selfcheck there)"
        said.setdefault(words, []).append(place)
    return "; ".join(f"{', '.join(places)}: {words}" for words, places in said.items())


def crash(one: Candidate, kernels: Sequence[KernelTiming]) -> str | None:
    """How the scheme's kernel ended its process when it was timed, and the option that avoids it where one does."""
    place = place_of(one.scheme, one.runtime, one.options)
    same = [timing for timing in kernels if timing.runtime == place[0] and same_operator(timing.scheme, one.scheme)]
    words = [timing.refused for timing in same if timing.option == place[1] and crashed(timing.refused or "")]
    if not words:
        return None
    better = next((timing.option for timing in same if timing.option not in ("", place[1]) and timing.time_s), None)
    return f"its kernel crashes here: {words[0]}" + (f"; the option {better} avoids it" if better else "")


def traps(name: str, probes: Probes) -> tuple[SchemeHere, ...]:
    """Kernels of a runtime that no run offers, where they were timed slow: scheme@runtime+option."""
    return tuple(
        SchemeHere(name=f"{probe.scheme.name}@{family(name, (option,))}", slow=f"{words}; it is {first_line(probe.__doc__)}")
        for probe in (PROBES[trap] for trap in TRAPS)
        if probe.runtime == name
        for option in probe.options
        if (words := slow_path(probe.scheme, name, (option,), probes))
    )


def methods_here(device: Device, model_folder: Path | None = None) -> tuple[MethodHere, ...]:
    """Every method: its schemes, and for each runtime whether it can write for it on this machine. A cache that is an option of
    the session is ready where the weights under it can be written."""
    with folder_or_nominal(model_folder) as folder:
        found = []
        for name in METHODS:
            module = method(name)
            listed = [(entry, place) for entry in catalogue_of(device) if entry.method == name for place in entry.runtimes]
            there = {place: [scheme(entry.scheme) for entry, at in listed if at.split("+")[0] == place] for place in RUNTIMES}
            offered = tuple({one.name: one for one in (*module.schemes(), *chain(*there.values()))}.values())
            places = {
                place: method_refusal(name, (*module.schemes(), *there[place]), folder, place, device) for place in RUNTIMES
            }
            found.append(
                MethodHere(
                    name=name,
                    what=first_line(module.__doc__),
                    target=module.TARGET,
                    cost=module.COST,
                    schemes=tuple(one.name for one in offered),
                    runtimes=places,
                )
            )
    return tuple(found)


def method_refusal(name: str, offered: Iterable[Scheme], folder: Path, place: str, device: Device) -> str | None:
    """None where one of the method's schemes can be written for a runtime, else what is missing here, or the first reason."""
    written = (recipe(name, one, place) for one in offered)
    reasons = [method(writes).refuse(folder, made, place) for writes, made in written]
    if all(reasons):
        return next((reason for reason in reasons if reason and "not installed" in reason), reasons[0])
    return refusal(place, interpreter_of(place), None, (), device.isa) or missing_writer(place)


@contextmanager
def folder_or_nominal(folder: Path | None) -> Iterator[Path]:
    """The model's folder, or one that holds the nominal config alone while it is entered."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="quantadvisor-nominal-") as scratch:
        (Path(scratch) / "config.json").write_text(json.dumps(NOMINAL))
        yield Path(scratch)


def first_line(text: str | None) -> str:
    """The first line of a docstring, without a last colon's list or full stop."""
    return (text or "").strip().splitlines()[0].rstrip(".") if text else ""


def names(found: Iterable[SchemeHere], status: str) -> list[str]:
    """Schemes of a runtime with a status, without the runtime's own name: `rtn-w4-g64+bf16`."""
    shown = []
    for one in found:
        if one.status == status:
            left, right = one.name.split("@")
            shown.append("+".join((left, *right.split("+")[1:])))
    return shown


class DeviceHere(OpenDocument):
    """A device: this machine, or a GPU that only its data sheet and kernel tables are known of."""

    name: str
    here: bool
    refused: str | None
    """Why `advisor run` does not measure on it."""
    memory_bytes: int
    read_bytes_per_s: float | None = None
    flops_per_s: dict[str, float] = {}
    kernels: dict[str, tuple[str, ...]] = {}
    """Scheme -> runtimes whose kernels were measured on it by others: what `advisor plan` knows."""


def devices_here(device: Device) -> tuple[DeviceHere, ...]:
    """This machine and its GPUs first, then the GPUs that can be planned for."""
    return (
        DeviceHere(name=device.name, here=True, refused=None, memory_bytes=device.memory_bytes),
        *(DeviceHere(name=one.name, here=True, refused=None, memory_bytes=one.memory_bytes) for one in device.gpus),
        *(
            DeviceHere(
                name=name,
                here=False,
                refused="not this machine: advisor plan --device " + name,
                memory_bytes=one.memory_bytes,
                read_bytes_per_s=one.read_bytes_per_s,
                flops_per_s=one.flops_per_s,
                kernels={scheme: tuple(sorted(runtimes_with(name, scheme))) for scheme in tables().get(name, {})},
            )
            for name, one in gpus().items()
        ),
    )
