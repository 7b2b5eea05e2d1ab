"""What compiled code says of time: instructions, bytes and occupancy of the golden table against a GPU's data sheet. Modelled.

`python -m quantadvisor.kernels.triton_model` prints, for each GPU with measured tables, every kernel's modelled time beside
what others measured for a kernel of the same kind (`gpu_tables.py`) where there is one; `--write` keeps it as docs/triton.md.
None of ours ever ran on a GPU, nothing here is fitted, and the other kernel is not ours: a ratio far from 1 says which
resource to look at first, not how fast ours is.

    memory   bytes over the bandwidth, or over what the resident blocks have in flight (Little's law with LATENCY_S): their
             pipeline buffers or, where nothing is fetched ahead, what a block moves between two waits; whichever is slower
    matrix   operations of whole tiles over the peak
    issue    warp instructions, those of the main loop as often as it runs, over 4 a clock and multiprocessor

the last two divided by the share of multiprocessors that have work, averaged over the launch. A time is the largest of the
three plus LAUNCH_S a kernel in a CUDA graph: the roofline (Williams et al. 2009) with CUDA's occupancy.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from quantadvisor.documents import GpuModel

from .gpu_devices import gpus
from .gpu_tables import Looked, decode_attention_s, product_s, tables
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
    """One kernel as it is launched at a shape."""

    programs: int
    steps: int
    """Of the main loop's source, a program."""
    step_operations: float
    """Of one step of one program, whole tiles."""
    bytes: float
    number: str
    """Two joined by "+": half of the operations in each."""
    kernels: int
    waits: int = 0
    """Times that a program waits for what it reads; 0: its shared memory is a pipeline, filled ahead."""


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
    held = launch.bytes / launch.programs / launch.waits if launch.waits else entry["shared_bytes"]
    in_flight = min(entry["blocks_per_sm"] * processors, launch.programs) * held
    bandwidth = min(gpu.read_bytes_per_s, in_flight / LATENCY_S) if in_flight else gpu.read_bytes_per_s
    iterations = math.ceil(launch.steps / steps_an_iteration(entry, launch.step_operations))
    loop = entry["loop_instructions"]
    instructions = entry["instructions"] - loop + iterations * loop
    operation_s = statistics.fmean(1 / gpu.flops_per_s[number] for number in launch.number.split("+"))
    return Modelled(
        memory_s=launch.bytes / bandwidth,
        matrix_s=launch.programs * launch.steps * launch.step_operations * operation_s / busy,
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
    """Whose kernel `published` is of, or why there is none."""
    published: Looked | None

    @property
    def ratio(self) -> float | None:
        return self.ours.seconds / self.published.seconds if self.published else None


Like = tuple[str, Looked | None]
Asked = tuple[str, str, Launch, Like]
"""Kernel as the golden table names it, shape, launch, what others measured of a like kernel."""
NONE: Like = ("none published", None)
LEFT_OUT: Like = ("not in our extract", None)
"""Published, and left out by `benchmarks/build_kernel_tables.py`: weight-only products of many rows, quantizers to FP8."""
SHAPES = ((8192, 8192), (28672, 8192))
"""N, K of Llama-70B."""


def rows() -> Iterator[Row]:
    """Every kernel on every GPU with measured tables; loads triton for the tiles."""
    for name in PROCESSORS:
        gpu = gpus()[name]
        for kernel, shape, launch, like in (*products(gpu), *attentions(gpu), *conversions(gpu)):
            yield Row(name, kernel, shape, modelled(gpu, golden()[f"{kernel}/sm_{gpu.compute_capability}"], launch), *like)


def first_measured(gpu: GpuModel, table: str, runtimes: Iterable[str], look: Callable[[str], Looked]) -> Like:
    """Of the runtimes with a table ("gemm {} fp8") on the GPU the first whose table reaches the shape."""
    names = [table.format(one) for one in runtimes if table.format(one) in tables(gpu.name)]
    found = ((name, look(name.split()[1])) for name in names)
    return next((one for one in found if one[1].kind != "roofline"), LEFT_OUT if names else NONE)


def products(gpu: GpuModel) -> Iterator[Asked]:
    """Without the quantization of activations. LLM.int8() with an outlier in each step: both products, and x in 16 bits too."""
    from . import triton_codebook, triton_llm_int8, triton_w4a16, triton_w8a8, triton_w8a16
    from .triton_launch import splits_of

    sm, processors = gpu.compute_capability or 0, PROCESSORS[gpu.name][0]
    for (n, k), m in itertools.product(SHAPES, (1, 16, 32, 512)):
        made = [
            ("w4a16/g128-", "w4a16", triton_w4a16.tile_for(m, 128, sm), 2, 0.5 + 2 / 128, 2, "bf16"),
            ("w8a16/channel-", "w8a16", triton_w8a16.tile_for(m, 0, sm), 1, 1 + 2 / k, 2, "bf16"),
            ("codebook/g64-", "", triton_codebook.tile_for(m, 64, sm), 2, 0.5 + 2 / 64, 2, "bf16"),
        ]
        if m in (16, 512):
            made.append(("w8a8/", "w8a8-int8", triton_w8a8.tile_for(m, sm), 1, 1 + 4 / k, 1, "int8"))
            made.append(("llm-int8/", "", triton_llm_int8.tile_for(m, sm), 1, 1 + 4 / k, 3, "int8+bf16"))
            if sm >= 89:
                made.append(("fp8/", "fp8", triton_w8a8.tile_for(m, sm), 1, 1 + 4 / k, 1, "fp8"))
        for kernel, scheme, tile, halves, w_bytes, x_bytes, number in made:
            step = tile.k * halves
            tiles = math.ceil(n / tile.n) * math.ceil(m / tile.m)
            splits = splits_of(processors, tiles, math.ceil(k / step))
            parts = 8 * splits * m * n if splits > 1 else 0
            launch = Launch(
                tiles * splits,
                math.ceil(k / step / splits),
                2.0 * len(number.split("+")) * tile.m * tile.n * step,
                n * k * w_bytes + m * k * x_bytes + 2 * m * n + parts,
                number,
                2 if splits > 1 else 1,
            )
            look = partial(product_s, gpu, scheme=scheme, m=m, n=n, k=k)
            like = first_measured(gpu, f"gemm {{}} {scheme}", ("trtllm", "vllm"), look)
            yield f"{kernel}{'m1' if m <= 16 else f'm{m}'}", f"M {m}, N {n}, K {k}", launch, like


def attentions(gpu: GpuModel) -> Iterator[Asked]:
    """32 query heads on 8 of the cache, 128 wide; turbo without its rotations of q and y, which are torch's."""
    from .triton_decode_attention import CODES, parts_of, tile_for

    values: dict[str, int] = {"int8": 128 + 4, "int4": 64 + 4 + 1, "fp8": 128, "turbo": 64 + 4}
    for kind, (batch, tokens) in itertools.product(CODES, ((1, 32768), (16, 4096), (64, 4096))):
        tile = tile_for(kind, 128, gpu.compute_capability or 0)
        parts = parts_of(PROCESSORS[gpu.name][0], batch * 8, tokens, tile.n)
        moved = batch * 8 * tokens * 2 * values[kind] + 2 * 4 * batch * 32 * parts * 128
        steps = math.ceil(tokens / parts / tile.n)
        launch = Launch(batch * 8 * parts, steps, 2 * 2 * 16 * tile.n * 128, moved, "bf16", 2)
        look = partial(decode_attention_s, gpu, batch=batch, context=tokens, heads=32, kv_heads=8, head_dim=128, cache_bits=8)
        runtimes = ("vllm", "sglang", "trtllm") if kind in ("int8", "fp8") else ()
        like = first_measured(gpu, "decode {} 128 8", runtimes, look)
        yield f"decode-attention/{kind}-d128-gqa4", f"B {batch}, S {tokens}", launch, like


def conversions(gpu: GpuModel) -> Iterator[Asked]:
    """Quantizers, the search for outlier columns, rotation (before down_proj), weights back to 16 bits. What is read a second
    time comes from L2: its steps are counted, its bytes and its waiting are not."""
    from . import triton_dequantize, triton_hadamard, triton_w8a8

    block, wide = 128, 28672
    rotated = math.ceil(wide / (2 * block) / triton_hadamard.tile_for(block).m)
    for m, (_, k) in itertools.product((16, 512), SHAPES[:1]):
        for kernel in (*triton_w8a8.kinds(gpu.compute_capability or 0), "llm-int8"):
            read = math.ceil(k / 1024)
            launch = Launch(m, 2 * read, 0, m * (3 * k + 4), "bf16", 1, read)
            yield f"{kernel}/quantize", f"M {m}, K {k}", launch, LEFT_OUT if kernel == "fp8" else NONE
        read = math.ceil(m / 32)
        yield "llm-int8/outliers", f"M {m}, K {k}", Launch(k // 64, read, 0, 2 * m * k + k, "bf16", 1, read), NONE
        for bits in (8, 4):
            moved = m * (2 * wide + wide * bits / 8 + 4)
            launch = Launch(m, 2 * rotated, 2 * 2 * 16 * block * block, moved, "bf16", 1, rotated)
            yield f"hadamard/int{bits}-block{block}", f"M {m}, K {wide}", launch, NONE
    stored = (("symmetric-g128", 0.5 + 2 / 128, 256), ("codebook-g64", 0.5 + 2 / 64, 128), ("int8-channel", 1, 128))
    for (n, k), (kind, w_bytes, columns) in itertools.product(SHAPES, stored):
        programs = math.ceil(n / triton_dequantize.ROWS) * math.ceil(k / columns)
        yield f"dequantize/{kind}", f"N {n}, K {k}", Launch(programs, 1, 0, n * k * (w_bytes + 2), "bf16", 1, 1), NONE


PAGE = Path(__file__).resolve().parent.parent / "docs" / "triton.md"
HEAD = """\
# Modelled times of the Triton kernels

Made by `python -m quantadvisor.kernels.triton_model --write`; `kernels/triton_model.py` says what is counted.

- **modelled**: bytes, instructions and occupancy of our compiled code (`kernels/triton_golden.json`) against data sheets.
  Nothing is fitted, and **none of these kernels ever ran on a GPU**: no speed of ours was measured.
- **cited**: what others measured of *another* kernel of the same kind (aiconfigurator-core and aiconfigurator,
  `kernels/gpu/NOTICE`), never below the bytes over the bandwidth; *interpolated* between their points where it says so.
  `gemm` is a product, `decode` attention with heads of 128 over a cache of 8 bits, which is FP8 there, beside INT8 too.
- *none published*: those packages have no like kernel, or not on that GPU. *Not in our extract*: they have one, and
  `benchmarks/build_kernel_tables.py` leaves it out: weight-only products of more than 256 rows as artefacts of their timing,
  and quantizers of activations to FP8.
- **ratio**: modelled over published. Far from 1 it says which resource to look at first (*bound*), not how fast ours is.

| kernel | shape | GPU | modelled, µs | bound | like kernel | published, µs | ratio |
|---|---|---|---|---|---|---|---|
"""


def page() -> str:
    found = sorted(rows(), key=lambda row: row.kernel.split("/")[0])
    lines = []
    for row in found:
        beside = f"{row.like} | | |"
        if row.published:
            how = "cited" if row.published.kind == "measured" else "cited, interpolated"
            beside = f"{row.like} | {row.published.seconds * 1e6:.1f} ({how}) | {row.ratio:.2f} |"
        ours = f"{row.ours.seconds * 1e6:.1f} | {row.ours.bound}"
        lines.append(f"| {row.kernel} | {row.shape} | {row.gpu} | {ours} | {beside}\n")
    ratios = [row.ratio for row in found if row.ratio]
    low, middle, high = statistics.quantiles(ratios, n=4)
    tail = f"{len(found)} rows, {len(ratios)} beside a published time: ratio {middle:.2f} in the median, {low:.2f} to {high:.2f}"
    return f"{HEAD}{''.join(lines)}\n{tail} for the middle half.\n"


def main() -> int:
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
