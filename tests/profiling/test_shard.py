"""Oracles: whole models are the sum of their shards, and published sizes of caches."""

from typing import Any

import pytest

from quantadvisor.documents import BadInput
from quantadvisor.profiling.inventory import inventory_from_config
from quantadvisor.profiling.published import config_of, published
from quantadvisor.profiling.shard import shard_of


@pytest.mark.parametrize("name", published())
def test_one_gpu_holds_the_whole_model(name: str) -> None:
    config = config_of(name)
    inventory, shard = inventory_from_config(config), shard_of(config)
    assert sum(one.stored for one in shard.products if not one.head) == inventory.linear_parameters
    assert shard.cache_values + shard.window_values == inventory.kv_values_per_token


def test_tensor_parallel_divides_the_products() -> None:
    one, eight = (shard_of(config_of("meta-llama/Llama-3.1-70B"), tensor) for tensor in (1, 8))
    whole = {product.name: product.stored for product in one.products}
    assert {product.name: product.stored * 8 for product in eight.products} == whole
    assert (one.reduced, eight.reduced, eight.cache_values * 8) == (0, 160, one.cache_values)


def test_key_value_heads_are_copied_where_there_are_too_few() -> None:
    """Qwen3-30B-A3B has 4: on 8 GPUs each holds one whole head."""
    four, eight = (shard_of(config_of("Qwen/Qwen3-30B-A3B"), tensor) for tensor in (4, 8))
    assert four.cache_values == eight.cache_values == 48 * 2 * 128


def test_qkv_and_gate_up_run_as_one() -> None:
    shapes = {(one.name, one.n, one.k) for one in shard_of(config_of("meta-llama/Llama-3.1-8B")).products}
    assert shapes == {
        ("qkv", 6144, 4096), ("o_proj", 4096, 4096), ("gate_up", 28672, 4096), ("down_proj", 4096, 14336),
        ("lm_head", 128256, 4096),
    }  # fmt: skip


def test_latents_are_on_every_gpu_and_scored_twice() -> None:
    """DeepSeek-V3 (arXiv:2412.19437): 512 + 64 cached values a token and layer, whatever the split."""
    shard = shard_of(config_of("deepseek-ai/DeepSeek-V3"), 8)
    assert (shard.cache_values, shard.score_dim, shard.prompt_dim) == (61 * 576, 576 + 512, 192 + 128)


def test_windows() -> None:
    shard = shard_of(config_of("openai/gpt-oss-120b"))
    assert shard.cache_values == shard.window_values == 18 * 2 * 8 * 64


@pytest.mark.parametrize(("config", "tensor"), [({}, 3), ({"num_key_value_heads": 6, "num_attention_heads": 24}, 4)])
def test_heads_that_do_not_divide(config: dict[str, Any], tensor: int) -> None:
    llama = {**config_of("meta-llama/Llama-3.2-3B"), **config}
    with pytest.raises(BadInput, match=r"parallel\.tensor"):
        shard_of(llama, tensor)
