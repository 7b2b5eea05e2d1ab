"""Kernel times on a GPU before its kernels are probed: published tables, else the roofline, calibrated on the baseline. Pure.

A product takes what the tables of that GPU say (*measured* by others, *interpolated*); elsewhere bytes over bandwidth or
operations over peak, at the share that such kernels reach, and a launch (*roofline*). Both times what the baseline's own
linears took here over what the same source says of them: one factor where reading binds, one where arithmetic does. What was
timed on this device stands as it is. The result is KernelTiming documents: predictions (predict, scaling) know of no second
source.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from quantadvisor.documents import (
    Device,
    Figure,
    GpuModel,
    Inventory,
    KernelFactors,
    KernelTiming,
    LinearShape,
    PhaseTime,
    Scheme,
)
from quantadvisor.kernels.gpu_devices import known_gpu
from quantadvisor.kernels.gpu_schemes import arithmetic, gpu_scheme, stored_bytes
from quantadvisor.kernels.gpu_tables import Looked, product_s
from quantadvisor.profiling.gpus import capability

from .predict import EIGHT_BIT_SHARE, Probes, kernel_class, kernel_family
from .serving_times import PRIOR

GRID = (1, 16, 64, 256, 1024, 4096)
"""Rows at which times are looked up beside those of the workload."""
TABLE = "table"
CUBLAS = ("torch", "triton", "vllm")
"""Runtimes whose 16-bit products are torch's (cuBLAS): the tables timed them through vLLM."""
Use = tuple[Scheme, str, tuple[str, ...]]
"""scheme, runtime, options of a candidate"""
SAME = KernelFactors(reading=1.0, arithmetic=1.0, source="not calibrated")


def sheet_of(device: Device) -> GpuModel | None:
    """The GPU's data sheet, or one made of its measured roofs; None where neither is known."""
    known = known_gpu(device.name, device.memory_bytes)
    if known is not None or device.peaks is None:
        return known
    return GpuModel(
        name=device.name,
        memory_bytes=device.memory_bytes,
        read_bytes_per_s=device.peaks.read_bytes_per_s.median,
        flops_per_s={number: one.median for number, one in device.peaks.flops_per_s.items()},
        link_bytes_per_s=math.inf,
        gpus=1,
        compute_capability=capability(device),
    )


def table_scheme(made: Scheme) -> str | None:
    """The tables' name of the scheme's products; None where they have nothing like it."""
    weights, inputs = made.weights, made.activations
    if weights is None:
        return None if made.compute == "fp32" else "bf16"
    if inputs is not None:
        if (weights.number, weights.bits, inputs.number, inputs.bits) == ("int", 8, "int", 8):
            return "w8a8-int8"
        if (weights.number, weights.bits, inputs.number, inputs.bits) == ("float", 8, "float", 8):
            return "fp8-block" if weights.granularity == "block" else "fp8"
        return None
    if weights.number != "int" or weights.bits > 8:
        return None
    return "w4a16" if weights.bits < 5 else "w8a16"


def looked_up(sheet: GpuModel, runtime: str, made: Scheme, m: int, n: int, k: int) -> Looked | None:
    name = table_scheme(made)
    if name is None or arithmetic(gpu_scheme(name)) not in sheet.flops_per_s:
        return None
    found = product_s(sheet, "vllm" if name == "bf16" and runtime in CUBLAS else runtime, name, m, n, k)
    return found._replace(seconds=found.seconds + PRIOR.launch_s) if found.kind == "roofline" else found


def reading_binds(sheet: GpuModel, name: str, m: int, n: int, k: int) -> bool:
    """On which side of the roofline a product lies."""
    form = gpu_scheme(name)
    read_s = (stored_bytes(n, k, form) + 2 * m * (n + k)) / sheet.read_bytes_per_s
    return read_s >= 2 * m * n * k / sheet.flops_per_s[arithmetic(form)]


def table_timings(
    sheet: GpuModel, shapes: Sequence[LinearShape], uses: Iterable[Use], rows: Iterable[int], by: KernelFactors = SAME
) -> tuple[KernelTiming, ...]:
    """A timing of every class of kernels at every shape and number of rows."""
    chosen = {(*kernel_family(runtime, options), kernel_class(made)): made for made, runtime, options in uses}
    found = []
    for (runtime, option, _), made in chosen.items():
        for shape in {(one.n, one.k): one for one in shapes}.values():
            for m in sorted(set(rows)):
                looked = looked_up(sheet, runtime, made, m, shape.n, shape.k)
                if looked is not None:
                    found.append(timing(sheet, runtime, option, made, (m, shape.n, shape.k), looked, by))
    return tuple(found)


def timing(
    sheet: GpuModel, runtime: str, option: str, made: Scheme, sizes: tuple[int, int, int], looked: Looked, by: KernelFactors
) -> KernelTiming:
    name = table_scheme(made)
    assert name
    m, n, k = sizes
    factor = by.reading if reading_binds(sheet, name, m, n, k) else by.arithmetic
    seconds = looked.seconds * factor
    said = f"{looked.kind}: {name} on {sheet.name}, x{factor:.2f} by the baseline here"
    return KernelTiming(
        probe=TABLE,
        scheme=made,
        runtime=runtime,
        option=option,
        m=m,
        n=n,
        k=k,
        time_s=Figure(median=seconds, low=seconds, high=seconds, kind="modelled", source=said),
        source=looked.kind,
    )


def calibrated(sheet: GpuModel, inventory: Inventory, base: Use, phases: Sequence[PhaseTime]) -> KernelFactors:
    """What the baseline's linears took here over what the tables say: of each phase one ratio, which counts for reading and
    for arithmetic as they share its time."""
    logs: dict[str, list[tuple[float, float]]] = {"read": [], "peak": []}
    said = []
    for phase in phases:
        timings = table_timings(sheet, inventory.linears, [base], (phase.tokens, phase.batch))
        whole = Probes(timings, inventory, EIGHT_BIT_SHARE).linears_s(*base, phase.tokens, phase.batch)
        if whole is None or whole <= 0 or phase.linears_s <= 0:
            continue
        reads = reading_share(sheet, inventory, timings, phase)
        logs["read"].append((reads, math.log(phase.linears_s / whole)))
        logs["peak"].append((1 - reads, math.log(phase.linears_s / whole)))
        said.append(f"{phase.phase} x{phase.linears_s / whole:.2f}")
    if not said:
        return SAME
    means = {side: weighted(pairs) for side, pairs in logs.items()}
    read, peak = means["read"], means["peak"]
    return KernelFactors(
        reading=math.exp(read if read is not None else peak or 0.0),
        arithmetic=math.exp(peak if peak is not None else read or 0.0),
        source=f"linears of the baseline over those of the tables of {sheet.name}: {', '.join(said)}",
    )


def reading_share(sheet: GpuModel, inventory: Inventory, timings: Sequence[KernelTiming], phase: PhaseTime) -> float:
    """Of the tables' time of a phase's linears, what is bound by reading."""
    seconds = {(one.m, one.n, one.k): one.time_s.median for one in timings if one.time_s}
    bound = total = 0.0
    for shape in inventory.linears:
        m = phase.batch if shape.lm_head else phase.tokens
        each = shape.count * seconds[m, shape.n, shape.k]
        total += each
        bound += each * reading_binds(sheet, "bf16", m, shape.n, shape.k)
    return bound / total


def weighted(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Mean of (weight, value); None where nothing has weight."""
    total = sum(weight for weight, _ in pairs)
    return sum(weight * value for weight, value in pairs) / total if total > 0 else None


def without_probed(tables: Iterable[KernelTiming], probed: Iterable[KernelTiming]) -> tuple[KernelTiming, ...]:
    """What was timed on this device, and of the tables what was not."""
    timed = [one for one in probed if one.time_s is not None]
    known = {curve(one) for one in timed}
    return (*probed, *(one for one in tables if curve(one) not in known))


def curve(one: KernelTiming) -> tuple[str, str, str, int, int]:
    return (one.runtime, one.option, kernel_class(one.scheme), one.n, one.k)


def table_rows(phases: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sorted({*GRID, *phases.values()}))
