"""Sizes of a decoder from the dict of its Hugging Face config.json alone: no weights, no torch.

Counts are exact for the architectures in `EXACT` (the tests compare them with transformers, to the unit) and a
Llama-shaped estimate, with a note, for others. Shapes are those of `nn.Linear`: weight [N, K].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from quantadvisor.documents import BadInput, Inventory, LinearShape

EXACT = {
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "smollm3", "granite",
    "mixtral", "qwen2_moe", "qwen3_moe", "glm4_moe", "gpt_oss", "deepseek_v2", "deepseek_v3", "kimi_k2",
}  # fmt: skip
SAME_TEXT = {"qwen3_vl_text": "qwen3", "qwen3_vl_moe_text": "qwen3_moe"}
"""Text parts of multimodal models that are another architecture's, shape by shape."""
TIED_BY_DEFAULT = {"gemma", "gemma2", "gemma3_text", "smollm3"}
HEAD_DIM_BY_DEFAULT = {"gemma": 256, "gemma2": 256, "gemma3_text": 256, "qwen3": 128, "gpt_oss": 64}
FOUR_NORMS = {"gemma2", "gemma3_text"}
HEAD_NORMS = {"qwen3", "qwen3_moe", "gemma3_text"}
LATENT = {"deepseek_v2", "deepseek_v3", "kimi_k2"}
EXPERTS_FIELD = {
    "mixtral": "num_local_experts", "gpt_oss": "num_local_experts", "qwen2_moe": "num_experts", "qwen3_moe": "num_experts",
    **dict.fromkeys(("glm4_moe", *sorted(LATENT)), "n_routed_experts"),
}  # fmt: skip
"""Of a mixture's config: how many experts a layer routes to."""
QUERY_KEY_VALUE_BIAS = {"qwen2", "qwen2_moe", "glm4_moe"}
"""Architectures whose biased attention has none on its output."""
QWEN_FULL_LAYERS = 28
"""The first layers of Qwen2 and Qwen3 that attend to all tokens, where a window is used and `max_window_layers` is not given."""
BIASED_BY_DEFAULT = {"qwen2", "qwen2_moe", "gpt_oss"}
WHERE = "config.json"


class Linear(NamedTuple):
    """`each` linears y = x @ w[N, K].T in each of `layers` layers; experts are `expert`, fused or not."""

    name: str
    n: int
    k: int
    layers: int
    each: int = 1
    bias: bool = False
    expert: bool = False


def inventory_from_config(config: Mapping[str, Any]) -> Inventory:
    """The inventory of a decoder; a multimodal config is read through its `text_config`."""
    config, notes = _text_part(config)
    kind = str(config.get("model_type", ""))
    hidden, layers = _size(config, "hidden_size"), _size(config, "num_hidden_layers")
    vocabulary, heads = _size(config, "vocab_size"), _size(config, "num_attention_heads")
    if kind not in EXACT:
        notes.append(f"model_type {kind!r} is unknown here: counted as Llama-shaped, approximate")
    linears = [*_attention(config, kind), *_mlps(config, kind)]
    window, sliding_layers = _sliding(config, kind)
    if sliding_layers not in (0, layers):
        notes.append(f"{sliding_layers} of {layers} layers attend to a window of {window} tokens, the rest to all")
    kv_heads, kv_values = _cache(config, kind, notes)
    if any(linear.expert for linear in linears):
        top = config.get("num_experts_per_tok", "?")
        notes.append(f"mixture of experts: a token reads {top} of the routed experts of a layer, all are stored")
    found = config.get("architectures")
    return Inventory(
        architecture=str(found[0]) if isinstance(found, list) and found else kind,
        layers=layers,
        hidden=hidden,
        vocabulary=vocabulary,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_head_dim(config, kind),
        max_context_tokens=_optional_size(config, "max_position_embeddings"),
        tied_embeddings=_tied(config, kind),
        linears=_merged(linears, LinearShape(name="lm_head", n=vocabulary, k=hidden, count=1, lm_head=True)),
        embedding_parameters=vocabulary * hidden,
        linear_parameters=sum(one.n * one.k * one.layers * one.each for one in linears),
        other_parameters=_others(config, kind, linears),
        kv_values_per_token=kv_values,
        sliding_window=window,
        notes=tuple(notes),
        sliding_layers=sliding_layers,
    )


def linears_from_config(config: Mapping[str, Any]) -> tuple[Linear, ...]:
    """Every linear of the decoder but lm_head, by its name: what `Inventory.linears` merges by shape."""
    text, _ = _text_part(config)
    kind = str(text.get("model_type", ""))
    return (*_attention(text, kind), *_mlps(text, kind))


def is_known(config: Mapping[str, Any]) -> bool:
    """Whether the architecture is counted exactly, and not as the nearest Llama."""
    return str(_text_part(config)[0].get("model_type", "")) in EXACT


def has_head_norms(config: Mapping[str, Any]) -> bool:
    """Whether queries and keys are normalised by head."""
    text, _ = _text_part(config)
    return text.get("model_type") in HEAD_NORMS or bool(text.get("use_qk_norm"))


def latent_values(config: Mapping[str, Any]) -> int:
    """Cached values per token and layer of multi-head latent attention; 0 where keys and values are cached."""
    text, _ = _text_part(config)
    return _size(text, "kv_lora_rank") + _size(text, "qk_rope_head_dim") if _is_mla(text) else 0


def chosen_experts(config: Mapping[str, Any]) -> int:
    """Routed experts that a token reads in a layer; 0 where there are none."""
    text, _ = _text_part(config)
    experts = _experts(text, str(text.get("model_type", "")))
    if not experts:
        return 0
    chosen = _size(text, "num_experts_per_tok")
    if chosen > experts:
        raise BadInput(WHERE, f"num_experts_per_tok {chosen} is more than the {experts} experts of a layer")
    return chosen


def _text_part(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    nested = config.get("text_config")
    if nested is None:
        return config, []
    if not isinstance(nested, Mapping):
        raise BadInput(WHERE, f"text_config must be a mapping of fields (found {nested!r})")
    inherited = {key: config[key] for key in ("architectures", "tie_word_embeddings") if key in config}
    kind = nested.get("model_type")
    return {**inherited, **nested, "model_type": SAME_TEXT.get(str(kind), kind)}, [
        "only the text part (text_config) is counted: no vision or audio tower"
    ]


def _size(config: Mapping[str, Any], name: str) -> int:
    """A field that must be there and be a positive whole number."""
    if config.get(name) is None:
        raise BadInput(WHERE, f"the field {name} is missing", "give the config.json of a decoder language model")
    value = config[name]
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise BadInput(WHERE, f"{name} must be a positive whole number (found {value!r})")
    return value


def _optional_size(config: Mapping[str, Any], name: str) -> int | None:
    return None if config.get(name) is None else _size(config, name)


def _count(config: Mapping[str, Any], name: str, absent: int = 0) -> int:
    """A whole number that may be 0 or missing."""
    value = absent if config.get(name) is None else config[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadInput(WHERE, f"{name} must be a whole number, 0 or more (found {value!r})")
    return value


def _tied(config: Mapping[str, Any], kind: str) -> bool:
    value = config.get("tie_word_embeddings")
    if value is not None and not isinstance(value, bool):
        raise BadInput(WHERE, f"tie_word_embeddings must be true or false (found {value!r})")
    return kind in TIED_BY_DEFAULT if value is None else value


def _is_mla(config: Mapping[str, Any]) -> bool:
    """Multi-head latent attention (arXiv:2405.04434): keys and values are projections of one cached latent."""
    return config.get("kv_lora_rank") is not None or config.get("model_type") in LATENT


def _head_dim(config: Mapping[str, Any], kind: str) -> int:
    if _is_mla(config):
        return _size(config, "qk_nope_head_dim") + _size(config, "qk_rope_head_dim")
    given = _optional_size(config, "head_dim") or HEAD_DIM_BY_DEFAULT.get(kind)
    if given:
        return given
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    if hidden % heads:
        raise BadInput(WHERE, f"hidden_size {hidden} is no multiple of num_attention_heads {heads}", "give head_dim")
    return hidden // heads


def _kv_heads(config: Mapping[str, Any]) -> int:
    heads = _size(config, "num_attention_heads")
    kv_heads = _optional_size(config, "num_key_value_heads") or heads
    if heads % kv_heads:
        raise BadInput(WHERE, f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    return kv_heads


def _cache(config: Mapping[str, Any], kind: str, notes: list[str]) -> tuple[int, int]:
    """Heads of keys and values, and cache elements per token over all layers."""
    layers = _size(config, "num_hidden_layers")
    if not _is_mla(config):
        kv_heads = _kv_heads(config)
        return kv_heads, layers * 2 * kv_heads * _head_dim(config, kind)
    latent = _size(config, "kv_lora_rank") + _size(config, "qk_rope_head_dim")
    heads = _size(config, "num_attention_heads")
    expanded = heads * (_head_dim(config, kind) + _size(config, "v_head_dim"))
    notes.append(
        f"MLA: {latent} cached values per token and layer, where the runtime caches the latent (vLLM, SGLang); "
        f"transformers caches the expanded heads, {expanded}"
    )
    return heads, layers * latent


def _attention(config: Mapping[str, Any], kind: str) -> list[Linear]:
    if _is_mla(config):
        return _latent_attention(config)
    hidden, layers = _size(config, "hidden_size"), _size(config, "num_hidden_layers")
    head_dim = _head_dim(config, kind)
    q, kv = _size(config, "num_attention_heads") * head_dim, _kv_heads(config) * head_dim
    if kind == "phi3":
        return [Linear("qkv_proj", q + 2 * kv, hidden, layers), Linear("o_proj", hidden, q, layers)]
    field = "qkv_bias" if kind in ("qwen2", "qwen2_moe") else "attention_bias"
    biased = bool(config.get(field, kind in BIASED_BY_DEFAULT))
    return [
        Linear("q_proj", q, hidden, layers, bias=biased),
        Linear("k_proj", kv, hidden, layers, bias=biased),
        Linear("v_proj", kv, hidden, layers, bias=biased),
        Linear("o_proj", hidden, q, layers, bias=biased and kind not in QUERY_KEY_VALUE_BIAS),
    ]


def _latent_attention(config: Mapping[str, Any]) -> list[Linear]:
    hidden, layers = _size(config, "hidden_size"), _size(config, "num_hidden_layers")
    heads, latent, value = (_size(config, x) for x in ("num_attention_heads", "kv_lora_rank", "v_head_dim"))
    nope, rope = _size(config, "qk_nope_head_dim"), _size(config, "qk_rope_head_dim")
    biased = bool(config.get("attention_bias", False))
    rank = _optional_size(config, "q_lora_rank")
    if rank is None:
        queries = [Linear("q_proj", heads * (nope + rope), hidden, layers)]
    else:
        queries = [
            Linear("q_a_proj", rank, hidden, layers, bias=biased),
            Linear("q_b_proj", heads * (nope + rope), rank, layers),
        ]
    return [
        *queries,
        Linear("kv_a_proj_with_mqa", latent + rope, hidden, layers, bias=biased),
        Linear("kv_b_proj", heads * (nope + value), latent, layers),
        Linear("o_proj", hidden, heads * value, layers, bias=biased),
    ]


def _gated(prefix: str, width: int, hidden: int, layers: int, each: int = 1, **more: bool) -> list[Linear]:
    """A gated MLP (SwiGLU, GeGLU) of `width`, `each` times in each of `layers` layers."""
    return [
        Linear(f"{prefix}gate_proj", width, hidden, layers, each, **more),
        Linear(f"{prefix}up_proj", width, hidden, layers, each, **more),
        Linear(f"{prefix}down_proj", hidden, width, layers, each, **more),
    ]


def _experts(config: Mapping[str, Any], kind: str) -> int:
    """Routed experts of a layer; a mixture's config must say how many."""
    fields = dict.fromkeys(EXPERTS_FIELD.values())
    given = next((name for name in fields if config.get(name) is not None), None)
    if kind in EXPERTS_FIELD:
        return _size(config, given or EXPERTS_FIELD[kind])
    return _count(config, given) if given else 0


def _sparse_layers(config: Mapping[str, Any]) -> int:
    """Layers whose MLP is a mixture of experts."""
    layers, dense = _size(config, "num_hidden_layers"), config.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise BadInput(WHERE, f"mlp_only_layers must be a list of layers (found {dense!r})")
    step, first = _optional_size(config, "decoder_sparse_step") or 1, _count(config, "first_k_dense_replace")
    return sum(1 for i in range(layers) if i >= first and i not in dense and (i + 1) % step == 0)


def _mlps(config: Mapping[str, Any], kind: str) -> list[Linear]:
    hidden, layers = _size(config, "hidden_size"), _size(config, "num_hidden_layers")
    experts = _experts(config, kind)
    sparse = _sparse_layers(config) if experts else 0
    made: list[Linear] = []
    if layers > sparse:
        width = _size(config, "intermediate_size")
        if kind == "phi3":
            made += [Linear("gate_up_proj", 2 * width, hidden, layers), Linear("down_proj", hidden, width, layers)]
        else:
            made += _gated("", width, hidden, layers - sparse, bias=bool(config.get("mlp_bias", False)))
    if sparse:
        width = _size(config, "intermediate_size" if kind in ("mixtral", "gpt_oss") else "moe_intermediate_size")
        made += _gated("experts.", width, hidden, sparse, experts, expert=True, bias=kind == "gpt_oss")
        shared = _count(config, "shared_expert_intermediate_size") or _count(config, "n_shared_experts") * width
        if shared:
            made += _gated("shared_experts.", shared, hidden, sparse)
        if kind == "qwen2_moe":
            made.append(Linear("shared_expert_gate", 1, hidden, sparse))
        made.append(Linear("router", experts, hidden, sparse, bias=kind == "gpt_oss"))
    return made


def _others(config: Mapping[str, Any], kind: str, linears: Iterable[Linear]) -> int:
    """Norms, biases and attention sinks."""
    hidden, layers = _size(config, "hidden_size"), _size(config, "num_hidden_layers")
    norms = hidden * (1 + layers * (4 if kind in FOUR_NORMS else 2))
    if has_head_norms(config):
        norms += 2 * _head_dim(config, kind) * layers
    if kind == "gpt_oss":
        norms += layers * _size(config, "num_attention_heads")
    if _is_mla(config):
        norms += layers * (_size(config, "kv_lora_rank") + (_optional_size(config, "q_lora_rank") or 0))
    return norms + sum(one.n * one.layers * one.each for one in linears if one.bias)


def _sliding(config: Mapping[str, Any], kind: str) -> tuple[int | None, int]:
    """The window in tokens and the number of layers that have it."""
    window, layers = _count(config, "sliding_window"), _size(config, "num_hidden_layers")
    if not window or config.get("use_sliding_window") is False:
        return None, 0
    types = config.get("layer_types")
    if types is not None and not isinstance(types, list):
        raise BadInput(WHERE, f"layer_types must be a list of each layer's type (found {types!r})")
    if types is not None:
        return window, sum(1 for one in types if one == "sliding_attention")
    pattern = _optional_size(config, "sliding_window_pattern") or {"gemma2": 2, "gpt_oss": 2, "gemma3_text": 6}.get(kind)
    if pattern:
        return window, sum(1 for i in range(layers) if (i + 1) % pattern)
    if kind.startswith("qwen"):
        sliding = layers - min(layers, _count(config, "max_window_layers", QWEN_FULL_LAYERS))
        return (window, sliding) if config.get("use_sliding_window") is True and sliding else (None, 0)
    return window, layers


def _merged(linears: Iterable[Linear], head: LinearShape) -> tuple[LinearShape, ...]:
    """Linears by distinct (N, K), in the order of the model, and the head on its own."""
    groups: dict[tuple[int, int], list[Linear]] = {}
    for one in linears:
        groups.setdefault((one.n, one.k), []).append(one)
    shapes = [
        LinearShape(
            name=",".join(one.name for one in group),
            n=n,
            k=k,
            count=sum(one.layers * one.each for one in group),
            layers=max(one.layers for one in group),
        )
        for (n, k), group in groups.items()
    ]
    return (*shapes, head)
