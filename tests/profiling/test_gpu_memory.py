"""Oracles: quantized checkpoints written here, in the layout of compressed-tensors, weighed tensor by tensor."""

from typing import Any

import pytest

from quantadvisor.kernels.gpu_devices import gpu
from quantadvisor.kernels.gpu_schemes import gpu_scheme
from quantadvisor.profiling.gpu_memory import memory_of, sequence_bytes, weight_bytes
from quantadvisor.profiling.published import config_of
from quantadvisor.profiling.shard import shard_of

from .test_inventory import on_meta

SMALL = {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 3, "num_attention_heads": 8,
         "num_key_value_heads": 4, "vocab_size": 1000, "max_position_embeddings": 128}  # fmt: skip
MIXTURE = {"model_type": "qwen3_moe", "moe_intermediate_size": 128, "num_experts": 8, "num_experts_per_tok": 2, "head_dim": 64}


def quantized(name: str, weight: Any) -> dict[str, Any]:
    """The tensors that stand for a weight [N, K] in a checkpoint, empty but of the right types and shapes."""
    import torch

    n, k = weight.shape
    empty = torch.empty
    return {
        "bf16": lambda: {"weight": empty(n, k, dtype=torch.bfloat16)},
        "fp8": lambda: {"weight": empty(n, k, dtype=torch.float8_e4m3fn), "weight_scale": empty(1)},
        "w8a8-int8": lambda: {"weight": empty(n, k, dtype=torch.int8), "weight_scale": empty(n, 1)},
        "w4a16": lambda: {
            "weight_packed": empty(n, k // 8, dtype=torch.int32),
            "weight_scale": empty(n, k // 128, dtype=torch.bfloat16),
            "weight_shape": empty(2, dtype=torch.int64),
        },
        "nvfp4": lambda: {
            "weight_packed": empty(n, k // 2, dtype=torch.uint8),
            "weight_scale": empty(n, k // 16, dtype=torch.float8_e4m3fn),
            "weight_global_scale": empty(1),
        },
    }[name]()


def written(config: dict[str, Any], scheme: str, path: Any) -> int:
    """Bytes of the tensors of a checkpoint of the scheme, saved and read back."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    for name, parameter in on_meta(config).named_parameters():
        pieces = [parameter] if parameter.dim() < 3 else list(parameter)
        for i, piece in enumerate(pieces):
            plain = parameter.dim() < 2 or "embed" in name or "lm_head" in name or name.endswith("gate.weight")
            made = {"weight": torch.empty(piece.shape, dtype=torch.bfloat16)} if plain else quantized(scheme, piece)
            tensors |= {f"{name}.{i}.{key}": value for key, value in made.items()}
    save_file(tensors, path)
    with safe_open(path, "pt") as file:
        return sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118


@pytest.mark.parametrize("scheme", ["bf16", "fp8", "w8a8-int8", "w4a16", "nvfp4"])
@pytest.mark.parametrize("more", [{}, {"tie_word_embeddings": True}, MIXTURE], ids=["dense", "tied", "mixture"])
def test_weights_are_those_of_a_checkpoint(scheme: str, more: dict[str, Any], tmp_path: Any) -> None:
    config = {**SMALL, **more}
    modelled = weight_bytes(shard_of(config), gpu_scheme(scheme))
    assert modelled == pytest.approx(written(config, scheme, tmp_path / "model.safetensors"), rel=0.01)


def test_published_checkpoints() -> None:
    """Sum of the shards as the hub lists them: nvidia/Llama-3.1-70B-Instruct-FP8 72.7 GB; gpt-oss-120b 65.2 GB (60.8 GiB)."""
    assert weight_bytes(shard_of(config_of("meta-llama/Llama-3.1-70B")), gpu_scheme("fp8")) == pytest.approx(72.7e9, rel=0.01)
    assert weight_bytes(shard_of(config_of("openai/gpt-oss-120b")), gpu_scheme("mxfp4")) == pytest.approx(65.2e9, rel=0.03)


def test_a_sequence_takes_whole_blocks() -> None:
    """Llama-3.1-8B: 2 x 8 heads x 128 x 32 layers x 2 bytes = 128 KiB a token; 1,000 tokens are 63 blocks of 16."""
    shard = shard_of(config_of("meta-llama/Llama-3.1-8B"))
    assert sequence_bytes(shard, gpu_scheme("bf16"), 1000) == 131072 * 1008
    assert sequence_bytes(shard, gpu_scheme("bf16-kv8"), 1000) == 131072 * 1008 / 2


def test_a_window_bounds_its_layers() -> None:
    """gpt-oss: half of its layers keep 128 tokens and a block."""
    shard = shard_of(config_of("openai/gpt-oss-20b"))
    per_layer = 2 * 8 * 64 * 2
    assert sequence_bytes(shard, gpu_scheme("bf16"), 4096) == 12 * per_layer * (4096 + 144)


def test_tensor_parallel_leaves_more_for_the_cache() -> None:
    config, h100, scheme = config_of("meta-llama/Llama-3.1-70B"), gpu("h100"), gpu_scheme("fp8")
    users = [memory_of(shard_of(config, tensor), h100, scheme, 4096).max_concurrency for tensor in (1, 2, 4, 8)]
    assert users[0] == 0 or users[0] < 5  # 72.7 GB of weights in 80 GB
    assert users[1] < users[2] < users[3]


def test_a_limit_is_obeyed() -> None:
    shard, h100, scheme = shard_of(config_of("meta-llama/Llama-3.1-8B")), gpu("h100"), gpu_scheme("bf16")
    free, tight = (memory_of(shard, h100, scheme, 4096, limit) for limit in (None, 40 << 30))
    assert tight.cache_bytes == free.cache_bytes - (h100.memory_bytes - (40 << 30))
    assert memory_of(shard, h100, scheme, 4096, 1 << 30).max_concurrency == 0
