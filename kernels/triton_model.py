"""What compiled code says of time: instructions, bytes and occupancy of the golden table against a GPU's data sheet. Modelled.

`python -m quantadvisor.kernels.triton_model` prints, for each GPU with measured tables, our kernels' modelled time beside
what others measured for a kernel of the same kind (`gpu_tables.py`). None of ours ever ran on a GPU, nothing here is fitted,
and the other kernel is not ours: a ratio far from 1 says which resource to look at first, not how fast ours is.

    memory   bytes over the bandwidth, or over what the pipeline buffers of the resident blocks can hold in flight (Little's
             law with LATENCY_S), whichever is slower
    matrix   operations of whole tiles over the peak
    issue    warp instructions, those of the main loop as often as it runs, over 4 a clock and multiprocessor

the last two divided by the share of multiprocessors that have work, averaged over the launch. A time is the largest of the
three plus LAUNCH_S a kernel in a CUDA graph: the roofline (Williams et al. 2009) with CUDA's occupancy.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from quantadvisor.documents import GpuModel

from .gpu_devices import gpus
from .gpu_schemes import gpu_scheme, stored_bytes
from .gpu_tables import Looked, decode_attention_s, product_s
from .triton_compile import GOLDEN

PROCESSORS = {
    "a100_sxm": (108, 2048),
    "h100_sxm": (132, 4096),
    "h200_sxm": (132, 4096),
    "l40s": (142, 1024),
    "b200_sxm": (148, 8192),
    "rtx_pro_6000_server": (188, 1024),
}
"""Multiprocessors, and dense bf16 operations a clock of one: NVIDIA's architecture papers. Their clock follows from the peak."""
SCHEDULERS = 4
LATENCY_S = 600e-9
"""From DRAM, under load; microbenchmarks of these generations find 450 to 700 ns (arXiv:2402.13499 for Hopper and Ada)."""
LAUNCH_S = 1.5e-6
"""Between kernels of a CUDA graph; an assumption."""


class Launch(NamedTuple):
    """One kernel as it is launched for a product or an attention step."""

    programs: int
    steps: int
    """Of the main loop's source, a program."""
    step_operations: float
    """Of one step of one program, whole tiles."""
    bytes: float
    number: str
    kernels: int


@dataclass(frozen=True)
class Modelled:
    memory_s: float
    matrix_s: float
    issue_s: float
    launch_s: float

    @property
    def bound(self) -> str:
        parts = {"memory": self.memory_s, "matrix": self.matrix_s, "issue": self.issue_s}
        return max(parts, key=lambda name: parts[name])

    @property
    def seconds(self) -> float:
        return max(self.memory_s, self.matrix_s, self.issue_s) + self.launch_s


def modelled(gpu: GpuModel, entry: Mapping[str, Any], launch: Launch) -> Modelled:
    """entry: of the golden table, for the GPU's target."""
    processors, rate = PROCESSORS[gpu.name]
    clock = gpu.flops_per_s["bf16"] / (processors * rate)
    a_processor = launch.programs / processors
    busy = a_processor / math.ceil(a_processor)
    in_flight = min(entry["blocks_per_sm"], math.ceil(a_processor)) * entry["shared_bytes"] * min(a_processor, 1) * processors
    bandwidth = min(gpu.read_bytes_per_s, in_flight / LATENCY_S) if in_flight else gpu.read_bytes_per_s
    iterations = math.ceil(launch.steps / steps_an_iteration(entry, launch.step_operations))
    loop = entry["loop_instructions"]
    instructions = entry["instructions"] - loop + iterations * loop
    return Modelled(
        memory_s=launch.bytes / bandwidth,
        matrix_s=launch.programs * launch.steps * launch.step_operations / gpu.flops_per_s[launch.number] / busy,
        issue_s=launch.programs * entry["warps"] * instructions / (processors * SCHEDULERS * clock) / busy,
        launch_s=launch.kernels * LAUNCH_S,
    )


def steps_an_iteration(entry: Mapping[str, Any], step_operations: float) -> int:
    """The compiler may have unrolled: matrix operations in one turn of the machine's loop over those of a step."""
    known = {name: size for name in entry["matrix"] if (size := operations_of(name, entry["warps"]))}
    if not known or not entry["loop_matrix"]:
        return 1
    counts = {name: entry["matrix"][name] for name in known}
    mean = sum(counts[name] * size for name, size in known.items()) / sum(counts.values())
    return max(1, round(float(entry["loop_matrix"] * mean / step_operations)))


def operations_of(name: str, warps: int) -> float:
    """Of one matrix instruction, executed by all warps of a block; 0 where its name has no shape (tcgen05)."""
    if found := re.match(r"[HIQ]MMA\.16(8)(16|32)", name):
        return 2 * 16 * 8 * int(found[2]) * warps
    if found := re.match(r"[HIQ]GMMA\.64x(\d+)x(\d+)", name):
        return 2 * 64 * int(found[1]) * int(found[2]) * warps / 4
    return 0


@cache
def golden() -> Mapping[str, Mapping[str, Any]]:
    found: Mapping[str, Mapping[str, Any]] = json.loads(GOLDEN.read_text(encoding="utf-8"))["kernels"]
    return found


class Row(NamedTuple):
    gpu: str
    kernel: str
    shape: str
    ours: Modelled
    like: str
    published: Looked

    @property
    def ratio(self) -> float:
        return self.ours.seconds / self.published.seconds


SHAPES = ((8192, 8192), (28672, 8192))
"""N, K of Llama-70B."""


def rows() -> Iterator[Row]:
    """Every product and cache format with a measured table of its like; loads triton for the tiles."""
    for name, (processors, _) in PROCESSORS.items():
        gpu = gpus()[name]
        assert gpu.compute_capability is not None
        for kernel, scheme, m, n, k, launch in products(processors, gpu.compute_capability):
            for runtime in ("trtllm", "vllm"):
                published = product_s(gpu, runtime, scheme, m, n, k)
                if published.kind != "roofline":
                    ours = modelled(gpu, golden()[f"{kernel}/sm_{gpu.compute_capability}"], launch)
                    yield Row(name, kernel, f"{m} x {n} x {k}", ours, f"{runtime} {scheme}", published)
                    break
        for kernel, batch, tokens, launch in attentions(processors, gpu.compute_capability):
            published = decode_attention_s(gpu, "vllm", batch, tokens, 32, 8, 128, 8)
            if published.kind != "roofline":
                ours = modelled(gpu, golden()[f"{kernel}/sm_{gpu.compute_capability}"], launch)
                yield Row(name, kernel, f"{batch} x {tokens}", ours, "vllm FP8 cache", published)


def products(processors: int, sm: int) -> Iterator[tuple[str, str, int, int, int, Launch]]:
    """(kernel, scheme of its like, M, N, K, launch)"""
    from . import triton_w4a16, triton_w8a8, triton_w8a16
    from .triton_launch import splits_of

    for n, k in SHAPES:
        for m in (1, 16, 32, 512):
            label = "m1" if m <= 16 else f"m{m}"
            made = [
                ("w4a16/g128", "w4a16", triton_w4a16.tile_for(m, 128, sm), 2, 2),
                ("w8a16/channel", "w8a16", triton_w8a16.tile_for(m, 0, sm), 1, 2),
            ]
            if m in (16, 512):
                made.append(("w8a8", "w8a8-int8", triton_w8a8.tile_for(m, sm), 1, 1))
                if sm >= 89:
                    made.append(("fp8", "fp8", triton_w8a8.tile_for(m, sm), 1, 1))
            for kernel, scheme, tile, halves, x_bytes in made:
                step = tile.k * halves
                tiles = math.ceil(n / tile.n) * math.ceil(m / tile.m)
                splits = splits_of(processors, tiles, math.ceil(k / step))
                partial = 8 * splits * m * n if splits > 1 else 0
                moved = stored_bytes(n, k, gpu_scheme(scheme)) + m * k * x_bytes + 2 * m * n + partial
                number = {"w8a8": "int8", "fp8": "fp8"}.get(kernel, "bf16")
                launch = Launch(
                    tiles * splits,
                    math.ceil(k / step / splits),
                    2.0 * tile.m * tile.n * step,
                    moved,
                    number,
                    2 if splits > 1 else 1,
                )
                yield f"{kernel}-{label}" if "/" in kernel else f"{kernel}/{label}", scheme, m, n, k, launch


def attentions(processors: int, sm: int) -> Iterator[tuple[str, int, int, Launch]]:
    """(kernel, batch, tokens, launch) with 32 query heads on 8 of the cache, 128 wide."""
    from .triton_decode_attention import MOST_SPLITS, parts_of, tile_for

    for kind in ("fp8", "int8"):
        tile = tile_for(kind, 128, sm)
        for batch, tokens in ((1, 32768), (16, 4096), (64, 4096)):
            parts = min(parts_of(processors, batch * 8, tokens, tile.n), MOST_SPLITS)
            part = math.ceil(tokens / parts / tile.n)
            moved = batch * 8 * tokens * 2 * (128 + (4 if kind == "int8" else 0)) + 2 * 4 * batch * 32 * parts * 128
            launch = Launch(batch * 8 * parts, part, 2 * 2 * 16 * tile.n * 128, moved, "bf16", 2)
            yield f"decode-attention/{kind}-d128-gqa4", batch, tokens, launch


def main() -> int:
    print("modelled from compiled code, never run on a GPU; `like` is another kernel of the same kind, measured by others")
    head = f"{'GPU':20} {'kernel':30} {'shape':18} {'modelled':>10} {'bound':7} {'like':18} {'published':>10} {'ratio':>6}"
    print(head)
    found = list(rows())
    for row in found:
        print(
            f"{row.gpu:20} {row.kernel:30} {row.shape:18} {row.ours.seconds * 1e6:7.1f} µs {row.ours.bound:7} {row.like:18} "
            f"{row.published.seconds * 1e6:7.1f} µs {row.ratio:6.2f} {row.published.kind}"
        )
    low, middle, high = statistics.quantiles((row.ratio for row in found), n=4)
    print(f"{len(found)} rows, modelled over published: {middle:.2f} in the middle, {low:.2f} to {high:.2f} for half of them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
