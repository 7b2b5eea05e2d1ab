"""`advisor explain`, the measuring: a checkpoint and the unquantized model on one runtime, interleaved, in real workers.

Wall times are those of plain rounds of the workload; the parts come from the runtime's own profiler, beside them.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from quantadvisor.documents import (
    BadInput,
    CandidateFailed,
    Checkpoint,
    Device,
    Explanation,
    Figure,
    Inventory,
    Observation,
    OperatorCount,
    Operators,
    Peaks,
    PhaseTime,
    Scheme,
    Workload,
)
from quantadvisor.kernels.timing import figure
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.measure import Round, interleave, recorded
from quantadvisor.profiling.workers import RunningWorker

from .candidates import asked_runtimes, candidate_name
from .checkpoint import check_quantized, check_same_model, described, inspect, place_on_gpu
from .context import Context
from .device_choice import chosen_device, unused
from .explain import explain, number_of, plain_bytes, roof_of_linears
from .mends import UNTOLD
from .pipeline import load_model
from .prove import start_workers
from .stages import Progress
from .stored_graphs import saturation_notes
from .survey import PROFILED_TOKENS, SHORT_DECODE, gpu_during, peaks_of

ROUNDS = 5
LOOKS = 3
"""Looks at the operators of each, in turns."""
PARTS = ("linears_s", "attention_s", "cache_s", "other_s")


def explain_checkpoint(path: str, workload: Workload, place: str | None, progress: Progress) -> Explanation:
    """Inspect, measure beside the unquantized model, take apart."""
    with progress.stage("Checkpoint"):
        device, place = place_of(path, place, workload)
        for note in device.notes:
            progress.say(note)
        checkpoint = inspect(path, place, device.isa, asked_runtimes(workload))
        check_quantized(checkpoint)
    with progress.stage("Model"):
        model = load_model(workload, progress)
        check_same_model(checkpoint, model.inventory, workload.model)
    with progress.stage("Roofs of the device"):
        peaks = peaks_of(device).peaks
    with tempfile.TemporaryDirectory(prefix="quantadvisor-explain-") as scratch:
        context = Context(workload, device, model.inventory, model.source, model.folder, Path(scratch), progress)
        with progress.stage("The checkpoint beside the unquantized model"):
            quantized, unquantized, notes = observe_both(context, checkpoint, peaks)
    notes += device.notes
    notes += saturation_notes(Path(checkpoint.path)) if device.kind == "cpu" else ()
    return explain(checkpoint, quantized, unquantized, workload, model.inventory, peaks, notes)


def place_of(path: str, place: str | None, workload: Workload) -> tuple[Device, str | None]:
    """The workload's device, and the checkpoint's runtime as it is there. Where that has none on the GPU, `device: auto` is the
    CPU, and `cuda:N` BadInput."""
    device = chosen_device(workload)
    if device.kind == "cpu":
        return device, place
    made = described(path)
    there = place_on_gpu(made.format, place, device)
    if there is not None:
        return device, there
    why = f"{place or f'a checkpoint in {made.format} format'} does not run on {device.name} here"
    if workload.device != "auto":
        raise BadInput("device", why, "use device: cpu, or another --runtime")
    return unused(chosen_device(workload.model_copy(update={"device": "cpu"})), device, why), place


def observe_both(
    context: Context, checkpoint: Checkpoint, peaks: Peaks | None
) -> tuple[Observation, Observation, tuple[str, ...]]:
    """(checkpoint, unquantized, notes). Where no unquantized model can run, its linears are modelled by the roofline."""
    plain = candidate_name("none", checkpoint.plain, checkpoint.runtime, checkpoint.options)
    exported, build = (context.build("none", scheme(name), checkpoint.runtime) for name in ("fp32", checkpoint.plain))
    wanted = [build] if checkpoint.runtime == "torch" else [exported, build]
    reason = context.build_all(wanted, processes=1)[build.out].failed
    ours = f"{checkpoint.scheme.name}@{checkpoint.place}"
    artifacts: dict[str, tuple[Path, Scheme]] = {ours: (Path(checkpoint.path), checkpoint.scheme)}
    if reason is None:
        artifacts[plain] = (build.out, scheme(checkpoint.plain))
    with ExitStack() as stack:
        starting = {
            name: context.worker(checkpoint.runtime, artifact, checkpoint.options, made)
            for name, (artifact, made) in artifacts.items()
        }
        context.progress.say(f"loading {' and '.join(starting)}")
        workers, failed = start_workers(starting, stack)
        refuse_failed(checkpoint, failed.get(ours))
        traffic = context.workload.traffic
        rounds, broke = interleave(
            workers,
            context.prompts,
            traffic,
            ROUNDS,
            output_tokens=min(SHORT_DECODE, traffic.output_length),
            progress=context.progress.say,
        )
        failed |= broke
        refuse_failed(checkpoint, failed.get(ours))
        looks, broke = look_in_turns(context, {name: workers[name] for name in rounds})
        failed |= broke
        refuse_failed(checkpoint, failed.get(ours))
        mine = observation(context, ours, rounds[ours], looks[ours])
        if plain in looks:
            return mine, observation(context, plain, rounds[plain], looks[plain]), ()
    reason = reason or failed.get(plain)
    note = f"the unquantized model did not run on {checkpoint.place} ({reason}): its linears are modelled by the roofline"
    return mine, modelled(checkpoint, mine, context.inventory, peaks, context.workload), (note,)


def refuse_failed(checkpoint: Checkpoint, reason: str | None) -> None:
    if reason is not None:
        raise BadInput(checkpoint.path, f"does not run on {checkpoint.place}: {reason}", "see advisor runtimes")


def look_in_turns(context: Context, workers: dict[str, RunningWorker]) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Operators and times by part, LOOKS of each, in turns; decode at the declared batch."""
    traffic = context.workload.traffic
    few = not recorded(traffic) and context.prompts.size <= max(PROFILED_TOKENS, traffic.prompt_length)
    prompts, batch = (context.prompts, None) if few else (context.prompts[:1], traffic.concurrency)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    failed: dict[str, str] = {}
    for turn in range(LOOKS):
        for name in list(workers) if turn % 2 else list(workers)[::-1]:
            if name in failed:
                continue
            context.progress.say(f"{name}: time by part, look {turn + 1} of {LOOKS}")
            try:
                seen = workers[name].operators(prompts, batch)
            except CandidateFailed as error:
                failed[name] = str(error)
                found.pop(name)
                continue
            found[name].append(seen | {"scale": traffic.concurrency / len(prompts)})
    return found, failed


def observation(context: Context, name: str, rounds: list[Round], looks: list[dict[str, Any]]) -> Observation:
    """Plain wall times of the rounds; parts and operators of the least disturbed look, so scaled that they fit them."""
    traffic = context.workload.traffic
    kind: Literal["measured", "modelled"] = "modelled" if rounds[0].recorded else "measured"
    prefill, scale = steadiest(looks, "prefill")
    decode, _ = steadiest(looks, "decode")
    prefill_wall, decode_wall = figure([r.ttft_s for r in rounds], kind), figure([r.tpot_s for r in rounds])
    prefill_scale, decode_scale = fit(prefill, scale, prefill_wall.median), fit(decode, 1.0, decode_wall.median)
    users, length = traffic.concurrency, traffic.prompt_length
    return Observation(
        name=name,
        kind=kind,
        prefill=time_of("prefill", prefill, prefill_wall, prefill_scale, users, users * length, length),
        decode=time_of("decode", decode, decode_wall, decode_scale, users, users, length),
        prefill_operators=operators_of("prefill", prefill, prefill_scale),
        decode_operators=operators_of("decode", decode, decode_scale),
    )


def steadiest(looks: list[dict[str, Any]], phase: str) -> tuple[dict[str, Any], float]:
    """The look that was disturbed least, and the rows that stand for each of its own."""
    look = min(looks, key=lambda look: float(look[phase]["wall_s"]))
    return look[phase], look["scale"]


def fit(part: dict[str, Any], scale: float, wall_s: float) -> float:
    """The factor from a look's times to those of plain passes of `wall_s`.

    Slower plain passes were disturbed, all parts alike; faster ones only lack the profiler's own time, which is no part's,
    unless the parts alone exceed them.
    """
    total: float = scale * sum(part[key] for key in PARTS)
    own_s: float = scale * part["wall_s"]
    if 0 < own_s < wall_s:
        return scale * wall_s / own_s
    return scale * min(1.0, wall_s / total) if total > 0 else scale


def time_of(
    phase: Literal["prefill", "decode"], part: dict[str, Any], wall: Figure, scale: float, batch: int, tokens: int, context: int
) -> PhaseTime:
    """One phase of the whole batch."""
    timed = {key: scale * part[key] for key in PARTS}
    return PhaseTime(
        phase=phase, batch=batch, tokens=tokens, context_tokens=context, wall_s=wall,
        residue_s=wall.median - sum(timed.values()), gpu=gpu_during(part), **timed,
    )  # fmt: skip


def operators_of(phase: Literal["prefill", "decode"], part: dict[str, Any], scale: float) -> Operators:
    rows = [row if row.get("time_s") is None else row | {"time_s": scale * row["time_s"]} for row in part["operators"]]
    return Operators(
        phase=phase,
        operators=tuple(OperatorCount.model_validate(row) for row in rows),
        linears=part["linears"],
        quantized_linears=part["quantized_linears"],
        cache=part.get("cache", ""),
        notes=(
            *part["notes"],
            f"profiler's times x {scale:.2f}: the rows of the batch, at the pace of plain passes",
        ),
    )


def modelled(
    checkpoint: Checkpoint, quantized: Observation, inventory: Inventory, peaks: Peaks | None, workload: Workload
) -> Observation:
    """What the unquantized model would cost at best: linears at the roofline, the rest as it is in the checkpoint."""
    plain, traffic = plain_bytes(checkpoint), workload.traffic
    made: dict[str, PhaseTime] = {}
    for phase, rows in (("prefill", traffic.prompt_length * traffic.concurrency), ("decode", traffic.concurrency)):
        ours: PhaseTime = getattr(quantized, phase)
        roof = roof_of_linears(inventory, Scheme(name="plain"), peaks, rows, traffic.concurrency, plain, number_of(None, plain))
        if not ours.linears_s:
            raise BadInput(checkpoint.path, f"its unquantized model cannot run, and {UNTOLD}")
        if roof is None:
            raise BadInput(checkpoint.path, "its unquantized model cannot run, and the device's roofs are unknown")
        wall = ours.wall_s.median - ours.linears_s + roof
        changed = {"linears_s": roof, "wall_s": figure([wall], "modelled", "linears at the roofline")}
        made[phase] = ours.model_copy(update=changed)
    nothing = Operators(operators=quantized.decode_operators.operators, linears=checkpoint.linears, quantized_linears=0)
    return Observation(
        name="the roofline of unquantized linears",
        kind="modelled",
        prefill=made["prefill"],
        decode=made["decode"],
        prefill_operators=nothing.model_copy(update={"operators": quantized.prefill_operators.operators}),
        decode_operators=nothing,
    )
