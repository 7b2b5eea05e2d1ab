from pathlib import Path

import numpy as np
import pytest

from quantadvisor.documents.errors import BadInput
from quantadvisor.methods.rescale import Pair, mapping_missing, pairs, reparametrise

CONFIG = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


def test_pairs_of_a_layer() -> None:
    first = [(pair.source, pair.targets) for pair in pairs(CONFIG)[:4]]
    root = "model.layers.0"
    assert first == [
        (f"{root}.input_layernorm", tuple(f"{root}.self_attn.{name}_proj" for name in "qkv")),
        (f"{root}.self_attn.v_proj", (f"{root}.self_attn.o_proj",)),
        (f"{root}.post_attention_layernorm", (f"{root}.mlp.gate_proj", f"{root}.mlp.up_proj")),
        (f"{root}.mlp.up_proj", (f"{root}.mlp.down_proj",)),
    ]
    assert all(pair.norm for pair in pairs(CONFIG, linear=False))


def test_query_heads_of_a_group_share_their_key_heads_scale() -> None:
    pair = Pair("v", ("o",), norm=False, heads=2, repeat=2)
    scale = np.array([1, 2, 3, 4], np.float32)
    assert pair.spread(scale).tolist() == [1, 2, 1, 2, 3, 4, 3, 4]
    assert pair.gather(np.array([1, 9, 5, 2, 3, 4, 8, 0], np.float32)).tolist() == [5, 9, 8, 4]


def test_unknown_architectures_are_refused_by_name() -> None:
    assert "'gemma2'" in str(mapping_missing({"model_type": "gemma2"}))
    with pytest.raises(BadInput, match="phi3"):
        pairs({"model_type": "phi3"})


@pytest.mark.parametrize("bias", [False, True])
def test_reparametrise_keeps_the_function_and_leaves_the_grid(bias: bool, tmp_path: Path, tokens: np.ndarray) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from .conftest import write_llama

    folder = write_llama(tmp_path / "hf", attention_bias=bias, mlp_bias=bias)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.normal_()
        before = model(torch.from_numpy(tokens)).logits
        old = {name: value.clone() for name, value in model.state_dict().items()}
        reparametrise(model.state_dict(), model.config)
        after = model(torch.from_numpy(tokens)).logits
    assert (after - before).abs().max() < 1e-3
    assert (after.argmax(-1) == before.argmax(-1)).all()
    for name, value in model.state_dict().items():
        if "_proj.weight" in name:
            ratio = (value / old[name]).abs()
            assert ratio.min() >= 0.249
            assert ratio.max() <= 4.01
            assert ratio.std() > 0.1, name


def test_reparametrise_is_seeded_and_wants_fp32() -> None:
    import torch

    def state() -> dict[str, torch.Tensor]:
        made = {}
        for pair in pairs(CONFIG):
            made[f"{pair.source}.weight"] = torch.ones(4) if pair.norm else torch.ones(4, 4)
            for target in pair.targets:
                made.setdefault(f"{target}.weight", torch.ones(4, 8 if "o_proj" in target else 4))
        return made

    one, two, other = state(), state(), state()
    reparametrise(one, CONFIG)
    reparametrise(two, CONFIG)
    reparametrise(other, CONFIG, seed=1)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["model.layers.0.input_layernorm.weight"], other["model.layers.0.input_layernorm.weight"])
    with pytest.raises(BadInput, match="float32"):
        reparametrise({name: value.half() for name, value in state().items()}, CONFIG)
