"""Why a quantized checkpoint is not faster: its step taken apart against the unquantized one. Pure functions.

Who quantizes hopes that the whole request shrinks with the format: hoped = unquantized x stored bytes / plain bytes. The
gap from there to what is measured is the sum of named causes, phase by phase and part by part:

    linears     slower than the roofline lets the format make them: layers left unquantized (their own time), rounding of
                activations (its own operators), and the rest: a fallback or slow kernel. What the roofline does not let
                shrink: the wrong phase (prefill computes, weights of fewer bits do not help) or the wrong tensor
    attention   over the fresh prompt, slower than unquantized, or many times slower than its cache can be read: attention;
                reading an unquantized cache: wrong tensor
    the rest    launches and framework, unless operators run there that the unquantized model does not have, or weights were
                expanded to floats before they ran: a fallback

Where a profiler tells no times of a model's linears (ONNX Runtime's on a GPU), all of it would be *the rest*: no cause is named.

Roofline: arithmetic at the measured peak of the number type, or reading the weights once, the longer one. What the
unquantized kernel loses against its roof, the quantized one is allowed to lose too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

from quantadvisor.documents import (
    Cause,
    CauseTime,
    Checkpoint,
    Explanation,
    Format,
    Inventory,
    Observation,
    Operators,
    Peaks,
    PhaseTime,
    Scheme,
    StepTimes,
    Target,
    Workload,
)
from quantadvisor.kernels.point import roof_s
from quantadvisor.kernels.problem import matrix_bytes
from quantadvisor.profiling.ledger import plain_cache_bytes

from .diagnose import phase_sizes
from .mends import NOTHING_TOLD, change_for, evidence_for, verdict_for

CAUSES: tuple[Cause, ...] = get_args(Cause)
NO_GAP = 0.05
"""Part of the measured time below which nothing is left to explain."""
FLAT_ROWS = 16
"""Rows of the activation matrix below which reading the weights binds, where no peaks were measured."""
NOTHING_TO_MEND = "nothing to mend: it is as fast as its format can make it"
SCALE_BYTES = 4
SLOW_ATTENTION = 8.0
"""Times the roof of reading the cache beyond which a decode step's attention is slow itself, not bound by that reading."""


class Ratios(NamedTuple):
    """What is left of the unquantized time, 0..1: hoped for everything, attainable for the linears of a phase."""

    hoped: float
    linears: float
    cache_read_s: float | None = None
    """Least seconds of reading the cache once; None where the device's roofs are unknown."""


class Apart(NamedTuple):
    """One phase: seconds by cause, what came out better than hoped (≤ 0), its times, and the tensor that binds instead. Causes
    and gain are 0 where its times are not told, as they are of a phase that took none: decode, where one token is asked for."""

    causes: Mapping[Cause, float]
    gained_s: float
    times: StepTimes
    binds: Target


def explain(
    checkpoint: Checkpoint,
    quantized: Observation,
    unquantized: Observation,
    workload: Workload,
    inventory: Inventory,
    peaks: Peaks | None = None,
    notes: tuple[str, ...] = (),
) -> Explanation:
    """The explanation of one request: TTFT + (output_tokens − 1) decode steps of the static batch."""
    steps = workload.traffic.output_length - 1
    hoped = hoped_ratio(checkpoint, inventory)
    apart = {
        phase: take_apart(
            phase,
            checkpoint,
            quantized,
            unquantized,
            Ratios(
                hoped,
                linears_ratio(checkpoint, inventory, peaks, rows, workload.traffic.concurrency),
                cache_read_s(checkpoint, inventory, peaks, workload),
            ),
        )
        for phase, rows in phase_sizes(workload).items()
    }
    prefill, decode = apart["prefill"], apart["decode"]
    request = together(prefill.times, decode.times, steps)
    told = request.attainable_s is not None
    gap = request.measured_s - request.hoped_s
    causes = []
    for cause in CAUSES if told else ():
        first, rest = prefill.causes[cause], steps * decode.causes[cause]
        if first + rest > 0:
            at: Literal["prefill", "decode"] = "prefill" if first >= rest else "decode"
            causes.append(
                CauseTime(
                    cause=cause,
                    seconds=first + rest,
                    prefill_s=first,
                    decode_s=rest,
                    share=(first + rest) / gap if gap > 0 else 0.0,
                    evidence=evidence_for(cause, at, checkpoint, quantized, unquantized, apart[at].binds),
                    change=change_for(cause, at, checkpoint, quantized, apart[at].binds),
                )
            )
    causes.sort(key=lambda found: -found.seconds)
    large = gap > NO_GAP * request.measured_s
    largest = causes[0] if causes and large else None
    untold = large and not told
    speedup = request.unquantized_s / request.measured_s
    return Explanation(
        workload=workload,
        checkpoint=checkpoint,
        against=unquantized.name,
        hoped_factor=1 / hoped,
        speedup=speedup,
        attainable_speedup=None if request.attainable_s is None else request.unquantized_s / request.attainable_s,
        request=request,
        prefill=prefill.times,
        decode=decode.times,
        gap_s=gap,
        gained_s=prefill.gained_s + steps * decode.gained_s if told else 0.0,
        causes=tuple(causes),
        largest=largest.cause if largest else None,
        verdict=verdict_for(largest, speedup, 1 / hoped, untold),
        change=largest.change if largest else NOTHING_TOLD if untold else NOTHING_TO_MEND,
        quantized=quantized,
        unquantized=unquantized,
        notes=notes,
    )


def take_apart(phase: str, checkpoint: Checkpoint, quantized: Observation, unquantized: Observation, ratios: Ratios) -> Apart:
    """The gap of one phase: measured − hoped = the sum of the causes + gained."""
    scheme, hoped = checkpoint.scheme, ratios.hoped
    ours, theirs = parts(getattr(quantized, phase)), parts(getattr(unquantized, phase))
    our_rows: Operators = getattr(quantized, f"{phase}_operators")
    their_rows: Operators = getattr(unquantized, f"{phase}_operators")
    found: dict[Cause, float] = dict.fromkeys(CAUSES, 0.0)
    gained = 0.0
    whole, wish, spent = sum(theirs.values()), hoped * sum(theirs.values()), sum(ours.values())
    if spent and checkpoint.linears and not (ours["linears"] and theirs["linears"]):
        times = StepTimes(unquantized_s=whole, hoped_s=wish, attainable_s=None, measured_s=spent)
        return Apart(found, gained, times, "none")

    attainable = max(hoped, ratios.linears)
    limit: Cause = "wrong_phase" if phase == "prefill" else "wrong_tensor"
    if scheme.activations is not None:
        limit = "fallback_or_slow_kernel"  # arithmetic did shrink: this machine's units for it are no faster
    binds: Target = "activations" if scheme.weights is not None or not scheme.quantizes_cache else "weights"
    found[limit] += (attainable - hoped) * theirs["linears"]
    lost = ours["linears"] - attainable * theirs["linears"]
    if lost > 0:
        left, rounding = linears_apart(checkpoint, our_rows, ours["linears"])
        left *= 1 - attainable
        scale = min(1.0, lost / (left + rounding)) if left + rounding > 0 else 0.0
        found["layers_left_unquantized"] += left * scale
        found["activation_quantization"] += rounding * scale
        found["fallback_or_slow_kernel"] += lost - (left + rounding) * scale
    gained += min(0.0, lost)

    excess = ours["attention"] - hoped * theirs["attention"]
    slow = ratios.cache_read_s is not None and ours["attention"] > SLOW_ATTENTION * ratios.cache_read_s
    if phase == "prefill" or scheme.quantizes_cache or slow:
        found["attention"] += max(0.0, excess)
    else:
        growth = min(max(0.0, excess), max(0.0, ours["attention"] - theirs["attention"]))
        found["attention"] += growth
        binds = "kv_cache" if excess - growth > found["wrong_tensor"] else binds
        found["wrong_tensor"] += max(0.0, excess - growth)
    gained += min(0.0, excess)

    excess = ours["other"] - hoped * theirs["other"]
    if expanded(checkpoint, our_rows):
        kept = min(max(0.0, excess), (1 - hoped) * theirs["other"])
        found["fallback_or_slow_kernel"] += kept
        excess -= kept
    added = min(max(0.0, excess), added_s(our_rows, their_rows))
    found["activation_quantization" if scheme.activations is not None else "fallback_or_slow_kernel"] += added
    found["launches_and_framework"] += max(0.0, excess) - added
    gained += min(0.0, excess)

    times = StepTimes(
        unquantized_s=whole,
        hoped_s=wish,
        attainable_s=attainable * theirs["linears"] + attention_left(phase, checkpoint) * theirs["attention"] + theirs["other"],
        measured_s=spent,
    )
    return Apart(found, gained, times, binds)


def together(prefill: StepTimes, decode: StepTimes, steps: int) -> StepTimes:
    """Of one request: the prefill and its decode steps."""
    ends = {name: (getattr(prefill, name), getattr(decode, name)) for name in StepTimes.model_fields}
    return StepTimes.model_validate(
        {name: None if None in (first, step) else first + steps * step for name, (first, step) in ends.items()}
    )


def expanded(checkpoint: Checkpoint, rows: Operators) -> bool:
    """Are weights stored as codes and run as floats? Then the format cannot have shrunk anything, whatever else takes time."""
    return checkpoint.scheme.weights is not None and checkpoint.stored_quantized > 0 and not rows.quantized_linears


def parts(time: PhaseTime) -> dict[str, float]:
    """linears, attention (with the cache) and other, seconds; they sum to the wall time of plain passes."""
    linears, attention = time.linears_s, time.attention_s + time.cache_s
    wall = time.wall_s.median
    scale = min(1.0, wall / (linears + attention)) if linears + attention > 0 else 0.0
    linears, attention = linears * scale, attention * scale
    return {"linears": linears, "attention": attention, "other": max(0.0, wall - linears - attention)}


def linears_apart(checkpoint: Checkpoint, rows: Operators, linears_s: float) -> tuple[float, float]:
    """Seconds of the linears that (the file leaves unquantized, rounding of activations takes between them).

    An unquantized operator for weights that the file does hold quantized is a fallback, and not counted here.
    """
    timed = [row for row in rows.operators if row.time_s and (row.linear or row.rounds)]
    total = sum(row.time_s or 0.0 for row in timed)
    if not total:
        return 0.0, 0.0
    plain_rows = [row for row in timed if row.linear and not row.quantized]
    ran = max(rows.linears - rows.quantized_linears, sum(row.count for row in plain_rows))  # some after weights were expanded
    stored = checkpoint.linears - checkpoint.stored_quantized
    plain = sum(row.time_s or 0.0 for row in plain_rows)
    left = plain * min(1.0, stored / ran) if ran else 0.0
    between = sum(row.time_s or 0.0 for row in timed if not row.linear)
    rounding = between if checkpoint.scheme.activations is not None else 0.0
    return linears_s * left / total, linears_s * rounding / total


def added_s(ours: Operators, theirs: Operators) -> float:
    """Seconds of operators, beside linears and attention, that run more often than in the unquantized model."""
    before = {row.name: 0 for row in ours.operators}
    for row in theirs.operators:
        before[row.name] = before.get(row.name, 0) + row.count
    total, seen = 0.0, dict.fromkeys(before, 0)
    for row in ours.operators:
        if row.linear or "attention" in row.name.lower() or row.rounds or not row.count:
            continue
        allowed = max(0, before[row.name] - seen[row.name])
        seen[row.name] += row.count
        total += (row.time_s or 0.0) * max(0, row.count - allowed) / row.count
    return total


def hoped_ratio(checkpoint: Checkpoint, inventory: Inventory) -> float:
    """Stored over plain bytes of the tensor class that the format shrinks most."""
    scheme, plain = checkpoint.scheme, plain_bytes(checkpoint)
    found = [stored_bytes(inventory, scheme, plain) / stored_bytes(inventory, Scheme(name="plain"), plain)]
    if scheme.keys is not None and scheme.values is not None:
        found.append(cache_ratio(checkpoint))
    return min(1.0, *found)


def cache_ratio(checkpoint: Checkpoint) -> float:
    """Bits of the cache over those of the unquantized one (OpenVINO's is 16 bit whatever computes)."""
    scheme = checkpoint.scheme
    if scheme.keys is None or scheme.values is None:
        return 1.0
    plain = 16.0 if checkpoint.runtime == "openvino" else 8.0 * plain_bytes(checkpoint)
    return min(1.0, (scheme.keys.bits + scheme.values.bits) / 2 / plain)


def cache_read_s(checkpoint: Checkpoint, inventory: Inventory, peaks: Peaks | None, workload: Workload) -> float | None:
    """Least seconds of reading every row's cache as the runtime stores it, halfway through the output."""
    if peaks is None:
        return None
    traffic, scheme = workload.traffic, checkpoint.scheme
    plain = plain_cache_bytes(checkpoint.runtime) or plain_bytes(checkpoint)
    bits = [8 * plain if kind is None else kind.bits for kind in (scheme.keys, scheme.values)]
    tokens = traffic.concurrency * (traffic.prompt_length + traffic.output_length / 2)
    return tokens * inventory.kv_values_per_token * sum(bits) / 16 / peaks.read_bytes_per_s.median


def attention_left(phase: str, checkpoint: Checkpoint) -> float:
    """Part of the unquantized attention that the format leaves: decode reads the cache, prefill computes."""
    return cache_ratio(checkpoint) if phase == "decode" else 1.0


def stored_bytes(inventory: Inventory, scheme: Scheme, plain: int) -> float:
    """Bytes of all linears as the scheme stores them, the head included even where a file leaves it out."""
    own = 2 if scheme.compute == "bf16" else plain
    return float(
        sum(
            shape.count * matrix_bytes(shape.n, shape.k, format_of(scheme, shape.lm_head), own, SCALE_BYTES)
            for shape in inventory.linears
        )
    )


def format_of(scheme: Scheme, head: bool) -> Format | None:
    return (scheme.lm_head or scheme.weights) if head else scheme.weights


def plain_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of an unquantized weight on the same runtime: OpenVINO's bf16 option makes bfloat16 of fp32."""
    return 2 if checkpoint.plain == "bf16" or "bf16" in checkpoint.options else 4


def linears_ratio(checkpoint: Checkpoint, inventory: Inventory, peaks: Peaks | None, rows: int, head_rows: int) -> float:
    """The quantized linears' roof over the unquantized ones' at `rows` rows; the head sees the last positions only."""
    plain = plain_bytes(checkpoint)
    before = roof_of_linears(inventory, Scheme(name="plain"), peaks, rows, head_rows, plain, number_of(None, plain))
    after = roof_of_linears(inventory, checkpoint.scheme, peaks, rows, head_rows, plain, number_of(checkpoint.scheme, plain))
    if before and after:
        return after / before
    if rows < FLAT_ROWS:
        return stored_bytes(inventory, checkpoint.scheme, plain) / stored_bytes(inventory, Scheme(name="plain"), plain)
    scheme = checkpoint.scheme
    bits = scheme.activations.bits if scheme.activations else 16.0 if scheme.compute == "bf16" else 8.0 * plain
    return min(1.0, bits / (8.0 * plain))


def number_of(scheme: Scheme | None, plain: int) -> str:
    """The number type that a scheme multiplies in, where a machine has it."""
    if scheme is not None and scheme.activations is not None:
        return "int8"
    return "bf16" if plain == 2 or (scheme is not None and scheme.compute == "bf16") else "fp32"


def roof_of_linears(
    inventory: Inventory, scheme: Scheme, peaks: Peaks | None, rows: int, head_rows: int, plain: int, number: str
) -> float | None:
    """Least seconds of all linears; None where a peak was not measured."""
    own = 2 if scheme.compute == "bf16" else plain
    total = 0.0
    for shape in inventory.linears:
        m = head_rows if shape.lm_head else rows
        size = matrix_bytes(shape.n, shape.k, format_of(scheme, shape.lm_head), own, SCALE_BYTES)
        roof = roof_s(peaks, number, size, 2.0 * m * shape.n * shape.k)
        if roof is None:
            return None
        total += shape.count * roof
    return total
