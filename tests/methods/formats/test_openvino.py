"""Artifacts of tiny random models: what is stored, against closed forms written out here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino")
pytest.importorskip("optimum.intel")

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
        ({"lm_head": (4, 48, True)}, "48 of 64"),
        ({"lm_head": (3, 32, True)}, "found 3 bits"),
    ],
)
def test_a_wrong_plan_leaves_nothing_behind(base: Path, tmp_path: Path, plan: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        formats.quantize_weights(base, tmp_path / "out", plan)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("smooth", [True, False])
def test_w8a8_keeps_the_cache_inside_attention(base: Path, tmp_path: Path, smooth: bool) -> None:
    import openvino

    tokens = np.random.default_rng(0).integers(0, 256, (4, 24))
    formats.quantize_w8a8(base, tmp_path / "out", tokens, smooth)
    core = openvino.Core()
    for name, length in (("openvino_model.xml", 1), ("openvino_scoring.xml", 24)):
        model = core.read_model(tmp_path / "out" / name, tmp_path / "out" / "openvino_model.bin")
        request = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
        request.infer(formats.calibration_inputs(tokens[0], {n for port in model.inputs for n in port.get_names()}))
        assert request.get_tensor("logits").shape[1] == length
    kinds = [node.get_type_name() for node in model.get_ops()]
    assert "FakeQuantize" in kinds or "Quantize" in kinds
    quantized = [node for node in model.get_ops() if node.get_type_name() == "ScaledDotProductAttention"]
    assert len(quantized) == 2
    assert all(port.get_node().get_type_name() != "FakeQuantize" for node in quantized for port in node.input_values())


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
