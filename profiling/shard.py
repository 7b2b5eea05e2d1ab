"""What one GPU of a tensor-parallel group holds and multiplies, from the model's config: a pure function.

The split is Megatron's (arXiv:1909.08053): queries, keys, values, gate and up by output, o and down by input, lm_head and
embedding by vocabulary, two all-reduces a layer. Key and value heads are copied where there are fewer of them than
GPUs; latents (MLA), routers and norms are on every GPU. q, k, v run as one product, and so do gate and up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from quantadvisor.documents import BadInput, Inventory

from .inventory import Linear, chosen_experts, has_head_norms, inventory_from_config, latent_values, linears_from_config

WHOLE = ("router", "shared_expert_gate", "q_a_proj", "kv_a_proj_with_mqa")
"""Linears that every GPU holds whole."""
BY_INPUT = ("o_proj", "down_proj")
TOGETHER = {
    "q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "qkv_proj": "qkv",
    "gate_proj": "gate_up", "up_proj": "gate_up", "gate_up_proj": "gate_up",
}  # fmt: skip
UNQUANTIZED = ("router", "shared_expert_gate")
"""Linears that published quantized checkpoints leave in 16 bit."""


class Product(NamedTuple):
    """y[m, n] = x[m, k] @ w[n, k].T on one GPU, in `layers` layers; of `experts` such matrices a token meets `chosen`."""

    name: str
    n: int
    k: int
    layers: int
    experts: int = 0
    chosen: int = 0
    head: bool = False

    @property
    def quantizable(self) -> bool:
        return not self.head and self.name not in UNQUANTIZED

    @property
    def stored(self) -> int:
        """Weights that the GPU holds."""
        return self.n * self.k * self.layers * max(1, self.experts)


@dataclass(frozen=True, eq=False)
class Shard:
    """One GPU's part of a decoder. Cache values are elements a token, over its layers of that kind."""

    inventory: Inventory
    tensor: int
    products: tuple[Product, ...]
    query_heads: int
    score_dim: int
    """Multiply-adds a query head spends on one cached token: over its key and over its value."""
    prompt_dim: int
    """The same over a fresh prompt, where MLA's latent is expanded to heads."""
    cache_values: int
    """Of layers that attend to everything."""
    window_values: int
    """Of layers that attend to a window."""
    embedding: int
    others: int
    reduced: int
    """All-reduces of [tokens, hidden] a forward pass."""
    head_norms: bool


def shard_of(config: Mapping[str, Any], tensor: int = 1) -> Shard:
    """One of `tensor` GPUs' part. BadInput where the heads cannot be split so."""
    inventory = inventory_from_config(config)
    refuse_split(inventory, tensor)
    chosen, latent = chosen_experts(config), latent_values(config)
    score_dim, prompt_dim = attention_dims(config, inventory, latent)
    kv_heads = max(1, inventory.kv_heads // tensor)
    elements = latent if latent else 2 * kv_heads * inventory.head_dim
    windowed = int((inventory.model_extra or {}).get("sliding_layers", 0)) if inventory.sliding_window else 0
    head = Product("lm_head", math.ceil(inventory.vocabulary / tensor), inventory.hidden, 1, head=True)
    return Shard(
        inventory=inventory,
        tensor=tensor,
        products=(*joined([split(one, inventory, tensor, chosen) for one in linears_from_config(config)]), head),
        query_heads=inventory.heads // tensor,
        score_dim=score_dim,
        prompt_dim=prompt_dim,
        cache_values=elements * (inventory.layers - windowed),
        window_values=elements * windowed,
        embedding=math.ceil(inventory.vocabulary / tensor) * inventory.hidden,
        others=inventory.other_parameters,
        reduced=2 * inventory.layers if tensor > 1 else 0,
        head_norms=has_head_norms(config),
    )


def refuse_split(inventory: Inventory, tensor: int) -> None:
    heads, kv = inventory.heads, inventory.kv_heads
    if heads % tensor:
        fits = [one for one in (1, 2, 4, 8, 16) if heads % one == 0]
        raise BadInput("parallel.tensor", f"{tensor} does not divide the {heads} attention heads", f"give one of {fits}")
    if max(kv, tensor) % min(kv, tensor):
        raise BadInput(
            "parallel.tensor", f"{tensor} neither divides nor is a multiple of the {kv} key-value heads", "give 1 or 2"
        )


def attention_dims(config: Mapping[str, Any], inventory: Inventory, latent: int) -> tuple[int, int]:
    """Multiply-adds a query head spends on a cached token and on a fresh one.

    MLA decodes against the latent: keys meet all of it, values all but its rotary part (arXiv:2405.04434, section 2.1).
    """
    if not latent:
        return 2 * inventory.head_dim, 2 * inventory.head_dim
    text = config.get("text_config") or config
    return 2 * latent - int(text["qk_rope_head_dim"]), inventory.head_dim + int(text["v_head_dim"])


def split(one: Linear, inventory: Inventory, tensor: int, chosen: int) -> Product:
    """The GPU's part of a linear. An expert is split like any MLP; of all of them `each` a layer."""
    stem = one.name.rsplit(".", 1)[-1]
    n, k = one.n, one.k
    if stem in ("k_proj", "v_proj"):
        n = max(inventory.kv_heads // tensor, 1) * inventory.head_dim
    elif stem == "qkv_proj":
        n = (inventory.heads // tensor + 2 * max(inventory.kv_heads // tensor, 1)) * inventory.head_dim
    elif stem in BY_INPUT:
        k = math.ceil(k / tensor)
    elif stem not in WHOLE:
        n = math.ceil(n / tensor)
    if one.expert:
        return Product(one.name, n, k, one.layers, one.each, chosen)
    return Product(one.name, n, k, one.layers)


def joined(products: list[Product]) -> list[Product]:
    """Those that runtimes multiply at once as one."""
    made: dict[tuple[str, int, int], Product] = {}
    for one in products:
        prefix, _, stem = one.name.rpartition(".")
        name = f"{prefix}.{TOGETHER.get(stem, stem)}".lstrip(".")
        key = (name, one.k, one.layers)
        before = made.get(key)
        made[key] = one._replace(name=name, n=one.n + (before.n if before else 0))
    return list(made.values())
