"""Which configuration of a Triton kernel runs a problem on a device, by time: block sizes, warps, stages, parts of K.

Tried are the static choice and those of the golden table's configurations for the device's target that break no rule: no spill,
shared memory within the limit, the right matrix instruction. Each must give numbers within what its formats allow. Another than
the static one is taken where the intervals of their times are apart. Choices are kept by device, with the versions of torch,
triton and CUDA and the golden table that they belong to. Without any, and in the interpreter, the static choice stands.

Times come from a timer that the caller gives, `gpu_timing.interleaved` on a GPU, and with each choice is kept what the GPU did
meanwhile. Never run on one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from quantadvisor.documents import Document, Figure, GpuState, compared

from .selfcheck_record import place
from .timing import figure
from .triton_compile import GOLDEN, TRIED, broken_rules

if TYPE_CHECKING:
    from .triton_launch import Tile
    from .triton_subjects import Subject

Sizes = tuple[int, int, int]
"""Of a product M, N, K; of attention sequences x cache heads, query heads that share one, width of a head."""
Problem = tuple[str, Sizes]
"""A kernel, as the golden table's `tried/` entries name it, and its sizes."""
Timer = Callable[[Mapping[str, Callable[[], Any]]], tuple[dict[str, list[float]], dict[str, str]]]
"""Calls -> (seconds of each, one sample a round; why a call has none)."""
Observer = Callable[[Callable[[], "Choice"]], tuple["Choice", GpuState | None]]
"""Runs what it is given -> (what came of it, what the GPU did meanwhile; None where NVML tells nothing)."""
ROWS = (1, 16, 64, 512, 4096)
"""The M that are timed; between them the next larger one decides."""
ATTENTION_ROWS = ROWS[:4]
ATTENDING = "decode-attention-"
TOKENS = 2048
"""Of the cache that attention is timed on. Its parts follow from the length and are not chosen here."""


class Choice(Document):
    kernel: str
    sizes: Sizes
    tile: tuple[int, int, int, int, int]
    """m, n, k, warps, stages"""
    splits: int | None
    time_s: float | None
    """Median of one call; None where nothing could be timed."""
    usual_s: float | None
    """Of the static choice."""
    tried: int
    left_out: dict[str, str]
    """Configuration -> why it was not timed."""
    gpu: GpuState | None = None
    """Clocks, power and throttling while it was timed."""


class Choices(Document):
    device: str
    versions: dict[str, str]
    table: str
    choices: tuple[Choice, ...] = ()


forced: ContextVar[tuple[str, tuple[Tile, int | None]] | None] = ContextVar("forced", default=None)


@contextmanager
def configured(kernel: str, tile: Tile, splits: int | None) -> Iterator[None]:
    """Inside the block that kernel is launched so."""
    before = forced.set((kernel, (tile, splits)))
    try:
        yield
    finally:
        forced.reset(before)


def chosen(kernel: str, sizes: Sizes, x: Any) -> tuple[Tile, int | None] | None:
    """(tile, parts of K) for a launch on x's device; None: the static choice."""
    now = forced.get()
    if now is not None and now[0] == kernel:
        return now[1]
    return on_this_gpu().get((kernel, rounded(sizes))) if x.is_cuda else None


def rounded(sizes: Sizes) -> Sizes:
    """With the M that was timed for it."""
    return next((rows for rows in ROWS if rows >= sizes[0]), ROWS[-1]), *sizes[1:]


@cache
def on_this_gpu() -> dict[Problem, tuple[Tile, int | None]]:
    from .gpu_timing import gpu_name, versions
    from .triton_launch import Tile

    return {(one.kernel, one.sizes): (Tile(*one.tile), one.splits) for one in kept(gpu_name(), versions())}


@cache
def table_mark() -> str:
    return hashlib.sha256(GOLDEN.read_bytes()).hexdigest()[:16]


def kept(device: str, versions: dict[str, str]) -> tuple[Choice, ...]:
    """What was chosen on that device with these versions and this golden table; none where anything differs."""
    try:
        found = Choices.read(place(device, "tuning"))
    except (OSError, ValidationError):
        return ()
    return found.choices if (found.versions, found.table) == (versions, table_mark()) else ()


def tune(
    problems: Iterable[Problem],
    device: str,
    versions: dict[str, str],
    sm: int,
    processors: int,
    timer: Timer,
    observed: Observer,
    *,
    on: str = "cuda",
) -> tuple[Choice, ...]:
    """Choices for the problems, those that are missing timed now and kept. `on`: torch's device."""
    known = {(one.kernel, one.sizes): one for one in kept(device, versions)}
    wanted = list(dict.fromkeys(problems))
    for problem in wanted:
        if problem not in known:
            made, gpu = observed(partial(timed, problem, sm, processors, timer, on))
            known[problem] = made.model_copy(update={"gpu": gpu})
            found = Choices(device=device, versions=versions, table=table_mark(), choices=tuple(known.values()))
            place(device, "tuning").parent.mkdir(parents=True, exist_ok=True)
            found.write(place(device, "tuning"))
    on_this_gpu.cache_clear()
    return tuple(known[problem] for problem in wanted)


def tune_here(problems: Iterable[Problem], observed: Observer) -> tuple[Choice, ...]:
    """On the first GPU."""
    import torch

    from .gpu_timing import gpu_name, interleaved, versions
    from .triton_launch import processors, target

    x = torch.empty(0, device="cuda")
    return tune(problems, gpu_name(), versions(), target(x), processors(x), interleaved, observed)


def timed(problem: Problem, sm: int, processors: int, timer: Timer, on: str) -> Choice:
    from .triton_subjects import excess

    kernel, sizes = problem
    made = {f"{tile.label}-k{splits or 0}": (tile, splits) for tile, splits in configurations(kernel, sizes, sm, processors)}
    try:
        subject = subject_of(kernel, sizes, on)
        true = subject.true()
    except Exception as raised:  # no room for it on this GPU
        return decided(problem, made, {}, dict.fromkeys(made, _said(raised)))
    subject = replace(subject, true=lambda: true)
    calls: dict[str, Callable[[], Any]] = {}
    left_out: dict[str, str] = {}
    for name, configuration in made.items():
        call = _as(kernel, *configuration, subject.run)
        try:
            error = excess(call(), subject)
        except Exception as raised:  # what does not launch is not chosen
            left_out[name] = _said(raised)
            continue
        if error <= 1:
            calls[name] = call
        else:
            left_out[name] = f"an error {error:.3g} times what the formats allow"
    samples, uncaptured = timer(calls)
    return decided(problem, made, {name: figure(one) for name, one in samples.items()}, left_out | uncaptured)


def decided(
    problem: Problem, made: Mapping[str, tuple[Tile, int | None]], times: Mapping[str, Figure], left_out: dict[str, str]
) -> Choice:
    """`made`: the static choice first, which stands where it was timed and none is faster beyond noise, or nothing was timed."""
    first = next(iter(made))
    usual = times.get(first)
    best = min(times, key=lambda name: times[name].median, default=first)
    if usual is not None and compared(times[best], usual) != "faster":
        best = first
    tile, splits = made[best]
    return Choice(
        kernel=problem[0], sizes=problem[1], tile=(tile.m, tile.n, tile.k, tile.warps, tile.stages), splits=splits,
        time_s=times[best].median if times else None, usual_s=usual.median if usual else None,
        tried=len(made), left_out=left_out,
    )  # fmt: skip


def _said(raised: Exception) -> str:
    return f"{type(raised).__name__}: {(str(raised).strip() or 'no message').splitlines()[0][:200]}"


def _as(kernel: str, tile: Tile, splits: int | None, run: Callable[[], Any]) -> Callable[[], Any]:
    def call() -> Any:
        with configured(kernel, tile, splits):
            return run()

    return call


def configurations(kernel: str, sizes: Sizes, sm: int, processors: int) -> list[tuple[Tile, int | None]]:
    """The static choice first, each once. A tile has at most twice the rows that there are, 16 at least."""
    from .triton_launch import MOST_SPLITS, splits_of

    usual, step = usual_of(kernel, sizes, sm)
    others = [tile for tile in admitted(kernel, sm) if tile.k == usual.k or not kernel.startswith(ATTENDING)]
    if kernel.startswith(ATTENDING):
        return [(tile, None) for tile in dict.fromkeys([usual, *others])]
    m, n, k = sizes
    found = []
    for tile in [usual, *(tile for tile in others if tile.m <= max(16, 2 * m))]:
        steps = -(-k // (step * tile.k))
        full = splits_of(processors, -(-n // tile.n) * -(-m // tile.m), steps)
        found += [(tile, splits) for splits in (full, 1, full // 2, min(2 * full, steps, MOST_SPLITS)) if splits]
    return list(dict.fromkeys(found))


def usual_of(kernel: str, sizes: Sizes, sm: int) -> tuple[Tile, int]:
    """(static tile, how many times its k a step takes)"""
    from . import triton_decode_attention, triton_w4a16, triton_w8a8, triton_w8a16

    if kernel.startswith(ATTENDING):
        kind: Any = kernel.removeprefix(ATTENDING)
        return triton_decode_attention.tile_for(kind, sizes[2], sm), 1
    if group := re.fullmatch(r"w4a16-g(\d+)", kernel):
        return triton_w4a16.tile_for(sizes[0], int(group[1]), sm), 2
    if group := re.fullmatch(r"w8a16-g(\d+)", kernel):
        return triton_w8a16.tile_for(sizes[0], int(group[1]), sm), 1
    return triton_w8a8.tile_for(sizes[0], sm), 1


def admitted(kernel: str, sm: int) -> list[Tile]:
    """Configurations of the golden table that were compiled for the target and break no rule there."""
    from .triton_launch import Tile

    found = []
    for name, entry in json.loads(GOLDEN.read_text(encoding="utf-8"))["kernels"].items():
        parts = name.split("/")
        if name.startswith(f"{TRIED}{kernel}/") and parts[-1] == f"sm_{sm}" and not broken_rules(name, entry):
            found.append(Tile(*map(int, re.findall(r"\d+", parts[2]))))
    return found


def subject_of(kernel: str, sizes: Sizes, on: str) -> Subject:
    """Inputs, truth and allowed error of a problem."""
    from . import triton_subjects

    if kernel.startswith(ATTENDING):
        pairs, shared, dim = sizes
        return triton_subjects.attention(on, (pairs, shared, 1, dim, TOKENS), kernel.removeprefix(ATTENDING))
    return triton_subjects.product(kernel, on, sizes)
