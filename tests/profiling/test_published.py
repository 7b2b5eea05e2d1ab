"""The oracle is transformers again: published sizes instantiated on the meta device, and the totals of the model cards."""

from typing import Any

import pytest

from quantadvisor.documents import BadInput
from quantadvisor.kernels.gpu_schemes import gpu_scheme
from quantadvisor.profiling.gpu_memory import cache_token_bytes
from quantadvisor.profiling.inventory import inventory_from_config
from quantadvisor.profiling.published import config_of, published, stem
from quantadvisor.profiling.shard import shard_of

from .test_inventory import on_meta

BUILT = ["meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.2-1B", "Qwen/Qwen2.5-7B", "Qwen/Qwen3-32B",
         "Qwen/Qwen3-30B-A3B", "mistralai/Mistral-7B-v0.3", "mistralai/Mixtral-8x7B-v0.1", "google/gemma-2-9b",
         "google/gemma-3-12b-pt", "microsoft/phi-4", "deepseek-ai/DeepSeek-V2-Lite", "deepseek-ai/DeepSeek-V3",
         "openai/gpt-oss-20b", "zai-org/GLM-4.5-Air", "HuggingFaceTB/SmolLM2-135M"]  # fmt: skip
DENSE = ["meta-llama/Llama-2-7b-hf", "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.2-1B",
         "Qwen/Qwen2.5-7B", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-32B", "mistralai/Mistral-7B-v0.3", "mistralai/Mistral-Nemo-Base-2407",
         "google/gemma-2-9b", "google/gemma-3-12b-pt", "microsoft/Phi-3-mini-4k-instruct", "microsoft/phi-4",
         "HuggingFaceTB/SmolLM2-135M"]  # fmt: skip
"""What runs on the meta device: routing of experts needs values."""


def text_of(name: str) -> dict[str, Any]:
    config = dict(config_of(name))
    config = {**config.get("text_config", config)}
    return config | ({"pad_token_id": 0} if config["model_type"] == "phi3" else {})


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT)
def test_counts_what_transformers_builds(name: str) -> None:
    config = text_of(name)
    built = sum(parameter.numel() for parameter in on_meta(config).parameters())
    assert inventory_from_config(config).parameters == built


@pytest.mark.slow
@pytest.mark.parametrize("name", DENSE)
def test_flops_and_cache_are_those_of_a_pass(name: str) -> None:
    """A pass of 16 tokens on the meta device: the operations that torch counts, the cache that transformers keeps; to the
    operation and to the byte (in 16 bit, half of the elements' fp32)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    config, tokens = text_of(name), 16
    model = on_meta(config)
    model.set_attn_implementation("eager")
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        seen = model(torch.zeros(1, tokens, dtype=torch.long), use_cache=True).past_key_values
    rotations = sum(sum(of.values()) for module, of in counter.get_flop_counts().items() if module.endswith("rotary_emb"))
    shard = shard_of(config)
    products = sum(2 * one.n * one.k * one.layers for one in shard.products) * tokens
    scores = 2 * shard.query_heads * shard.inventory.layers * shard.prompt_dim * tokens**2
    assert counter.get_total_flops() - rotations == products + scores
    elements = sum(layer.keys.numel() + layer.values.numel() for layer in seen.layers)
    assert cache_token_bytes(shard, gpu_scheme("bf16")) * tokens == 2 * elements


def test_most_sizes_were_compared_with_a_copy_of_the_config() -> None:
    unchecked = [name for name, entry in published().items() if not entry["checked"]]
    assert len(unchecked) <= 7


def test_a_context_is_that_of_the_version() -> None:
    """Llama 3 and 3.1 differ in nothing but the positions."""
    old, new = (config_of(name) for name in ("meta-llama/Meta-Llama-3-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"))
    assert (old["max_position_embeddings"], new["max_position_embeddings"]) == (8192, 131072)
    assert inventory_from_config(old).parameters == inventory_from_config(new).parameters


@pytest.mark.parametrize("name", published())
def test_totals_are_those_of_the_model_card(name: str) -> None:
    """Cards round to three or four digits; GLM's and Kimi's count their next-token-prediction layer."""
    stated = published()[name]["parameters_b"]
    assert inventory_from_config(published()[name]["config"]).parameters / 1e9 == pytest.approx(stated, rel=0.01)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", "llama-3.3-70b"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507-FP8", "qwen3-235b-a22b"),
        ("builtin:smollm2-135m", "smollm2-135m"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "qwen2.5-7b"),
    ],
)
def test_words_that_change_no_shape_are_dropped(name: str, found: str) -> None:
    assert stem(name) == found
    assert config_of(name)["hidden_size"] > 0


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(BadInput, match=r"did you mean meta-llama/Llama-3\.1-70B"):
        config_of("meta-llama/Lama-3.1-70B")
