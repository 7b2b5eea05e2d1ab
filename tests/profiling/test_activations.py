"""A tiny Llama with an outlier channel planted behind a norm; the oracle is numpy on inputs caught by its own hooks."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantadvisor.profiling.activations import collect_activations

CHANNEL, GAIN = 5, 40.0
TOKENS = np.random.default_rng(0).integers(0, 97, (3, 11))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, vocab_size=97, max_position_embeddings=64)  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[CHANNEL] = GAIN
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def caught(folder: Path) -> dict[str, list[Any]]:
    """linear → the inputs of each sequence, float64 [tokens, K]."""
    import torch
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found: dict[str, list[Any]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(lambda _, x, name=name: found.setdefault(name, []).append(x[0][0].double().numpy()))
    with torch.no_grad():
        for row in torch.from_numpy(TOKENS):
            model(row[None])
    return found


def int8_error(inputs: list[Any], axis: int | None) -> float:
    error = total = 0.0
    for x in inputs:
        scale = np.abs(x).max(axis=axis, keepdims=True) / 127
        error += ((np.rint(x / scale) * scale - x) ** 2).sum()
        total += (x**2).sum()
    return float(error / total)


def test_statistics_are_those_of_the_oracle(folder: Path, caught: dict[str, list[Any]]) -> None:
    stats = collect_activations(folder, TOKENS)
    assert stats.tokens == TOKENS.size
    assert {layer.name for layer in stats.layers} == set(caught)
    for layer in stats.layers:
        inputs = caught[layer.name]
        whole = np.concatenate(inputs)
        channels = np.sort(np.abs(whole).max(axis=0))
        assert layer.absmax == pytest.approx(channels[-1], rel=1e-5)
        assert layer.absmax_channel_p50 == pytest.approx(channels[(len(channels) - 1) // 2], rel=1e-4)  # the lower of two
        assert layer.outlier_channels == (np.abs(whole).max(axis=0) >= 6).sum()
        assert layer.outlier_tokens_share == pytest.approx((np.abs(whole).max(axis=1) >= 6).mean())
        assert layer.error_per_tensor == pytest.approx(int8_error(inputs, None), rel=0.02)
        assert layer.error_per_token == pytest.approx(int8_error(inputs, 1), rel=0.02)
        assert layer.error_per_channel == pytest.approx(int8_error(inputs, 0), rel=0.02)


def test_the_planted_channel_is_found(folder: Path) -> None:
    stats = collect_activations(folder, TOKENS)
    found = {layer.name for layer in stats.layers if layer.outlier_channels}
    assert found == {f"model.layers.1.self_attn.{name}_proj" for name in "qkv"}
    assert stats.outlier_layers_share == pytest.approx(3 / 14)
    q = next(layer for layer in stats.layers if layer.name.endswith("1.self_attn.q_proj"))
    assert q.outlier_channels == 1
    assert q.error_per_tensor > q.error_per_token > 3 * q.error_per_channel
