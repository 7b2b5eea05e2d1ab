"""Bytes by tensor class at a declared workload: pure functions of an inventory and a scheme.

`memory_ledger` says line by line what is modelled and what was measured.
Conventions: integer weights are stored in whole groups along K, packed to whole bytes per group; a scale per group
(or per output channel, or one), and a zero point of as many bits as the weight where the format is asymmetric.
"""

from __future__ import annotations

import math

from quantadvisor.documents import Format, Inventory, LedgerItem, LinearShape, MemoryLedger, Scheme
from quantadvisor.kernels import ggml_types
from quantadvisor.kernels.problem import matrix_bytes

BLOCK_TOKENS = 128
"""A block of vLLM's cache on a CPU (16 on a GPU)."""
LEAST_POOL_TOKENS = 2048


def compute_bytes(scheme: Scheme) -> int:
    """Bytes of an element that the scheme leaves alone."""
    return {"fp32": 4, "bf16": 2, "fp16": 2}[scheme.compute]


def bytes_of_weights(inventory: Inventory, scheme: Scheme, *, scale_bytes: int | None = None, tied_once: bool = True) -> int:
    """Stored bytes of all weights of the scheme: linears, embedding, head, norms and biases.

    `scale_bytes`: of one scale (None: those of the compute type, as ONNX Runtime and OpenVINO store them; GGUF's are its own).
    `tied_once`: a tied head is the embedding itself where both have one format; otherwise it is stored again.
    """
    plain = compute_bytes(scheme)
    scale = plain if scale_bytes is None else scale_bytes
    total = inventory.other_parameters * plain
    if scheme.weights is not None and (file_type := scheme.name.partition("-")[0]) in ggml_types.BLOCK_BYTES:
        return total + gguf_bytes(inventory, scheme, file_type)
    for shape in inventory.linears:
        if not shape.lm_head:
            total += shape.count * matrix_bytes(shape.n, shape.k, scheme.weights, plain, scale)
    table = (inventory.vocabulary, inventory.hidden)
    total += matrix_bytes(*table, scheme.embeddings, plain, scale)
    if not (inventory.tied_embeddings and tied_once and scheme.embeddings == scheme.lm_head):
        total += matrix_bytes(*table, scheme.lm_head, plain, scale)
    return total


def gguf_bytes(inventory: Inventory, scheme: Scheme, file_type: str) -> int:
    """Of the matrices of a GGUF file: linears in the types that llama.cpp gives them, of experts the file's; the output layer in
    6 or 8 bits, or as an existing file has it; and where that is not the table too, a table in the file's type."""
    repeat = inventory.heads // inventory.kv_heads

    def rows_bytes(shape: LinearShape) -> int:
        names = shape.name.split(",")
        if shape.count != len(names) * shape.layers:
            return shape.count * ggml_types.row_bytes(file_type, shape.k)
        each = ((name, layer) for name in names for layer in range(shape.layers))
        kinds = (ggml_types.linear_type(file_type, name, layer, shape.layers, repeat) for name, layer in each)
        return sum(ggml_types.row_bytes(kind, shape.k) for kind in kinds)

    width, head = inventory.hidden, scheme.lm_head
    if head is None:
        row = width * compute_bytes(scheme)
    elif head.granularity == "block" and width % (head.group_size or 1) == 0:
        row = math.ceil(width * head.bits / 8)
    else:
        row = ggml_types.row_bytes("q8_0" if file_type == "q8_0" else "q6_k", width)
    if not inventory.tied_embeddings:
        row += ggml_types.row_bytes(file_type, width)
    linears = sum(shape.n * rows_bytes(shape) for shape in inventory.linears if not shape.lm_head)
    return linears + inventory.vocabulary * row


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
    per token; dynamic ones cost a scale (and a zero point where asymmetric), 4 bytes each, per token and head or group, or
    per group of tokens in a channel; of a codebook (TurboQuant) the norms of its vectors. A window of unquantized tokens is
    not counted.
    `windowed`: the runtime drops what a sliding window no longer sees (those used here keep it all).
    """
    plain = compute_bytes(scheme) if plain_bytes is None else plain_bytes
    half = inventory.kv_values_per_token / 2
    per_token = _cache_bytes(half, scheme.keys, plain, inventory.head_dim, unbiased=scheme.unbiased_keys)
    per_token += _cache_bytes(half, scheme.values, plain, inventory.head_dim)
    window, tokens = inventory.sliding_window, float(context_tokens)
    if windowed and window and (layers := int((inventory.model_extra or {}).get("sliding_layers", 0))):
        share = layers / inventory.layers
        tokens = share * min(context_tokens, window) + (1 - share) * context_tokens
    return math.ceil(per_token * tokens * concurrency)


def _cache_bytes(elements: float, number: Format | None, plain_bytes: int, head_dim: int, *, unbiased: bool = False) -> float:
    """`unbiased`: TurboQuant's keys in the prod form, which have the norm of what is left beside their own."""
    if number is None:
        return elements * plain_bytes
    if number.number == "codebook":  # a norm a vector; of half a bit each half of its channels has its own
        norms = (1 if number.bits == int(number.bits) else 2) * (2 if unbiased else 1)
        return elements * number.bits / 8 + elements / head_dim * 4 * norms
    scaled = {
        "token": number.group_size or head_dim,
        "group": number.group_size or head_dim,
        "block": number.group_size or 32,
        "channel": number.group_size,
    }
    each = scaled.get(number.granularity)
    overhead = 0.0 if each is None else elements / each * 4 * (1 if number.symmetric else 2)
    return elements * number.bits / 8 + overhead


def plain_cache_bytes(runtime: str) -> int | None:
    """Bytes of an unquantized cache's value where the runtime stores 16 bit whatever computes; else None."""
    return 2 if runtime in ("openvino", "llama.cpp", "vllm") else None


def held_tokens(runtime: str, context_tokens: int) -> int:
    """Tokens of cache that one request of `context_tokens` takes: vLLM gives out whole blocks, one of them ahead."""
    if runtime != "vllm":
        return context_tokens
    return (math.ceil(context_tokens / BLOCK_TOKENS) + 1) * BLOCK_TOKENS


def pool_bytes(inventory: Inventory, scheme: Scheme, runtime: str, context_tokens: int, requests: int) -> int:
    """Bytes of the pool of cache blocks that so many requests fill, of a runtime that takes one at load; 0 where it does not.

    At least LEAST_POOL_TOKENS, which texts are scored in; and one block that vLLM keeps for itself.
    """
    if runtime != "vllm":
        return 0
    tokens = max(LEAST_POOL_TOKENS, requests * held_tokens(runtime, context_tokens)) + BLOCK_TOKENS
    return bytes_of_cache(inventory, scheme, tokens, 1, plain_bytes=plain_cache_bytes(runtime))


def memory_ledger(
    inventory: Inventory,
    scheme: Scheme,
    *,
    prompt_tokens: int,
    context_tokens: int,
    concurrency: int,
    prefilled_rows: int,
    one_token_bytes: int,
    shorter: tuple[tuple[int, int], tuple[int, int]],
    measured_peak_bytes: int,
    cache_element_bytes: int | None = None,
    pool: int = 0,
) -> MemoryLedger:
    """The ledger at a workload, from the model and three smaller passes in the process; the peak at the workload itself
    is not used: it is what the sum is checked against.

    `one_token_bytes`: peak of a pass over one token; beyond the weights it is overhead. `shorter`: (tokens per prompt,
    peak) of two passes over `prefilled_rows` shorter prompts, the shorter first; activations are what grows from one to
    the other beside the cache, extrapolated in a straight line to `prompt_tokens`. `pool`: bytes of a cache that is taken whole
    at load, and so is in every pass.
    """
    weights = bytes_of_weights(inventory, scheme)
    cache_token = bytes_of_cache(inventory, scheme, 1, 1, plain_bytes=cache_element_bytes)
    cache = pool or cache_token * context_tokens * concurrency
    overhead = max(0, one_token_bytes - weights - pool)
    (less, peak_less), (more, peak_more) = shorter
    at_prompt = peak_more + (peak_more - peak_less) / max(1, more - less) * (prompt_tokens - more)
    grown = 0 if pool else cache_token * prefilled_rows * prompt_tokens
    live = max(0, round(at_prompt - one_token_bytes - grown))
    per_token = inventory.kv_values_per_token
    items = (
        LedgerItem(
            tensor="weights", bytes=weights, kind="modelled", source=f"{inventory.parameters:,} parameters as {scheme.name}"
        ),
        LedgerItem(
            tensor="kv_cache",
            bytes=cache,
            kind="modelled",
            source=f"{per_token:,} values a token x {context_tokens:,} tokens x {concurrency} requests"
            + ", in whole blocks" * bool(pool),
        ),
        LedgerItem(
            tensor="activations",
            bytes=live,
            kind="modelled",
            source=f"peaks of prompts of {less} and {more} tokens, extrapolated to {prompt_tokens:,} x {prefilled_rows}",
        ),
        LedgerItem(tensor="overhead", bytes=overhead, kind="measured", source="peak of a pass over one token, less the weights"),
    )
    return MemoryLedger(items=items, measured_peak_bytes=measured_peak_bytes)


def smallest_weights_bytes(inventory: Inventory, bits: float = 2) -> int:
    """Floor of what any scheme here stores: every matrix at `bits`, the rest in 16 bit, a tied head once."""
    matrices = inventory.parameters - inventory.other_parameters
    return math.ceil(matrices * bits / 8) + inventory.other_parameters * 2
