"""Artifacts of tiny random models: what is stored, against closed forms written out here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino")
pytest.importorskip("optimum.intel")

from quantadvisor.documents import BadInput
from quantadvisor.methods.formats import openvino as formats

pytestmark = pytest.mark.filterwarnings(
    r"ignore:.*(swigvarlink|SwigPy|torch\.jit|`torch_dtype`|TracerWarning).*",
)


def tiny_llama(folder: Path, tied: bool) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).float().eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("openvino")
    formats.export_base(tiny_llama(root / "hf", request.param), root / "base")
    return root / "base"


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    found = dict(load_file(folder.parent / "hf" / "model.safetensors"))
    return found | {"lm_head.weight": found.get("lm_head.weight", found["model.embed_tokens.weight"])}


def stored(folder: Path, name: str) -> tuple[str, Any]:
    """Number type and float values of the weights of one linear, computed by OpenVINO from what is stored."""
    import openvino

    model = openvino.Core().read_model(folder / "openvino_model.xml")
    node = next(node for node in model.get_ops() if re.match(rf"(__module\.)?{name}/.*MatMul$", node.get_friendly_name()))
    source = node.input_value(1)
    floats = openvino.Model([source], [], "weights")
    values = openvino.Core().compile_model(floats, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([])[0]
    at = source.get_node()
    while at.get_type_name() != "Constant":
        at = at.input_value(0).get_node()
    return at.get_element_type().get_type_name(), values


def rounded(w: Any, bits: int, group: int, symmetric: bool) -> Any:
    """Round to nearest, in a loop over groups: w [N, K] -> what its integers stand for."""
    result = np.empty_like(w)
    for row in range(w.shape[0]):
        for at in range(0, w.shape[1], group):
            x = w[row, at : at + group].astype(np.float64)
            if symmetric:
                scale, zero, low, high = (
                    np.abs(x).max() / (2 ** (bits - 1) - 1),
                    0.0,
                    -(2 ** (bits - 1)),
                    2 ** (bits - 1) - 1,
                )
            else:
                bottom, top = min(x.min(), 0.0), max(x.max(), 0.0)
                scale, low, high = (top - bottom) / (2**bits - 1), 0, 2**bits - 1
                zero = np.rint(-bottom / scale)
            result[row, at : at + group] = (np.clip(np.rint(x / scale) + zero, low, high) - zero) * scale
    return result


def test_two_graphs_share_one_file_of_weights(base: Path) -> None:
    import openvino

    last, scoring = (
        openvino.Core().read_model(base / name, base / "openvino_model.bin")
        for name in ("openvino_model.xml", "openvino_scoring.xml")
    )
    assert [path.name for path in base.glob("*.bin")] == ["openvino_model.bin"]
    assert last.output("logits").partial_shape[1].max_length == 1
    assert scoring.output("logits").partial_shape[1].max_length == -1
    differences = [
        (a, b)
        for a, b in zip(
            *((base / n).read_text().splitlines() for n in ("openvino_model.xml", "openvino_scoring.xml")), strict=True
        )
        if a != b
    ]
    assert len(differences) == 1


def test_base_holds_the_float32_weights(base: Path) -> None:
    for name, expected in tensors(base).items():
        if name.endswith("proj.weight") or name == "lm_head.weight":
            number, values = stored(base, name.removesuffix(".weight"))
            assert number == "f32"
            np.testing.assert_array_equal(values, expected)


def test_names_are_those_of_hugging_face(base: Path) -> None:
    names = formats.linear_names(base)
    assert names[-1] == "lm_head"
    assert {f"{name}.weight" for name in names} == {
        name for name in tensors(base) if name.endswith("proj.weight") or name == "lm_head.weight"
    }


@pytest.mark.parametrize(
    ("bits", "group", "symmetric", "number"),
    [(8, 32, True, "i8"), (8, 64, False, "u8"), (4, 32, True, "i4"), (4, 64, False, "u4"), (4, 16, False, "u4")],
)
def test_weights_are_rounded_to_nearest_in_groups(
    base: Path, tmp_path: Path, bits: int, group: int, symmetric: bool, number: str
) -> None:
    names = formats.linear_names(base)
    formats.quantize_weights(base, tmp_path / "out", dict.fromkeys(names, (bits, group, symmetric)))
    for name in names:
        w = tensors(base)[f"{name}.weight"]
        kind, values = stored(tmp_path / "out", name)
        assert kind == number
        np.testing.assert_allclose(values, rounded(w, bits, group, symmetric), atol=1e-5 * np.abs(w).max(), err_msg=name)


def test_a_tied_embedding_is_stored_once(base: Path, tmp_path: Path) -> None:
    formats.compress_weights(base, tmp_path / "out", 8, 64)
    parameters = sum(w.size for name, w in tensors(base).items() if not (name == "lm_head.weight" and "untied" in str(base)))
    assert (tmp_path / "out" / "openvino_model.bin").stat().st_size < 2 * parameters


def test_linears_may_have_widths_of_their_own(base: Path, tmp_path: Path) -> None:
    wide = "model.layers.1.mlp.down_proj"
    bits = {name: 4 for name in formats.linear_names(base) if name not in (wide, "lm_head")}
    formats.compress_weights(base, tmp_path / "out", bits, 32, symmetric=False)
    kinds = {name: stored(tmp_path / "out", name)[0] for name in formats.linear_names(base)}
    assert kinds.pop(wide) == "i8"
    assert kinds.pop("lm_head") == "i8"
    assert set(kinds.values()) == {"u4"}


def test_a_compressed_folder_is_whole(base: Path, tmp_path: Path) -> None:
    formats.compress_weights(base, tmp_path / "out", 4, 32)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in base.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"model.layers.7.mlp.up_proj": (4, 32, True)}, r"no linear named model\.layers\.7\.mlp\.up_proj"),
        ({"lm_head": (4, 48, True)}, "48 does not divide 64"),
        ({"lm_head": (3, 32, True)}, "not of 3"),
    ],
)
def test_a_wrong_plan_leaves_nothing_behind(base: Path, tmp_path: Path, plan: Any, words: str) -> None:
    with pytest.raises((ValueError, BadInput), match=words):
        formats.quantize_weights(base, tmp_path / "out", plan)
    assert list(tmp_path.iterdir()) == []


def compiled(folder: Path, name: str) -> Any:
    import openvino

    core = openvino.Core()
    model = core.read_model(folder / name, folder / "openvino_model.bin")
    return core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"})


def logits(folder: Path, tokens: np.ndarray, name: str = "openvino_scoring.xml") -> np.ndarray:
    """[1, length, V] of tokens int64 [length]."""
    request = compiled(folder, name).create_infer_request()
    inputs = {
        "input_ids": tokens[None],
        "attention_mask": np.ones_like(tokens)[None],
        "position_ids": np.arange(len(tokens))[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    wanted = {name for port in request.model_inputs for name in port.get_names()}
    request.infer({name: value for name, value in inputs.items() if name in wanted})
    return np.array(request.get_tensor("logits").data)


def test_a_random_twin_has_the_same_graph_and_another_function(base: Path, tmp_path: Path) -> None:
    formats.randomise(base, tmp_path / "ghost")
    sizes = [(folder / "openvino_model.bin").stat().st_size for folder in (base, tmp_path / "ghost")]
    assert sizes[0] == sizes[1]
    tokens = np.arange(24)
    ours, theirs = logits(base, tokens), logits(tmp_path / "ghost", tokens)
    assert np.isfinite(theirs).all()
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] < 0.5


def scales_of(folder: Path) -> tuple[list[formats.Input], list[Any]]:
    """Ranges and SmoothQuant scales of the tiny model, as the method finds them."""
    from quantadvisor.methods import smoothquant

    tokens = np.random.default_rng(0).integers(0, 256, (4, 24))
    found = smoothquant.search(folder.parent / "hf", tokens, smoothquant.fake_activations, linear=True)
    return [formats.Input(*each) for each in found.inputs], found.scales


def test_moving_scales_keeps_the_function(base: Path, tmp_path: Path) -> None:
    _, scales = scales_of(base)
    assert len(scales) > 4
    tokens = np.arange(24)
    formats.quantize_w8a8(base, tmp_path / "moved", [], scales)
    formats.quantize_w8a8(base, tmp_path / "plain", [])
    np.testing.assert_allclose(logits(tmp_path / "moved", tokens), logits(tmp_path / "plain", tokens), atol=1e-4)


def rounded_in_torch(model_folder: Path, inputs: list[formats.Input], scales: list[Any], tokens: np.ndarray) -> np.ndarray:
    """Logits [1, length, V] of the same roundings, in torch: scales moved, weights per channel, inputs on 256 levels."""
    import torch

    from quantadvisor.kernels.saturation import most_exact
    from quantadvisor.methods.affine import affine_grid, quantize_channels
    from quantadvisor.methods.observe import load
    from quantadvisor.methods.rescale import move

    model = load(model_folder)
    state = model.state_dict()
    for pair, scale in scales:
        move(state, pair, scale)
    model.load_state_dict(state)
    for readers, low, high in inputs:
        step, zero = affine_grid(np.float32(low), np.float32(high), 0, 255)

        def rounding(_: Any, args: Any, step: float = float(step), zero: int = int(zero)) -> Any:
            return ((torch.clamp(torch.round(args[0] / step) + zero, 0, 255) - zero) * step,)

        for name in readers:
            linear = model.get_submodule(name)
            codes, scale = quantize_channels(linear.weight.detach().numpy(), most_exact())
            linear.weight.data = torch.from_numpy(codes * scale[:, None])
            linear.register_forward_pre_hook(rounding)
    with torch.no_grad():
        return model(torch.from_numpy(tokens)[None]).logits.numpy()


def test_w8a8_runs_as_int8_and_keeps_the_cache_inside_attention(base: Path, tmp_path: Path) -> None:
    inputs, scales = scales_of(base)
    formats.quantize_w8a8(base, tmp_path / "out", inputs, scales)
    tokens = np.random.default_rng(1).integers(0, 256, 24)
    assert logits(tmp_path / "out", tokens, "openvino_model.xml").shape[1] == 1
    ours = logits(tmp_path / "out", tokens)
    oracle = rounded_in_torch(base.parent / "hf", inputs, scales, tokens)
    to_oracle, to_exact = (np.square(ours - other).mean() for other in (oracle, logits(base, tokens)))
    assert to_oracle < 0.02 * to_exact
    nodes = compiled(tmp_path / "out", "openvino_model.xml").get_runtime_model().get_ops()
    layers = [n.get_rt_info() for n in nodes if n.get_rt_info()["layerType"].astype(str) == "FullyConnected"]
    ran = [info["runtimePrecision"].astype(str) for info in layers]
    assert sum(precision in ("u8", "i8") for precision in ran) >= 2 * 7 - 4, ran  # q, k and v may be one node a layer
    attention = [n for n in nodes if n.get_rt_info()["layerType"].astype(str) == "ScaledDotProductAttention"]
    assert len(attention) == 2


def test_w8a8_is_no_worse_than_that_of_nncf(base: Path, tmp_path: Path) -> None:
    """The independent oracle: nncf.quantize with SmoothQuant on the same graph and samples, output layer left alone."""
    import nncf
    import openvino

    inputs, scales = scales_of(base)
    formats.quantize_w8a8(base, tmp_path / "ours", inputs, scales)
    draw = np.random.default_rng(0)
    rows = [
        {"input_ids": row[None], "attention_mask": np.ones_like(row)[None], "position_ids": np.arange(24)[None],
         "beam_idx": np.zeros(1, np.int32)}
        for row in draw.integers(0, 256, (4, 24))
    ]  # fmt: skip
    with formats.quiet():
        theirs = nncf.quantize(
            openvino.Core().read_model(base / "openvino_scoring.xml", base / "openvino_model.bin"),
            nncf.Dataset(rows),
            subset_size=4,
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(types=["ScaledDotProductAttention"], validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=True),
        )
    (tmp_path / "theirs").mkdir()
    formats.write(theirs, tmp_path / "theirs")
    tokens = draw.integers(0, 256, 24)
    exact = logits(base, tokens)
    ours, other = (np.square(logits(tmp_path / name, tokens) - exact).mean() for name in ("ours", "theirs"))
    assert ours < 1.5 * other


def test_nothing_is_reported_to_the_vendor() -> None:
    import sys
    from types import SimpleNamespace

    class Telemetry:
        def __init__(self) -> None:
            self.consent = True

    before = sys.modules.get("openvino_telemetry")
    sys.modules["openvino_telemetry"] = SimpleNamespace(Telemetry=Telemetry)  # type: ignore[assignment]
    try:
        early = Telemetry()
        formats.silence_telemetry()
        assert not early.consent
        assert not Telemetry().consent
    finally:
        sys.modules["openvino_telemetry"] = before  # type: ignore[assignment]
