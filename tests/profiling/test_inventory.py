"""The oracle is transformers: the same configs instantiated on the meta device, counted parameter by parameter."""

import warnings
from collections import Counter
from typing import Any

import pytest

from quantadvisor.documents import BadInput
from quantadvisor.profiling.inventory import chosen_experts, inventory_from_config

SMALL = {"hidden_size": 96, "intermediate_size": 200, "num_hidden_layers": 3, "num_attention_heads": 6,
         "num_key_value_heads": 2, "vocab_size": 331, "max_position_embeddings": 128}  # fmt: skip
MOE = {"moe_intermediate_size": 40, "num_experts_per_tok": 2}
MLA = {"kv_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 20, "num_key_value_heads": 6,
       "n_routed_experts": 4, "n_shared_experts": 2, "first_k_dense_replace": 1, 
       "n_group": 1, "topk_group": 1}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama biased, tied": {
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "multi-query": {"model_type": "llama", "num_key_value_heads": 1},
    "mistral": {"model_type": "mistral", "sliding_window": 32, "head_dim": 24},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "qwen3, default head": {"model_type": "qwen3"},
    "gemma": {"model_type": "gemma", "head_dim": 32},
    "gemma2": {"model_type": "gemma2", "head_dim": 32},
    "gemma3": {"model_type": "gemma3_text", "head_dim": 32},
    "phi3": {"model_type": "phi3", "pad_token_id": 0},
    "smollm3": {"model_type": "smollm3", "pad_token_id": 0, "num_hidden_layers": 4},
    "granite": {"model_type": "granite"},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {"model_type": "qwen2_moe", "num_experts": 4, "shared_expert_intermediate_size": 56, **MOE},
    "qwen3_moe": {"model_type": "qwen3_moe", "num_experts": 4, "mlp_only_layers": [1], **MOE},
    "glm4_moe": {
        "model_type": "glm4_moe",
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "attention_bias": True,
        "use_qk_norm": True,
        "head_dim": 24,
        **MOE,
    },
    "gpt_oss": {"model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32},
    "deepseek_v2": {"model_type": "deepseek_v2", **MLA, "q_lora_rank": None, **MOE},
    "deepseek_v3": {"model_type": "deepseek_v3", **MLA, "q_lora_rank": 28, **MOE},
}
MIXTURES = {"mixtral", "qwen2_moe", "qwen3_moe", "glm4_moe", "gpt_oss", "deepseek_v2", "deepseek_v3"}


def on_meta(config: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))


@pytest.mark.parametrize("name", CASES)
def test_counts_what_transformers_builds(name: str) -> None:
    from torch import nn

    config = {**SMALL, **CASES[name]}
    model, inventory = on_meta(config), inventory_from_config(config)
    assert inventory.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert inventory.tied_embeddings == (model.lm_head.weight is model.model.embed_tokens.weight)
    if name in MIXTURES:
        return  # experts are one fused tensor there
    built = Counter((m.out_features, m.in_features) for n, m in model.named_modules() if isinstance(m, nn.Linear))
    built[(config["vocab_size"], config["hidden_size"])] -= 1
    counted = {(shape.n, shape.k): shape.count for shape in inventory.linears if not shape.lm_head}
    assert counted == {shape: count for shape, count in built.items() if count}
    assert sum(n * k * count for (n, k), count in counted.items()) == inventory.linear_parameters


def test_smollm2() -> None:
    inventory = inventory_from_config(
        {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        }
    )
    assert [(one.n, one.k, one.count, one.lm_head) for one in inventory.linears] == [
        (576, 576, 60, False), (192, 576, 60, False), (1536, 576, 60, False), (576, 1536, 30, False),
        (49152, 576, 1, True),
    ]  # fmt: skip
    assert inventory.parameters == 134_515_008
    assert inventory.kv_values_per_token == 30 * 2 * 3 * 64
    assert inventory.notes == ()


def test_sliding_windows() -> None:
    gemma2 = inventory_from_config({**SMALL, "model_type": "gemma2", "head_dim": 32, "sliding_window": 16})
    assert (gemma2.sliding_window, gemma2.model_extra) == (16, {"sliding_layers": 2})
    assert "2 of 3 layers" in gemma2.notes[0]
    assert inventory_from_config({**SMALL, "model_type": "qwen2", "sliding_window": 16}).sliding_window is None


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
@pytest.mark.parametrize("full", [None, 0, 2, 3])
def test_the_first_layers_of_a_qwen_attend_to_all(kind: str, full: int | None) -> None:
    """As transformers has it; without the field its default, 28, is beyond these three layers."""
    from transformers import AutoConfig

    more = {} if full is None else {"max_window_layers": full}
    config = {**SMALL, "model_type": kind, "use_sliding_window": True, "sliding_window": 16, **more}
    built = AutoConfig.for_model(**config).layer_types.count("sliding_attention")
    inventory = inventory_from_config(config)
    assert (inventory.model_extra or {}).get("sliding_layers", 0) == built == (0 if full is None else 3 - full)


def test_latent_attention_caches_the_latent() -> None:
    inventory = inventory_from_config({**SMALL, **CASES["deepseek_v3"]})
    assert inventory.kv_values_per_token == 3 * (24 + 8)
    assert any("latent" in note for note in inventory.notes)
    assert any("mixture of experts" in note for note in inventory.notes)


def test_nested_text_config() -> None:
    nested = {"model_type": "gemma3", "architectures": ["G"], "text_config": {**SMALL, **CASES["gemma3"]}}
    inventory = inventory_from_config(nested)
    assert inventory.architecture == "G"
    assert inventory.parameters == inventory_from_config(nested["text_config"]).parameters  # type: ignore[arg-type]


@pytest.mark.parametrize(("outer", "inner", "more"), [
    ("qwen3_vl", "qwen3_vl_text", {"head_dim": 32}),
    ("qwen3_vl_moe", "qwen3_vl_moe_text", {"head_dim": 32, "num_experts": 4, **MOE}),
])  # fmt: skip
def test_vision_towers_are_skipped_with_a_word(outer: str, inner: str, more: dict[str, Any]) -> None:
    """The text part as transformers builds it, and a head that is not tied."""
    import torch
    from transformers import AutoConfig, AutoModel

    text = {**SMALL, **more}
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        built = AutoModel.from_config(AutoConfig.for_model(inner, **text))
    inventory = inventory_from_config({"model_type": outer, "text_config": {**text, "model_type": inner}, "vision_config": {}})
    head = SMALL["vocab_size"] * SMALL["hidden_size"]
    assert inventory.parameters == sum(parameter.numel() for parameter in built.parameters()) + head
    assert "no vision" in inventory.notes[0]


def test_an_unknown_architecture_is_a_noted_estimate() -> None:
    assert "approximate" in inventory_from_config({**SMALL, "model_type": "new"}).notes[0]


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "intermediate_size"])
def test_a_missing_field_is_named(field: str) -> None:
    config = {**SMALL, "model_type": "llama"}
    del config[field]
    with pytest.raises(BadInput, match=f"the field {field} is missing"):
        inventory_from_config(config)


@pytest.mark.parametrize(
    ("name", "field"),
    [("mixtral", "num_local_experts"), ("gpt_oss", "num_local_experts"), ("qwen2_moe", "num_experts"),
     ("qwen3_moe", "num_experts"), ("glm4_moe", "n_routed_experts"), ("deepseek_v2", "n_routed_experts"),
     ("deepseek_v3", "kv_lora_rank"), ("deepseek_v3", "v_head_dim"), ("qwen3_moe", "moe_intermediate_size")],
)  # fmt: skip
def test_a_mixture_or_latent_attention_is_never_taken_for_a_dense_llama(name: str, field: str) -> None:
    config = {**SMALL, **CASES[name]}
    del config[field]
    with pytest.raises(BadInput, match=f"the field {field} is missing"):
        inventory_from_config(config)


@pytest.mark.parametrize("wrong", [{"num_experts_per_tok": 5}, {"num_local_experts": 0}, {"num_local_experts": "4"}])
def test_impossible_experts_are_bad_input(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=next(iter(wrong))):
        chosen_experts({**SMALL, **CASES["mixtral"], **wrong})


@pytest.mark.parametrize(
    "wrong",
    [{"hidden_size": -1}, {"hidden_size": "96"}, {"num_attention_heads": 7}, {"num_key_value_heads": 4}, {"vocab_size": True},
     {"num_key_value_heads": 0}, {"head_dim": 0}, {"text_config": "x"}, {"tie_word_embeddings": "no"},
     {"layer_types": 3, "sliding_window": 8}, {"sliding_window": "8"}, {"sliding_window_pattern": "x", "sliding_window": 8},
     {"mlp_only_layers": 1, "num_experts": 4, **MOE}, {"decoder_sparse_step": "x", "num_experts": 4, **MOE},
     {"first_k_dense_replace": -1, "num_experts": 4, **MOE},
     {"shared_expert_intermediate_size": "x", "num_experts": 4, **MOE}],
)  # fmt: skip
def test_impossible_sizes_are_bad_input(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=next(iter(wrong))):
        inventory_from_config({**SMALL, "model_type": "llama", **wrong})
