"""The oracle is transformers again: published sizes instantiated on the meta device, and the totals of the model cards."""

import pytest

from quantadvisor.documents import BadInput
from quantadvisor.profiling.inventory import inventory_from_config
from quantadvisor.profiling.published import config_of, published, stem

from .test_inventory import on_meta

BUILT = ["meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.2-1B", "Qwen/Qwen2.5-7B", "Qwen/Qwen3-32B",
         "Qwen/Qwen3-30B-A3B", "mistralai/Mistral-7B-v0.3", "mistralai/Mixtral-8x7B-v0.1", "google/gemma-2-9b",
         "google/gemma-3-12b-pt", "microsoft/phi-4", "deepseek-ai/DeepSeek-V2-Lite", "deepseek-ai/DeepSeek-V3",
         "openai/gpt-oss-20b", "zai-org/GLM-4.5-Air", "HuggingFaceTB/SmolLM2-135M"]  # fmt: skip
FP32_BUFFERS = {"zai-org/GLM-4.5-Air"}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT)
def test_counts_what_transformers_builds(name: str) -> None:
    config = dict(config_of(name))
    config = {**config.get("text_config", config)}
    if config["model_type"] == "phi3":
        config["pad_token_id"] = 0
    built = sum(parameter.numel() for parameter in on_meta(config).parameters())
    assert inventory_from_config(config).parameters == built


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
