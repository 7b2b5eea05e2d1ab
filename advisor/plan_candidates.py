"""What may be planned on a GPU: scheme x runtime x tensor parallel, each possible or refused with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from quantadvisor.documents import AdvisorError, BadInput, GpuModel, PlanCandidate, PlanMemory, Workload
from quantadvisor.kernels.gpu_fractions import runtimes_with
from quantadvisor.kernels.gpu_schemes import CACHE, arithmetic, gpu_scheme
from quantadvisor.kernels.gpu_tables import Looked, all_reduce_s, decode_attention_s, prefill_attention_s, product_s, sum_of
from quantadvisor.profiling.gpu_memory import memory_of
from quantadvisor.profiling.inventory import EXACT, is_known
from quantadvisor.profiling.published import config_of
from quantadvisor.profiling.shard import Shard, shard_of

from .serving_work import Placement, placement_of

STEMS = ("bf16", "w8a16", "fp8", "w8a8-int8", "w4a16", "nvfp4")
"""In the order of what quality is expected to keep; ties go to the first."""
SCHEMES = tuple(stem + cache for stem in STEMS for cache in ("", CACHE))
RUNTIMES = ("vllm", "sglang", "trtllm")
GROUPS = (1, 2, 4, 8)


class Option(NamedTuple):
    """A candidate that runs, with what the model needs to time it."""

    candidate: PlanCandidate
    placement: Placement
    memory: PlanMemory


def options_on(device: GpuModel, config: Mapping[str, Any], workload: Workload) -> tuple[list[Option], list[PlanCandidate]]:
    """(what fits, what is refused)."""
    fits: list[Option] = []
    refused: list[PlanCandidate] = []
    for tensor in tensors(workload, device):
        if tensor > device.gpus:
            reason = f"{tensor} GPUs are more than a node's {device.gpus}: no measured kernel reduces between nodes"
            refused.append(candidate(device, "any", "any", tensor, reason))
            continue
        try:
            shard = shard_of(config, tensor)
        except BadInput as error:
            if "parallel" in workload.model_fields_set or tensor == 1:  # every model is whole on one GPU: its config is at fault
                raise
            refused.append(candidate(device, "any", "any", tensor, str(error)))
            continue
        for scheme, runtime in pairs(workload):
            made = option(device, shard, scheme, runtime, workload)
            if isinstance(made, PlanCandidate):
                refused.append(made)
            else:
                fits.append(made)
    return fits, refused


def tensors(workload: Workload, device: GpuModel) -> Sequence[int]:
    """The declared degree, or those of one node where the spec says none."""
    if "parallel" in workload.model_fields_set:
        return (workload.parallel.tensor,)
    return [one for one in GROUPS if one <= device.gpus]


def pairs(workload: Workload) -> Iterator[tuple[str, str]]:
    for scheme in SCHEMES:
        for runtime in runtimes_of(workload):
            yield scheme, runtime


def runtimes_of(workload: Workload) -> Sequence[str]:
    if workload.runtimes == "auto":
        return RUNTIMES
    names = [one if isinstance(one, str) else one.name for one in workload.runtimes]
    if not names:
        raise BadInput("runtimes", "the list is empty", f"leave it auto, or name some of {', '.join(RUNTIMES)}")
    unknown = [name for name in names if name not in RUNTIMES]
    if unknown:
        raise BadInput("runtimes", f"{unknown[0]!r} has no kernel tables", f"plan knows {', '.join(RUNTIMES)}")
    return names


def option(device: GpuModel, shard: Shard, name: str, runtime: str, workload: Workload) -> Option | PlanCandidate:
    scheme = gpu_scheme(name)
    reason = refusal(device, name, runtime)
    limit = limit_bytes_of(workload)
    if reason is None:
        try:
            memory = memory_of(shard, device, scheme, workload.traffic.context_length, limit)
        except AdvisorError as error:
            reason = str(error)
        else:
            if memory.max_concurrency < 1:
                free = min(device.memory_bytes, limit or device.memory_bytes) / 2**30
                reason = f"{memory.weights_bytes / 2**30:.1f} GiB of weights leave no room for one request in {free:.0f} GiB"
            else:
                made = candidate(device, name, runtime, shard.tensor).model_copy(update={"memory": memory})
                return Option(made, placement_of(shard, device, scheme, runtime, limit), memory)
    return candidate(device, name, runtime, shard.tensor, reason)


def known_config(model: str) -> Mapping[str, Any]:
    """A model's config, where its architecture is counted exactly here."""
    config = config_of(model)
    if is_known(config):
        return config
    nested = config.get("text_config")
    kind = (config if nested is None else nested).get("model_type")
    if kind is None:
        raise BadInput(model, "the config's field model_type is missing", "give the model's whole config.json")
    raise BadInput(model, f"architecture {kind!r} is unknown here", f"known: {', '.join(sorted(EXACT))}")


def limit_bytes_of(workload: Workload) -> int | None:
    return None if workload.memory_limit_gib is None else round(workload.memory_limit_gib * 2**30)


def isolated(one: Option, requests: int, context: int, fresh: int = 0) -> Looked:
    """A decode step of some requests by the runtime's tables, or with `fresh` tokens each their prompts' pass: products,
    attention, all-reduces. Without lm_head, whose vocabulary is beyond them; experts see their share of the rows; latent
    attention is not in them."""
    place, stem, rows = one.placement, one.candidate.scheme.removesuffix(CACHE), requests * max(1, fresh)
    parts = []
    for product in place.shard.products:
        if product.head:
            continue
        met = max(1, min(product.experts, rows * product.chosen))
        m = max(1.0, rows * product.chosen / met) if product.experts else float(rows)
        scheme = stem if product.quantizable else "bf16"
        found = product_s(place.gpu, one.candidate.runtime, scheme, m, product.n, product.k)
        parts.append((product.layers * (met if product.experts else 1), found))
    shard, layers = place.shard, place.shard.inventory.layers
    kv_heads, dim = max(1, shard.inventory.kv_heads // shard.tensor), shard.inventory.head_dim
    bits = 8 if place.scheme.quantizes_cache else 16
    attention_s = prefill_attention_s if fresh else decode_attention_s
    seen = (requests, fresh or context, shard.query_heads, kv_heads, dim, bits)
    parts.append((layers, attention_s(place.gpu, one.candidate.runtime, *seen)))
    if shard.reduced:
        message = 2.0 * rows * shard.inventory.hidden
        parts.append((shard.reduced, all_reduce_s(place.gpu, one.candidate.runtime, shard.tensor, message)))
    return sum_of(parts)


def candidate(device: GpuModel, scheme: str, runtime: str, tensor: int, refused: str | None = None) -> PlanCandidate:
    name = f"{scheme}@{runtime}x{tensor}"
    return PlanCandidate(name=name, device=device.name, scheme=scheme, runtime=runtime, tensor=tensor, refused=refused)


def refusal(device: GpuModel, name: str, runtime: str) -> str | None:
    """Why no kernel does this there."""
    scheme = gpu_scheme(name)
    kind = arithmetic(scheme)
    if kind not in device.flops_per_s:
        return f"{device.name} has no {kind} arithmetic"
    if scheme.quantizes_cache and "fp8" not in device.flops_per_s:
        return f"no measured kernel reads an FP8 cache on {device.name}"
    stem = name.removesuffix(CACHE)
    if runtime not in runtimes_with(device.name, stem):
        return f"no measured kernel of {stem} in {runtime} on {device.name}"
    return None
