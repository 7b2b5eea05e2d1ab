from pathlib import Path

import numpy as np
import pytest
from transformers import AutoConfig

from quantadvisor.documents.errors import BadInput
from quantadvisor.methods.rescale import Pair, mapping_missing, pairs, reparametrise

from .conftest import run, torch_logits, write_llama
from .formats.test_openvino import logits

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


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama whose linears all have biases, as Qwen2's q, k and v have."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = write_llama(tmp_path_factory.mktemp("biased") / "hf", attention_bias=True, mlp_bias=True)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.normal_()
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["huggingface", "onnx", "openvino"])
def test_biases_are_divided_in_every_format(form: str, biased: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    """A scale at random through every pair, and nothing rounded: the same logits."""
    from safetensors.torch import load_file

    from quantadvisor.methods.formats import huggingface, onnx
    from quantadvisor.methods.formats.onnx_base import Rewrite

    state, draw = load_file(biased / "model.safetensors"), np.random.default_rng(0)
    config = AutoConfig.from_pretrained(biased).to_dict()
    moved = [
        (pair, np.exp(draw.uniform(-1, 1, len(state[f"{pair.source}.weight"]))).astype(np.float32)) for pair in pairs(config)
    ]
    wanted, base, out = torch_logits(biased, tokens[0]), tmp_path / "base", tmp_path / "out"
    if form == "huggingface":
        huggingface.rewrite(biased, out, lambda name, w: [(name, w)], {}, moved)
        found = torch_logits(out, tokens[0])
    elif form == "onnx":
        onnx.export_base(biased, base)
        with Rewrite(base, out, onnx.rescaled(base, moved, config)):
            pass
        found = run(out, tokens[0])
    else:
        pytest.importorskip("optimum.intel")
        from quantadvisor.methods.formats import openvino

        openvino.export_base(biased, base)
        openvino.quantize_w8a8(base, out, [], moved)
        found = logits(out, tokens[0])[0]
    assert np.abs(wanted).max() > 1
    np.testing.assert_allclose(found, wanted, atol=1e-3)
