"""On first contact with a GPU: the Triton kernels that a run may cite are checked before they are. Never run on a GPU.

What `advisor selfcheck` found there with these versions stands; what it did not look at is checked now, and kept beside it
(kernels/selfcheck_record.py). A kernel that is wrong, or slower than what it replaces at the workload's numbers of rows,
refuses its candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from quantadvisor.documents import Candidate, CandidateFailed, Device, Scheme, SelfCheck, Workload
from quantadvisor.kernels import gpu_timing, selfcheck_record
from quantadvisor.kernels.processes import ProbeProcess
from quantadvisor.kernels.triton_modules import CACHES, LLM_INT8, NF4, weight_only
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling import selfcheck_child
from quantadvisor.profiling.gpus import device_class, environment

from .candidates import GPU_CATALOGUE, asked_runtimes, session_options
from .predict import outlier_channels
from .selfcheck_command import LIST, START_S, one_check

CHILD = Path(selfcheck_child.__file__)
TRITON = "triton"
NOTE = "checked by advisor run on first contact: the kernels that it may cite"


def kernels_of(made: Scheme, options: Sequence[str]) -> tuple[str, ...]:
    """The kernels, by their names in `advisor selfcheck`, that a scheme takes in the triton runtime."""
    caches = [f"decode-attention-{CACHES[one]}" for one in session_options(TRITON, tuple(options), made) if one in CACHES]
    weights, inputs = made.weights, made.activations
    if weights is None:
        return tuple(caches)
    if inputs is not None:
        return (LLM_INT8 if outlier_channels(made) else "w8a8" if inputs.number == "int" else "fp8", *caches)
    if weights.number == "codebook":
        return (NF4, *caches)
    return (f"{weight_only(int(weights.bits), weights.group_size or 0)}{'' if weights.symmetric else '-asymmetric'}", *caches)


def cited() -> frozenset[str]:
    """Of every place of the catalogue in which our kernels compute."""
    places = [(entry.scheme, place) for entry in GPU_CATALOGUE for place in entry.runtimes if place.split("+")[0] == TRITON]
    return frozenset(kernel for name, place in places for kernel in kernels_of(scheme(name), place.split("+")[1:]))


def check_kernels(workload: Workload, device: Device, say: Callable[[str], None]) -> None:
    """Nothing on a CPU, without the triton runtime, or where all of them were checked. Where torch has no GPU nothing is kept:
    the runtime's own refusal tells why."""
    asked = asked_runtimes(workload)
    if device.kind != "cuda" or TRITON not in asked:
        return
    with ProbeProcess(device.threads, CHILD, asked[TRITON], environment(device)) as process:
        try:
            listed = process.ask({"probe": LIST, "interpreted": False}, START_S)
        except CandidateFailed as error:
            listed = {"failed": str(error)}
        if "failed" in listed:
            say(f"Triton kernels cannot be checked: {listed['failed']}")
            return
        known = selfcheck_record.known(listed["device"], listed["versions"])
        todo = unchecked(listed["subjects"], known)
        checks = []
        for place, name in enumerate(todo):
            say(f"Triton kernel {name} ({place + 1} of {len(todo)})")
            checks.append(one_check(process, name, False))
    if checks:
        empty = SelfCheck(proof="gpu", device=listed["device"], versions=listed["versions"], note=NOTE, kernels=())
        before = known or empty
        selfcheck_record.keep(before.model_copy(update={"kernels": (*before.kernels, *checks)}))


def unchecked(subjects: Iterable[str], known: SelfCheck | None) -> list[str]:
    """The subjects, named `KERNEL SHAPE`, of cited kernels of which the record has nothing."""
    done, wanted = {one.name for one in known.kernels} if known else set[str](), cited()
    return [name for name in subjects if name.partition(" ")[0] in wanted - done]


def proven_products(device: Device, rows: Collection[int]) -> dict[str, Scheme]:
    """Name -> a scheme of the catalogue that takes it, of the products that the record clears on this GPU at so many rows."""
    return {kernel: made for kernel, made in products().items() if cleared((kernel,), device, rows) is None}


def products() -> dict[str, Scheme]:
    """Kernel by its name in `advisor selfcheck` -> a scheme of the catalogue that takes it. Not LLM.int8(): its time hangs on how
    many channels of the activations are loud, which a ghost shows."""
    found: dict[str, Scheme] = {}
    for entry in GPU_CATALOGUE:
        made = scheme(entry.scheme)
        if TRITON in entry.runtimes and not made.quantizes_cache and not outlier_channels(made):
            found |= dict.fromkeys(kernels_of(made, ()), made)
    return found


def cleared(kernels: Sequence[str], device: Device, rows: Collection[int] | None = None) -> str | None:
    """Why the kernels may not be cited on this GPU at so many rows; None where the record clears them all."""
    if find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    return selfcheck_record.refusal(device_class(device), kernels, gpu_timing.versions(), rows)


def proven(candidates: Iterable[Candidate], device: Device, rows: Collection[int]) -> tuple[Candidate, ...]:
    """The candidates, those of the triton runtime refused whose kernels the record does not clear on this GPU at the numbers
    of rows that the workload's phases have."""
    return tuple(one.model_copy(update={"refused": one.refused or unproven(one, device, rows)}) for one in candidates)


def unproven(candidate: Candidate, device: Device, rows: Collection[int]) -> str | None:
    if device.kind != "cuda" or candidate.runtime != TRITON or candidate.refused:
        return None
    kernels = kernels_of(candidate.scheme, candidate.options)
    return cleared(kernels, device, rows) if kernels else None
