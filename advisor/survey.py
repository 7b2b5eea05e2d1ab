"""The profile of a run: device, model, baseline on its real runtime, activations, kernels. One stage each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from quantadvisor.documents import (
    ActivationStats,
    BadInput,
    CandidateFailed,
    Device,
    Document,
    GpuState,
    KernelFactors,
    KernelTiming,
    MemoryLedger,
    Operators,
    PhaseTime,
    Scheme,
    write_text,
)
from quantadvisor.kernels.probe import probe_kernels
from quantadvisor.kernels.registry import OFFERED, PROBES
from quantadvisor.kernels.timing import figure
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.device import measure_peaks
from quantadvisor.profiling.gpu_peaks import with_peaks
from quantadvisor.profiling.gpu_state import state_of
from quantadvisor.profiling.ledger import memory_ledger, plain_cache_bytes, pool_bytes
from quantadvisor.profiling.measure import Round, peak_of, recorded, run_round
from quantadvisor.profiling.nvml import Summary
from quantadvisor.profiling.quality import passkey_found
from quantadvisor.profiling.workers import RunningWorker

from .candidates import GPU_CATALOGUE, asked_runtimes
from .context import EVALUATION_TOKENS, Context
from .diagnose import options_of, phase_sizes, split
from .first_contact import proven_products
from .gpu_kernels import calibrated, sheet_of, table_rows, table_timings, without_probed
from .gpu_probe import timed_here

BASELINE_ROUNDS = 2
SHORT_DECODE = 16
KERNEL_BUDGET_S = 15.0
PROFILED_TOKENS = 4096
PROBED = tuple(name for name in OFFERED if PROBES[name].runtime in ("torch", "onnxruntime", "openvino", "triton"))
"""Kernels that a run times: those that its predictions scale by. Of vLLM and llama.cpp it runs whole ghosts instead."""


class Kernels(Document):
    timings: tuple[KernelTiming, ...]
    calibration: KernelFactors | None = None


class BaselineRun(Document):
    """The baseline under the workload: raw rounds, parts of its time, bytes."""

    name: str
    rounds: tuple[Round, ...]
    phases: tuple[PhaseTime, ...]
    operators: Operators
    prefill_operators: Operators | None = None
    memory: MemoryLedger
    load_s: float


class Statistics(Document):
    reference: str
    activations: ActivationStats | None


def peaks_of(device: Device) -> Device:
    if device.kind == "cuda":
        return with_peaks(device)
    return device.model_copy(update={"peaks": measure_peaks(device.threads)})


def make_reference(context: Context, end: int = EVALUATION_TOKENS, start: int = 0) -> Path:
    """fp32 log-probabilities of tokens `start` to `end` of the evaluation text, float16 [tokens, V], through torch; kept
    for later runs."""
    path = context.model_cache / f"reference-{context.evaluation[1].sha256[:12]}-{start}-{end}.npy"
    if path.exists():
        return path
    context.progress.say(f"fp32 logits of {end - start:,} tokens")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name("." + path.name)
    with context.worker("torch", context.model_folder, (), scheme("fp32")) as worker:
        worker.write_reference(context.windows(end, start), scratch)
    scratch.rename(path)
    return path


def reference_finds(context: Context) -> bool:
    """Does the fp32 model in torch find the passkey? Kept: asked only where a cache has lost it."""
    prompt, answer = context.passkey()
    path = context.model_cache / f"passkey-{len(prompt)}.json"
    if not path.exists():
        with context.worker("torch", context.model_folder, (), scheme("fp32")) as worker:
            found = passkey_found(worker, prompt, answer)
        write_text(path, json.dumps(found))
    return bool(json.loads(path.read_text()))


def statistics(context: Context) -> Statistics:
    """The fp32 reference and what the activations look like."""
    from transformers.utils import logging

    from quantadvisor.profiling.activations import collect_activations

    logging.disable_progress_bar()
    reference = make_reference(context)
    context.progress.say("activation maxima and outliers per layer")
    stats = collect_activations(context.model_folder, context.calibration[:16])
    return Statistics(reference=str(reference), activations=stats)


def run_baseline(context: Context, name: str) -> BaselineRun:
    """Rounds of the workload on the baseline, then its time by parts and its memory by tensor."""
    runtime, scheme_name = split(name)
    made, options = scheme(scheme_name), options_of(name)
    build = context.build(name.split("-")[0], made, runtime)
    built = context.build_all([build])[build.out]
    if built.failed:
        raise no_baseline(name, built.failed)
    try:
        with context.worker(runtime, build.out, options, made, allowance=context.allowance(name)) as worker:
            one_token, shorter = shorter_peaks(context, worker)
            run_round(worker, context.prompts, context.workload.traffic, 2)
            rounds = []
            for index in range(BASELINE_ROUNDS):
                context.progress.say(f"{name}: round {index + 1} of {BASELINE_ROUNDS}")
                rounds.append(run_round(worker, context.prompts, context.workload.traffic, SHORT_DECODE))
            context.progress.say(f"{name}: time by part")
            looked = look_at_operators(context, worker)
            loaded = worker.loaded
    except CandidateFailed as error:
        raise no_baseline(name, str(error)) from None
    memory = memory_of(context, made, runtime, one_token, shorter, peak_of(rounds))
    return BaselineRun(
        name=name,
        rounds=tuple(rounds),
        phases=looked.phases,
        operators=looked.decode,
        prefill_operators=looked.prefill,
        memory=memory,
        load_s=loaded.load_s,
    )


def no_baseline(name: str, reason: str) -> BadInput:
    return BadInput("baseline", f"{name} cannot be measured here: {reason}", "name another, or declare lighter traffic")


def profiled_prompts(context: Context) -> np.ndarray:
    """The declared batch, or as many of its rows as keep the profiled prefill short; one where caches are recorded."""
    if recorded(context.workload.traffic):
        return context.prompts[:1]
    rows = max(1, PROFILED_TOKENS // context.prompts.shape[1])
    return context.prompts[:rows]


class Looked(NamedTuple):
    """What ran in a prefill (of as many rows as are profiled) and in a decode step at the declared batch, and the time of both by
    part."""

    prefill: Operators
    decode: Operators
    phases: tuple[PhaseTime, ...]


def look_at_operators(context: Context, worker: RunningWorker) -> Looked:
    prompts = profiled_prompts(context)
    batch = context.workload.traffic.concurrency if recorded(context.workload.traffic) else None
    seen = worker.operators(prompts, batch)
    rows, length = prompts.shape
    phases = (
        phase_time("prefill", seen["prefill"], rows, rows * length, length),
        phase_time("decode", seen["decode"], batch or rows, batch or rows, length),
    )
    return Looked(operators_in("prefill", seen["prefill"]), operators_in("decode", seen["decode"]), phases)


def operators_in(phase: Literal["prefill", "decode"], part: dict[str, Any]) -> Operators:
    return Operators(
        phase=phase,
        operators=part["operators"],
        linears=part["linears"],
        quantized_linears=part["quantized_linears"],
        cache=part.get("cache", ""),
        notes=tuple(part["notes"]),
    )


def phase_time(
    phase: Literal["prefill", "decode"], part: dict[str, Any], batch: int, tokens: int, context_tokens: int
) -> PhaseTime:
    """One phase as a document; residue = wall time of plain passes less the parts of the observed ones."""
    timed = {key: part[key] for key in ("linears_s", "attention_s", "cache_s", "other_s")}
    return PhaseTime(
        phase=phase,
        batch=batch,
        tokens=tokens,
        context_tokens=context_tokens,
        wall_s=figure(part.get("walls_s") or [part["wall_s"]], "measured", "plain passes beside the observed ones"),
        residue_s=part["wall_s"] - sum(timed.values()),
        **timed,
        gpu=gpu_during(part),
    )


def gpu_during(part: dict[str, Any]) -> GpuState | None:
    return state_of([Summary(**part["gpu"])]) if part.get("gpu") else None


def shorter_peaks(context: Context, worker: RunningWorker) -> tuple[int, tuple[tuple[int, int], tuple[int, int]]]:
    """Peaks of a fresh process over one token, and over prompts of half and of three quarters the declared length, bytes."""
    prompts = context.prompts[:1] if recorded(context.workload.traffic) else context.prompts
    one = worker.generate(prompts[:1, :1], 2).peak_bytes
    lengths = [max(1, prompts.shape[1] * part // 4) for part in (2, 3)]
    half, more = ((length, worker.generate(prompts[:, :length], 2).peak_bytes) for length in lengths)
    return one, (half, more)


def memory_of(
    context: Context, made: Scheme, runtime: str, one_token: int, shorter: tuple[tuple[int, int], tuple[int, int]], peak: int
) -> MemoryLedger:
    """Bytes by tensor at the workload, beside the peak that the process really had: the report prints the error."""
    traffic = context.workload.traffic
    return memory_ledger(
        context.inventory,
        made,
        prompt_tokens=traffic.prompt_length,
        context_tokens=traffic.context_length,
        concurrency=traffic.concurrency,
        prefilled_rows=1 if recorded(traffic) else traffic.concurrency,
        one_token_bytes=one_token,
        shorter=shorter,
        measured_peak_bytes=peak,
        cache_element_bytes=plain_cache_bytes(runtime),
        pool=pool_bytes(context.inventory, made, runtime, traffic.context_length, traffic.concurrency),
    )


def kernels_of(context: Context, device: Device, base: BaselineRun) -> Kernels:
    """The kernels' times on the device: probed on a CPU; of a GPU also looked up, and calibrated on the baseline."""
    if device.kind == "cuda":
        return gpu_kernels_of(context, device, base)
    return probe(context, device)


def gpu_kernels_of(context: Context, device: Device, base: BaselineRun) -> Kernels:
    sheet = sheet_of(device)
    if sheet is None:
        return Kernels(timings=())
    runtime, scheme_name = split(base.name)
    mine = (scheme(scheme_name), runtime, options_of(base.name))
    by = calibrated(sheet, context.inventory, mine, base.phases)
    places = [(scheme(entry.scheme), place.split("+")) for entry in GPU_CATALOGUE for place in entry.runtimes]
    uses = [mine, *((made, words[0], tuple(words[1:])) for made, words in places)]
    sizes = phase_sizes(context.workload)
    rows = (*table_rows(sizes), *(n for phase in base.phases for n in (phase.tokens, phase.batch)))
    tables = table_timings(sheet, context.inventory.linears, uses, rows, by)
    place = context.cache / "kernels"
    counts = list(sizes.values())
    timed = timed_here(context.inventory, device, proven_products(device, counts), counts, place, context.progress.say)
    return Kernels(timings=without_probed(tables, timed), calibration=by)


def probe(context: Context, device: Device) -> Kernels:
    """Every kernel at the model's (N, K) and the workload's M, and about it, in the interpreter that its runtime will run in."""
    traffic = context.workload.traffic
    decode, prefill = traffic.concurrency, min(4096, traffic.prompt_length * traffic.concurrency)
    timings = probe_kernels(
        context.inventory.linears,
        sorted({decode, prefill}),
        device,
        probes=PROBED,
        budget_s=KERNEL_BUDGET_S,
        extra_ms=[m for m in (4 * decode, prefill // 4, 16, 64, 256) if m not in (decode, prefill)],
        progress=lambda done, total, what: context.progress.say(f"{what} ({done} of {total})"),
        cache=context.cache / "kernels",
        pythons=asked_runtimes(context.workload),
    )
    return Kernels(timings=timings)
