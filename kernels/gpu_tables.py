"""Measured GPU kernels: seconds of a product, of attention, of an all-reduce, each with the class of the number.

The tables are a filtered extract of aiconfigurator-core's (Apache-2.0, see `gpu/NOTICE`), one `gpu/<name>.npz` a GPU, built by
`benchmarks/build_kernel_tables.py`, which also says by which rules rows were left out. A value is

    measured      at a point of the table
    interpolated  linear in the logarithms of time and of every axis, between points on all sides
    roofline      anywhere else: bytes or operations over the share of bandwidth or peak that the tables reach in the middle

and never below the bytes over the bandwidth: small matrices were timed out of the L2 cache, which a decode step does not
find its weights in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, get_args

import numpy as np

from quantadvisor.documents import GpuModel, KernelSource

from .gpu_devices import FOLDER
from .gpu_fractions import reached
from .gpu_schemes import arithmetic, gpu_scheme, stored_bytes

Array = np.ndarray[Any, Any]


class Looked(NamedTuple):
    seconds: float
    kind: KernelSource


class Grid(NamedTuple):
    """Log seconds on a product of axes; NaN where nothing was measured."""

    axes: tuple[Array, ...]
    logs: Array


def grid_of(columns: Sequence[Array], seconds: Array) -> Grid:
    """The grid of scattered points: columns of positive numbers, and seconds."""
    axes = tuple(np.unique(column) for column in columns)
    logs = np.full([len(axis) for axis in axes], np.nan)
    logs[tuple(np.searchsorted(axis, column) for axis, column in zip(axes, columns, strict=True))] = np.log(seconds)
    return Grid(axes, logs)


def looked(grid: Grid, at: Sequence[float]) -> Looked | None:
    """Seconds at a point, or None outside the grid or beside a hole in it."""
    corners: list[tuple[float, tuple[int, ...]]] = [(1.0, ())]
    for axis, value in zip(grid.axes, at, strict=True):
        sides = between(axis, value)
        if sides is None:
            return None
        corners = [(weight * share, (*place, i)) for weight, place in corners for i, share in sides]
    logs = [weight * float(grid.logs[place]) for weight, place in corners]
    if not all(map(math.isfinite, logs)):
        return None
    return Looked(math.exp(sum(logs)), "measured" if len(corners) == 1 else "interpolated")


def between(axis: Array, value: float) -> list[tuple[int, float]] | None:
    """(index, share) of the points on both sides, one where it is a point itself; None outside."""
    right = int(np.searchsorted(axis, value))
    if right < len(axis) and axis[right] == value:
        return [(right, 1.0)]
    if right in (0, len(axis)):
        return None
    low, high = float(axis[right - 1]), float(axis[right])
    share = math.log(value / low) / math.log(high / low)
    return [(right - 1, 1 - share), (right, share)]


@cache
def tables(gpu: str) -> Mapping[str, Grid]:
    """`gemm vllm fp8` -> grid over (m, n, k), and so on; empty where the GPU has no file."""
    path = FOLDER / f"{gpu}.npz"
    if not path.exists():
        return {}
    with np.load(path) as file:
        names = sorted({name.rsplit("/", 1)[0] for name in file.files})
        return {name: read_grid(file, name) for name in names}


def read_grid(file: Mapping[str, Array], name: str) -> Grid:
    """A stored grid: steps of 1/2,048 in log2 of nanoseconds, 0 where nothing was measured."""
    steps = file[f"{name}/time"]
    axes = tuple(file[f"{name}/axis{i}"].astype(float) for i in range(steps.ndim))
    logs = np.where(steps > 0, steps / 2048.0 * math.log(2) + math.log(1e-9), np.nan)
    return Grid(axes, logs)


def product_s(gpu: GpuModel, runtime: str, scheme: str, m: float, n: int, k: int) -> Looked:
    """Seconds of y[m, n] = x[m, k] @ w[n, k].T."""
    form = gpu_scheme(scheme)
    read = (stored_bytes(n, k, form) + 2 * m * (n + k)) / gpu.read_bytes_per_s
    grid = tables(gpu.name).get(f"gemm {runtime} {scheme}")
    found = looked(grid, (m, n, k)) if grid is not None else None
    if found is not None:
        return Looked(max(found.seconds, read), found.kind)
    share = reached(gpu.name, scheme)
    arithmetic_s = 2 * m * n * k / gpu.flops_per_s[arithmetic(form)]
    return Looked(max(read / share.read, arithmetic_s / share.peak), "roofline")


def decode_attention_s(
    gpu: GpuModel, runtime: str, batch: float, context: float, heads: int, kv_heads: int, head_dim: int, cache_bits: int
) -> Looked:
    """Seconds of one layer's attention of `batch` new tokens over caches of `context` tokens each."""
    read = batch * context * 2 * kv_heads * head_dim * cache_bits / 8 / gpu.read_bytes_per_s
    grid = tables(gpu.name).get(f"decode {runtime} {head_dim} {cache_bits}")
    found = looked(grid, (batch, context, heads, kv_heads)) if grid is not None else None
    if found is not None:
        return Looked(max(found.seconds, read), found.kind)
    return Looked(read / reached(gpu.name, "bf16").read, "roofline")


def prefill_attention_s(
    gpu: GpuModel, runtime: str, prompts: float, tokens: float, heads: int, kv_heads: int, head_dim: int, cache_bits: int
) -> Looked:
    """Seconds of one layer's causal attention of `prompts` fresh prompts of `tokens` tokens over themselves."""
    read = prompts * tokens * 2 * (2 * heads + 2 * kv_heads) * head_dim / gpu.read_bytes_per_s
    grid = tables(gpu.name).get(f"prefill {runtime} {head_dim} {cache_bits}")
    found = looked(grid, (prompts, tokens, heads, kv_heads)) if grid is not None else None
    if found is not None:
        return Looked(max(found.seconds, read), found.kind)
    share = reached(gpu.name, "bf16")
    arithmetic_s = 2 * prompts * heads * tokens**2 * head_dim / gpu.flops_per_s["bf16"]
    return Looked(max(read / share.read, arithmetic_s / share.peak), "roofline")


def all_reduce_s(gpu: GpuModel, runtime: str, gpus: int, message_bytes: float) -> Looked:
    """Seconds of the runtime's all-reduce of a 16-bit message over `gpus` of a node; the tables count its elements."""
    ring = message_bytes * 2 * (gpus - 1) / gpus / gpu.link_bytes_per_s
    grid = tables(gpu.name).get(f"reduce {runtime}")
    found = looked(grid, (gpus, message_bytes / 2)) if grid is not None else None
    return Looked(ring, "roofline") if found is None else Looked(max(found.seconds, ring), found.kind)


CERTAINTY: tuple[KernelSource, ...] = get_args(KernelSource)


def sum_of(parts: Sequence[tuple[float, Looked]]) -> Looked:
    """Seconds of several kernels, each so many times; the class is that of the least certain."""
    worst = max((CERTAINTY.index(one.kind) for _, one in parts), default=0)
    return Looked(sum(times * one.seconds for times, one in parts), CERTAINTY[worst])
