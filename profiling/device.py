"""What machine this is, and how fast it can be: identity, and the measured roofs of the roofline.

Identity (CPU model, ISA, cores, memory, GPU names) makes the fingerprint; speed never does, because two runs of one
machine must be comparable. Limits that a container sets (affinity, cgroup quota and memory) count as the machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import ValidationError

from quantadvisor.documents import Device, Figure, Peaks
from quantadvisor.kernels.machine import usable_cores, usable_memory
from quantadvisor.kernels.timing import figure
from quantadvisor.kernels.timing_cache import versions

from .gpus import describe_gpus

ISA_FEATURES = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip
"""Flags of /proc/cpuinfo that decide which low-precision kernels exist (x86 first, then ARM)."""

MIB = 1 << 20
GIB = 1 << 30


def describe_device(threads: int | None = None) -> Device:
    """Identity of this machine as this process may use it; `threads` to compute with (None: all usable cores)."""
    cpu = _cpuinfo()
    cores = usable_cores()
    memory = usable_memory()
    isa = tuple(flag for flag in ISA_FEATURES if flag in cpu["flags"].split())
    gpus = describe_gpus()
    identity = (cpu["identity"], isa, cores, round(memory / GIB), tuple(gpu.name for gpu in gpus))
    return Device(
        name=cpu["name"],
        isa=isa,
        cores=cores,
        threads=max(1, min(threads or cores, cores)),
        memory_bytes=memory,
        last_level_cache_bytes=last_level_cache(),
        gpus=gpus,
        fingerprint=hashlib.sha256(repr(identity).encode()).hexdigest()[:16],
    )


def _cpuinfo(path: Path = Path("/proc/cpuinfo")) -> Mapping[str, str]:
    """`name`, `flags` (space separated) and `identity` (vendor, family, model, stepping) of the first core."""
    found: dict[str, str] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            key, colon, value = line.partition(":")
            if colon:
                found.setdefault(key.strip(), value.strip())
    name = found.get("model name") or platform.processor() or platform.machine()
    keys = ("vendor_id", "cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU revision")
    identity = "/".join([name, platform.machine(), *(found[key] for key in keys if key in found)])
    return {"name": name, "flags": found.get("flags") or found.get("Features") or "", "identity": identity}


def last_level_cache() -> int:
    """Bytes of the largest cache of core 0; 0 where the machine does not tell."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        scale = {"K": 1024, "M": MIB, "G": GIB}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KMG") or 0) * scale)
    if max(sizes) == 0 and "SC_LEVEL3_CACHE_SIZE" in os.sysconf_names:
        sizes.append(os.sysconf("SC_LEVEL3_CACHE_SIZE"))
    return max(sizes)


def measure_peaks(threads: int, budget_s: float = 3.2) -> Peaks:
    """Measured roofs with `threads` threads: the fastest of several implementations for each, named in its source.

    Reading: sums over a buffer of four last-level caches (256 MiB at least). Products: square, 512 to 2,048 wide.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            read = measure_reading(budget_s / 4)
            flops: dict[str, Figure] = {}
            refused: dict[str, str] = {}
            for number in ("fp32", "bf16", "int8"):
                runs, reasons = _products(number, threads)
                if runs:
                    flops[number] = _fastest(runs, budget_s / 4)
                else:
                    refused[number] = "; ".join(reasons)
    finally:
        torch.set_num_threads(before)
    return Peaks(read_bytes_per_s=read, flops_per_s=flops, refused=refused)


def kept_peaks(device: Device, folder: Path) -> Peaks:
    """The roofs as they were measured on this device by these packages and kept in `folder`, else measured now and kept."""
    identity = [device.fingerprint, device.threads, versions("torch"), versions("onnxruntime")]
    path = folder / f"peaks-{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:20]}.json"
    try:
        return Peaks.read(path)
    except (OSError, ValidationError):
        peaks = measure_peaks(device.threads)
        peaks.write(path)
        return peaks


def measure_reading(budget_s: float = 0.8) -> Figure:
    """Bytes per second that all usable cores read from memory."""
    import torch

    with torch.inference_mode():
        return _fastest(_readers(), budget_s)


Run = tuple[str, Callable[[], object], float]
"""A name, a callable, and the work (bytes or operations) of one call."""


def _readers() -> list[Run]:
    """Ways to read a buffer once: a sum, and a matrix-vector product (as decode does)."""
    import torch

    size = max(256 * MIB, 4 * last_level_cache())
    size = min(size, usable_memory() // 8)
    buffer = torch.ones(size // 4096 // 4, 4096)  # rows x 16 KiB
    vector = torch.ones(4096)
    total = float(buffer.numel() * buffer.element_size())
    shown = f"{total / MIB:.0f} MiB"
    return [
        (f"torch sum over {shown}", buffer.sum, total),
        (f"torch matrix-vector product over {shown}", lambda: torch.mv(buffer, vector), total),
    ]


SIZES = (512, 1024, 2048)
LONG_S = 0.02
"""A product that takes this long shows its full rate: a larger one only takes longer."""


def _products(number: str, threads: int) -> tuple[list[Run], list[str]]:
    """Implementations of a square product of one number type that run here, and the reasons of those that do not."""
    runs: list[Run] = []
    reasons: list[str] = []
    for build in (_torch_product, _onnxruntime_product):
        try:
            for size in SIZES:
                run = build(number, size, threads)
                run[1]()
                if _seconds(run[1]) >= LONG_S:
                    break
            runs.append(run)
        except (ImportError, RuntimeError, NotImplementedError) as error:
            reasons.append(f"{build.__name__.split('_')[1]}: {str(error).splitlines()[0] if str(error) else error!r}")
    return runs, reasons


def _seconds(run: Callable[[], object]) -> float:
    before = time.perf_counter()
    run()
    return time.perf_counter() - before


def _torch_product(number: str, size: int, threads: int) -> Run:
    import torch

    if number == "int8":
        a, b = (torch.randint(-127, 127, (size, size), dtype=torch.int8) for _ in range(2))
        return f"torch._int_mm {size}", lambda: torch._int_mm(a, b), 2.0 * size**3
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[number]
    x, w = (torch.randn(size, size).to(dtype) for _ in range(2))
    return f"torch matmul {number} {size}", lambda: x @ w.T, 2.0 * size**3


def _onnxruntime_product(number: str, size: int, threads: int) -> Run:
    from quantadvisor.kernels import onnx_graph

    run, name = onnx_graph.square_product(number, size, threads)
    return f"{name} {size}", run, 2.0 * size**3


HOPELESS = 2.0


def _fastest(runs: list[Run], budget_s: float) -> Figure:
    """Rates of the fastest of `runs`, measured in turns until the budget is spent: five rounds at least, or three. Those
    whose first call is HOPELESS times slower than another's are left out."""
    first = [work / _seconds(run) for _, run, work in runs]
    runs = [run for run, rate in zip(runs, first, strict=True) if rate * HOPELESS >= max(first)]
    rates: dict[str, list[float]] = {name: [] for name, _, _ in runs}
    started = time.perf_counter()
    while (spent := time.perf_counter() - started) < budget_s or len(rates[runs[0][0]]) < 5:
        for name, run, work in runs:
            rates[name].append(work / _seconds(run))
        taken = len(rates[runs[0][0]])
        if (spent > 3 * budget_s and taken >= 3) or taken >= 25:
            break
    figures = [figure(samples, source=name) for name, samples in rates.items()]
    return max(figures, key=lambda one: one.median)
