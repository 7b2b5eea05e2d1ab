"""Bytes by tensor class at a declared workload: pure functions of an inventory and a scheme.

Everything here is modelled until a measured part is passed in; `memory_ledger` says which is which, line by line.
Conventions: integer weights are stored in whole groups along K, packed to whole bytes per group; a scale per group
(or per output channel, or one), and a zero point of as many bits as the weight where the format is asymmetric.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from quantadvisor.documents import Format, Inventory, LedgerItem, MemoryLedger, Scheme
from quantadvisor.kernels.problem import matrix_bytes


def compute_bytes(scheme: Scheme) -> int:
    """Bytes of an element that the scheme leaves alone."""
    return {"fp32": 4, "bf16": 2}[scheme.compute]


def bytes_of_weights(inventory: Inventory, scheme: Scheme, *, scale_bytes: int | None = None, tied_once: bool = True) -> int:
    """Stored bytes of all weights of the scheme: linears, embedding, head, norms and biases.

    `scale_bytes`: of one scale (None: those of the compute type, as MatMulNBits stores them; OpenVINO stores 2).
    `tied_once`: a tied head is the embedding itself where both have one format; otherwise it is stored again.
    """
    plain = compute_bytes(scheme)
    scale = plain if scale_bytes is None else scale_bytes
    total = inventory.other_parameters * plain
    for shape in inventory.linears:
        if not shape.lm_head:
            total += shape.count * matrix_bytes(shape.n, shape.k, scheme.weights, plain, scale)
    table = (inventory.vocabulary, inventory.hidden)
    total += matrix_bytes(*table, scheme.embeddings, plain, scale)
    if not (inventory.tied_embeddings and tied_once and scheme.embeddings == scheme.lm_head):
        total += matrix_bytes(*table, scheme.lm_head, plain, scale)
    return total


def bytes_of_cache(
    inventory: Inventory,
    scheme: Scheme,
    context_tokens: int,
    concurrency: int,
    *,
    plain_bytes: int | None = None,
    windowed: bool = False,
) -> int:
    """Bytes of keys and values of `concurrency` sequences of `context_tokens` each.

    `plain_bytes`: of an unquantized element (None: the compute type's). Static scales (tensor, channel) cost nothing
    per token; dynamic ones cost a scale (and a zero point where asymmetric), 4 bytes each, per token and head or group.
    `windowed`: the runtime drops what a sliding window no longer sees (those used here keep it all).
    """
    plain = compute_bytes(scheme) if plain_bytes is None else plain_bytes
    half = inventory.kv_values_per_token / 2
    per_token = sum(_cache_bytes(half, one, plain, inventory.head_dim) for one in (scheme.keys, scheme.values))
    window, layers = inventory.sliding_window, int((inventory.model_extra or {}).get("sliding_layers", 0))
    tokens = float(context_tokens)
    if windowed and window and layers:
        share = layers / inventory.layers
        tokens = share * min(context_tokens, window) + (1 - share) * context_tokens
    return math.ceil(per_token * tokens * concurrency)


def _cache_bytes(elements: float, number: Format | None, plain_bytes: int, head_dim: int) -> float:
    if number is None:
        return elements * plain_bytes
    scaled = {"token": head_dim, "group": number.group_size or head_dim, "block": number.group_size or 32}
    each = scaled.get(number.granularity)
    overhead = 0.0 if each is None else elements / each * 4 * (1 if number.symmetric else 2)
    return elements * number.bits / 8 + overhead


def peak_activation_bytes(inventory: Inventory, tokens_in_pass: int, *, logits_rows: int = 1, element_bytes: int = 4) -> int:
    """Bytes of the activations alive at the widest point of one forward pass over `tokens_in_pass` tokens.

    max over the two halves of a layer of tokens x (2 hidden + width), plus rows x vocabulary of fp32 logits, where
    width = 2 heads·head_dim + 2 kv_heads·head_dim (q, k, v and the attended values) or 3 intermediate (gate, up and
    their product). Assumes attention without a materialised score matrix and a runtime that reuses buffers.
    """
    attention = 2 * (inventory.heads + inventory.kv_heads) * inventory.head_dim
    mlp = 3 * max((one.k for one in inventory.linears if not one.lm_head and one.n == inventory.hidden), default=0)
    live = tokens_in_pass * (2 * inventory.hidden + max(attention, mlp)) * element_bytes
    return live + logits_rows * inventory.vocabulary * 4


def memory_ledger(
    inventory: Inventory,
    scheme: Scheme,
    *,
    context_tokens: int,
    concurrency: int,
    tokens_in_pass: int,
    overhead_bytes: int = 0,
    measured: Mapping[str, int] | None = None,
    measured_peak_bytes: int | None = None,
    cache_element_bytes: int | None = None,
    scale_bytes: int | None = None,
    tied_once: bool = True,
) -> MemoryLedger:
    """The ledger of one scheme at a workload; `measured` parts (by tensor, bytes) take the place of modelled ones."""
    weights = bytes_of_weights(inventory, scheme, scale_bytes=scale_bytes, tied_once=tied_once)
    cache = bytes_of_cache(inventory, scheme, context_tokens, concurrency, plain_bytes=cache_element_bytes)
    element = compute_bytes(scheme)
    live = peak_activation_bytes(inventory, tokens_in_pass, logits_rows=concurrency, element_bytes=element)
    per_token = inventory.kv_values_per_token
    modelled = {
        "weights": (weights, f"{inventory.parameters} parameters stored as {scheme.name}"),
        "kv_cache": (cache, f"{per_token} values a token x {context_tokens} tokens x {concurrency} requests"),
        "activations": (live, f"widest layer over {tokens_in_pass} tokens, and logits"),
        "overhead": (overhead_bytes, "given" if overhead_bytes else "not modelled"),
    }
    given = dict(measured or {})
    if unknown := set(given) - set(modelled):
        raise ValueError(f"unknown parts of the ledger: {sorted(unknown)}; known are {sorted(modelled)}")
    items = [
        LedgerItem(tensor=name, bytes=given[name], kind="measured", source="measured in the process")
        if name in given
        else LedgerItem(tensor=name, bytes=size, kind="modelled", source=source)
        for name, (size, source) in modelled.items()
    ]
    return MemoryLedger(items=tuple(items), measured_peak_bytes=measured_peak_bytes)


def smallest_weights_bytes(inventory: Inventory, bits: float = 2) -> int:
    """Floor of what any scheme here stores: every matrix at `bits`, the rest in 16 bit, a tied head once."""
    matrices = inventory.parameters - inventory.other_parameters
    return math.ceil(matrices * bits / 8) + inventory.other_parameters * 2


def max_concurrency(limit_bytes: int, fixed_bytes: int, bytes_per_request: int) -> int:
    """Most requests whose cache and activations fit beside what does not grow with them; 0 where nothing fits."""
    if bytes_per_request <= 0:
        raise ValueError(f"bytes_per_request must be positive, found {bytes_per_request}")
    return max(0, (limit_bytes - fixed_bytes) // bytes_per_request)
