"""Bytes on one GPU of a tensor-parallel group, before anything runs there: pure functions of a shard and a scheme.

    weights       every product in its scheme with its scales; embedding, head, routers, norms and biases in bf16
    cache         whole blocks of 16 tokens for each sequence (PagedAttention, arXiv:2309.06180)
    activations   of one pass over the scheduler's largest batch of tokens
    reserve       the share of memory that servers leave alone, context, graphs and buffers of the links

All modelled. Servers give the cache what is left: that, in whole sequences of the declared context, is the concurrency.
"""

from __future__ import annotations

import math

from quantadvisor.documents import GpuModel, PlanMemory, Scheme
from quantadvisor.kernels.gpu_schemes import cache_bits, stored_bytes

from .shard import Shard

BLOCK_TOKENS = 16
"""vLLM's --block-size; TensorRT-LLM's is 32, which changes nothing beyond a context of a few hundred."""
BATCHED_TOKENS = 8192
"""vLLM's and TensorRT-LLM's --max-num-batched-tokens."""
USED_SHARE = 0.9
"""vLLM's --gpu-memory-utilization and TensorRT-LLM's share of free memory."""
CONTEXT_BYTES = 1 << 30
"""CUDA context, graphs and workspaces, measured by servers as about a GiB."""
LINK_BYTES = 400 << 20
"""NCCL's and the custom all-reduce's buffers where there is more than one GPU."""


def weight_bytes(shard: Shard, scheme: Scheme) -> int:
    """Stored on this GPU."""
    total = 2.0 * shard.others
    for one in shard.products:
        if not one.head:
            each = stored_bytes(one.n, one.k, scheme, one.quantizable)
            total += each * one.layers * max(1, one.experts)
    tables = 1 if shard.inventory.tied_embeddings else 2
    return math.ceil(total + 2.0 * shard.embedding * tables)


def cache_token_bytes(shard: Shard, scheme: Scheme) -> float:
    """Bytes of a token of context, on this GPU, in every layer that keeps it."""
    return (shard.cache_values + shard.window_values) * cache_bits(scheme) / 8


def sequence_bytes(shard: Shard, scheme: Scheme, tokens: int) -> float:
    """Of one sequence, in whole blocks; layers with a window keep that many tokens."""
    blocks = math.ceil(tokens / BLOCK_TOKENS) * BLOCK_TOKENS
    window = shard.inventory.sliding_window
    kept = blocks if window is None else min(blocks, math.ceil(window / BLOCK_TOKENS + 1) * BLOCK_TOKENS)
    return (shard.cache_values * blocks + shard.window_values * kept) * cache_bits(scheme) / 8


def activation_bytes(shard: Shard, tokens: int = BATCHED_TOKENS) -> int:
    """Peak of one pass: the residual stream twice and the widest product's input and output, and the logits of 256 rows."""
    widest = max(one.n + one.k for one in shard.products if not one.head and not one.experts)
    experts = max((one.chosen * (one.n + one.k) for one in shard.products if one.experts), default=0)
    logits = 256 * shard.inventory.vocabulary * 4
    return 2 * tokens * (2 * shard.inventory.hidden + max(widest, experts)) + logits


def reserve_bytes(shard: Shard, gpu: GpuModel) -> int:
    return round((1 - USED_SHARE) * gpu.memory_bytes) + CONTEXT_BYTES + (LINK_BYTES if shard.tensor > 1 else 0)


def memory_of(shard: Shard, gpu: GpuModel, scheme: Scheme, context_tokens: int, limit_bytes: int | None = None) -> PlanMemory:
    """The ledger of one GPU. `limit_bytes`: what the user allows of it, all told."""
    weights, activations = weight_bytes(shard, scheme), activation_bytes(shard)
    reserve = reserve_bytes(shard, gpu)
    cache = max(0, min(gpu.memory_bytes, limit_bytes or gpu.memory_bytes) - weights - activations - reserve)
    return PlanMemory(
        weights_bytes=weights,
        cache_bytes_per_token=cache_token_bytes(shard, scheme),
        activations_bytes=activations,
        reserve_bytes=reserve,
        cache_bytes=cache,
        max_concurrency=math.floor(cache / sequence_bytes(shard, scheme, context_tokens)),
    )
