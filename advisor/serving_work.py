"""What requests ask of a GPU, in seconds at the data sheet's bandwidth and peak: serving_model divides them by fractions.

One decode step of c running requests reads every weight once (of experts those that c tokens meet) and each
request's cache, multiplies c rows, launches kernels, and reduces [c, hidden] twice a layer over the GPUs. A
prompt multiplies its rows and scores them against each other. Arrays are [R] over cases, or [R, S] over products.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from quantadvisor.documents import BadInput, GpuModel, Scheme
from quantadvisor.kernels.gpu_devices import gpu
from quantadvisor.kernels.gpu_fractions import cache_read
from quantadvisor.kernels.gpu_schemes import arithmetic, cache_bits, gpu_scheme, stem_of, stored_bytes
from quantadvisor.profiling.gpu_memory import memory_of
from quantadvisor.profiling.published import config_of
from quantadvisor.profiling.shard import Product, Shard, shard_of

Array = np.ndarray[Any, Any]
Arrays = tuple[Array, ...]

NORMS_ROPE_ATTENTION_GATE = 5
"""Kernels of a layer beside its products: two norms, rotation, attention, the MLP's gate."""
HEAD_NORMS, ROUTING = 2, 3
"""More of them with normalised queries and keys; with experts (choose, gather, combine)."""
ACTIVATION_BYTES = 2
WEIGHT_ONLY = {"fp8": "w8a16", "fp8-block": "w8a16", "w8a8-int8": "w8a16", "nvfp4": "w4a16"}
"""Schemes of the same bits a weight whose arithmetic is in 16 bit."""


class Lane(NamedTuple):
    """Whose kernels multiply: a number type on a GPU, as a runtime's kernel tables have it ("": any runtime's)."""

    gpu: str
    scheme: str
    runtime: str
    architecture: str
    """`sm9` is Hopper, `sm10` Blackwell: GPUs of one run the same kernels."""

    @property
    def kind(self) -> str:
        return f"{self.gpu} {self.scheme}"


class Priced(NamedTuple):
    """A product on a GPU: seconds to read all its weights, to read and write the activations of a row, of arithmetic a
    row; experts, and how many of them a token meets."""

    lane: Lane
    weight_s: float
    row_s: float
    flop_s: float
    experts: float
    chosen: float
    head: bool


@dataclass(frozen=True, eq=False)
class Placement:
    """A model in a scheme on some GPUs: all that no traffic changes."""

    shard: Shard
    gpu: GpuModel
    scheme: Scheme
    products: tuple[Priced, ...]
    launches: float
    """Kernels of a forward pass."""
    cache_read: float
    """Fraction of the bandwidth at which isolated decode attention reads its cache."""
    message_s: float
    """Of the all-reduces of one token, bandwidth alone."""
    reduces: float
    """All-reduces of a pass times log2 of the GPUs: the steps of a tree, and the skew between them."""
    cache_bytes: int
    """Free for the cache."""


class Case(NamedTuple):
    """`concurrency` requests of `prompt` and `output` tokens, after a `prefix` that all share and that is cached."""

    placement: Placement
    concurrency: float
    prompt: float
    output: float
    prefix: float = 0.0


@dataclass(frozen=True)
class Work:
    """Seconds at nominal speed, and counts. `lane` numbers `lanes`."""

    lanes: tuple[Lane, ...]
    lane: Array
    weight_s: Array
    row_s: Array
    flop_s: Array
    experts: Array
    chosen: Array
    head: Array
    cache_s: Array
    """Of one request's cache in a decode step."""
    cache_share: Array
    """Fraction of the bandwidth at which isolated kernels read it."""
    score_s: Array
    """Of its attention's arithmetic in a decode step."""
    prompt_s: Array
    """Of a prompt's attention."""
    message_s: Array
    reduces: Array
    launches: Array
    running: Array
    waiting: Array
    prompt: Array
    output: Array

    def rows(self, keep: Array) -> Work:
        """The cases of an index or a mask."""
        return Work(self.lanes, *(getattr(self, f.name)[keep] for f in fields(self)[1:]))


def case_of(row: Mapping[str, Any]) -> Case:
    """A case of a row with the columns of serving_points.csv; BadInput says which column is wrong."""
    where = word(row, "id") or "row"
    model, system = (text(row, name, where) for name in ("model_path", "system"))
    spelled = word(row, "gemm_quant_mode") or word(row, "precision")
    runtime = word(row, "backend").lower()
    placed = placement_named(model, whole(row, "tp_size", where), system, spelled, runtime, where)
    return Case(placed, *(positive(row, name, where) for name in ("batch_size", "isl", "osl")))


def placement_named(model: str, tensor: int, system: str, precision: str, runtime: str, where: str) -> Placement:
    """Checkpoints with 8 or 4-bit activations are served with an FP8 cache where the GPU has FP8, and weight-only where it
    lacks their arithmetic (as vLLM's Marlin does: FP8 on Ampere, FP4 on Hopper)."""
    device, scheme = gpu(system, f"{where}: system"), gpu_scheme(precision, f"{where}: precision")
    cached = "-kv8" if scheme.activations is not None and "fp8" in device.flops_per_s else ""
    served = stem_of(scheme) if arithmetic(scheme) in device.flops_per_s else WEIGHT_ONLY[stem_of(scheme)]
    return known_placement(model, tensor, device.name, served + cached, runtime)


@cache
def known_placement(model: str, tensor: int, device: str, scheme: str, runtime: str) -> Placement:
    return placement_of(shard_of(config_of(model), tensor), gpu(device), gpu_scheme(scheme), runtime)


def placement_of(shard: Shard, device: GpuModel, scheme: Scheme, runtime: str = "", limit_bytes: int | None = None) -> Placement:
    ring = (shard.tensor - 1) / shard.tensor
    message = shard.reduced * shard.inventory.hidden * ACTIVATION_BYTES * 2 * ring
    return Placement(
        shard=shard,
        gpu=device,
        scheme=scheme,
        products=tuple(priced(one, scheme, device, runtime) for one in shard.products),
        launches=launches(shard, scheme),
        cache_read=cache_read(device.name, round(cache_bits(scheme)), runtime),
        message_s=message / device.link_bytes_per_s,
        reduces=shard.reduced * math.log2(shard.tensor),
        cache_bytes=memory_of(shard, device, scheme, 1, limit_bytes).cache_bytes,
    )


def priced(one: Product, scheme: Scheme, device: GpuModel, runtime: str) -> Priced:
    quantized = one.quantizable and scheme.weights is not None
    kind = arithmetic(scheme) if quantized else "bf16"
    if kind not in device.flops_per_s:
        raise BadInput(device.name, f"has no {kind} arithmetic", f"it has {', '.join(device.flops_per_s)}")
    read, times = device.read_bytes_per_s, max(1, one.chosen) * one.layers
    return Priced(
        lane=Lane(device.name, stem_of(scheme) if quantized else "bf16", runtime, f"sm{device.compute_capability // 10}"),
        weight_s=one.layers * max(1, one.experts) * stored_bytes(one.n, one.k, scheme, quantized) / read,
        row_s=times * ACTIVATION_BYTES * (one.n + one.k) / read,
        flop_s=times * 2 * one.n * one.k / device.flops_per_s[kind],
        experts=max(1, one.experts),
        chosen=max(1, one.chosen),
        head=one.head,
    )


def launches(shard: Shard, scheme: Scheme) -> float:
    """One kernel a product, one more to quantize its input, and what stands between them."""
    quantized = scheme.activations is not None
    multiplied = sum(one.layers * (1 + (quantized and one.quantizable)) for one in shard.products)
    routed = max((one.layers for one in shard.products if one.experts), default=0)
    between = NORMS_ROPE_ATTENTION_GATE + HEAD_NORMS * shard.head_norms
    return float(multiplied + shard.inventory.layers * between + ROUTING * routed)


def work_of(cases: Sequence[Case]) -> Work:
    """The arrays of some cases; placements are priced once."""
    places = list({id(case.placement): case.placement for case in cases}.values())
    index = {id(place): i for i, place in enumerate(places)}
    at = np.array([index[id(case.placement)] for case in cases])
    lanes: dict[Lane, int] = {}
    for place in places:
        for one in place.products:
            lanes.setdefault(one.lane, len(lanes))
    table = np.zeros((7, len(places), max(len(place.products) for place in places)))
    table[4:6] = 1
    for i, place in enumerate(places):
        table[:, i, : len(place.products)] = np.array([(lanes[one.lane], *one[1:]) for one in place.products]).T
    lane, *priced_products, head = table[:, at]
    concurrency, prompt, output, prefix = np.array([case[1:] for case in cases], dtype=float).T
    flat = by_case([flat_of(place) for place in places], at, concurrency, prompt, output, prefix)
    arrays: list[Array] = [lane.astype(int), *priced_products, head > 0, *flat, prompt, output]
    return Work(tuple(lanes), *arrays)


def flat_of(place: Placement) -> tuple[float, ...]:
    """Numbers of a placement in the order that `by_case` takes them."""
    shard, value = place.shard, cache_bits(place.scheme) / 8
    window = shard.inventory.sliding_window
    share = shard.window_values / max(1, shard.window_values + shard.cache_values)
    heads = 2 * shard.query_heads * shard.inventory.layers / place.gpu.flops_per_s["bf16"]
    return (
        (shard.cache_values + shard.window_values) * value,
        share,
        math.inf if window is None else window,
        place.gpu.read_bytes_per_s,
        place.cache_read,
        heads * shard.score_dim,
        heads * shard.prompt_dim,
        place.cache_bytes,
        place.message_s,
        place.reduces,
        place.launches,
    )


def by_case(flat: list[tuple[float, ...]], at: Array, concurrency: Array, prompt: Array, output: Array, prefix: Array) -> Arrays:
    """cache_s, cache_share, score_s, prompt_s, message_s, reduces, launches, running and waiting: [R] each."""
    token, share, window, read, reached, score, fresh, free, message, reduces, launched = np.array(flat)[at].T

    def seen(tokens: Array) -> Array:
        return np.asarray(share * np.minimum(tokens, window) + (1 - share) * tokens)

    middle = prefix + prompt + output / 2
    cached = token * seen(middle)
    running = np.clip(free / cached, 1, concurrency)
    scores = fresh * prompt * seen(prefix + prompt / 2)
    return cached / read, reached, score * seen(middle), scores, message, reduces, launched, running, concurrency - running


def word(row: Mapping[str, Any], name: str) -> str:
    """A column as text; "" where it is absent or blank: None, "", or NaN, which is how pandas reads a blank."""
    value = row.get(name)
    return "" if value is None or value != value else str(value).strip()


def text(row: Mapping[str, Any], name: str, where: str) -> str:
    found = word(row, name)
    if not found:
        raise BadInput(f"{where}: {name}", "is missing", "give the columns of serving_points.csv")
    return found


def positive(row: Mapping[str, Any], name: str, where: str) -> float:
    try:
        value = float(row.get(name) or "nan")
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise BadInput(f"{where}: {name}", f"must be a positive number, found {row.get(name)!r}")
    return value


def whole(row: Mapping[str, Any], name: str, where: str) -> int:
    value = positive(row, name, where)
    if value != int(value):
        raise BadInput(f"{where}: {name}", f"must be a whole number, found {row.get(name)!r}")
    return int(value)
