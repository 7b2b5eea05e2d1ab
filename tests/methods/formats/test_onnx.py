"""Graph surgery on the tiny model's export: what the nodes compute, what ONNX Runtime makes of them, what lies on disk."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quantadvisor.documents.errors import CandidateFailed
from quantadvisor.methods.affine import Grouped, dequantize_groups, fake_tokens, quantize_channels, quantize_groups
from quantadvisor.methods.formats import onnx
from quantadvisor.methods.formats.onnx_base import Rewrite, linears, load_graph
from quantadvisor.methods.linear_format import LinearFormat

from ..conftest import kl, operators, run, session, torch_logits, write_llama


def plan_of(base: Path, bits: int, group: int, symmetric: bool) -> dict[str, LinearFormat]:
    return dict.fromkeys(onnx.linear_names(base), (bits, group, symmetric))


def fake_folder(base: Path, out: Path, change) -> Path:
    """The fp32 folder with `change(name, weight [N, K])` in place of every linear's weight: the numpy oracle."""
    with Rewrite(base, out) as edit:
        for name, node in linears(edit.model).items():
            value = np.ascontiguousarray(edit.tensor(node.input[1]).T)
            edit.drop(node.input[1])
            edit.add(node.input[1], np.ascontiguousarray(change(name, value).T))
    return out


def test_export_is_the_model(llama: Path, base: Path, tokens: np.ndarray) -> None:
    exact = torch_logits(llama, tokens[0])
    np.testing.assert_allclose(run(base, tokens[0]), exact, atol=2e-4)
    last = run(base, tokens[0], name="model.onnx")
    assert last.shape == (1, 256)
    np.testing.assert_allclose(last[0], exact[-1], atol=2e-4)
    assert {"model.onnx", "scoring.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json"} <= {
        path.name for path in base.iterdir()
    }


def test_a_failed_export_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    with pytest.raises(CandidateFailed, match="the ONNX export of"):
        onnx.export_base(tmp_path / "hf", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize(
    ("bits", "group", "symmetric"), [(4, 32, False), (4, 64, True), (8, 64, True), (8, 16, False), (4, 128, False)]
)
def test_group_weights_compute_what_numpy_says(
    bits: int, group: int, symmetric: bool, base: Path, tokens: np.ndarray, tmp_path: Path
) -> None:
    """Accuracy level 0: fp32 products of dequantized weights. The tied embedding is the dequantized lm_head."""
    onnx.quantize_weights(base, tmp_path / "out", plan_of(base, bits, group, symmetric), accuracy_level=0)
    shares = group <= 64 and (symmetric or bits == 8)

    def rounded(name: str, w: np.ndarray) -> np.ndarray:
        return dequantize_groups(*quantize_groups(w, bits, group, symmetric), group)

    if not shares:  # the table stays fp32: compare the layers alone, under the same lm_head
        plan = plan_of(base, bits, group, symmetric)
        del plan["lm_head"]
        onnx.quantize_weights(base, tmp_path / "out", plan, accuracy_level=0)
    oracle = fake_folder(base, tmp_path / "oracle", lambda name, w: w if name == "lm_head" and not shares else rounded(name, w))
    np.testing.assert_allclose(run(tmp_path / "out", tokens[0]), run(oracle, tokens[0]), atol=1e-3)


def test_accuracy_level_is_written(base: Path, tmp_path: Path) -> None:
    for level in (0, 4):
        onnx.quantize_weights(base, tmp_path / "out", plan_of(base, 8, 64, True), accuracy_level=level)
        nodes = [node for node in load_graph(tmp_path / "out").graph.node if node.op_type == "MatMulNBits"]
        found = {entry.i for node in nodes for entry in node.attribute if entry.name == "accuracy_level"}
        assert (len(nodes), found) == (len(onnx.linear_names(base)), {level})


def test_a_tied_table_shares_its_codes(base: Path, tmp_path: Path) -> None:
    onnx.quantize_weights(base, tmp_path / "out", plan_of(base, 8, 64, True))
    names = {tensor.name for tensor in load_graph(tmp_path / "out").graph.initializer}
    assert not any("embed_tokens.weight" in name for name in names)
    found = operators(tmp_path / "out", tmp_path)
    assert found["GatherBlockQuantized"] == 1
    assert found["MatMulNBits"] == len(onnx.linear_names(base))
    assert "MatMul" not in found


def test_an_untied_table_is_left_alone(tokens: np.ndarray, tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "hf", tied=False)
    onnx.export_base(folder, tmp_path / "base")
    onnx.quantize_weights(tmp_path / "base", tmp_path / "out", plan_of(tmp_path / "base", 8, 32, True), 0)
    assert "GatherBlockQuantized" not in operators(tmp_path / "out", tmp_path)
    assert kl(torch_logits(folder, tokens[0]), run(tmp_path / "out", tokens[0])) < 1e-3


def test_unknown_linears_are_named(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CandidateFailed, match=r"no linear named model\.layers\.9"):
        onnx.quantize_weights(base, tmp_path / "out", {"model.layers.9.mlp.up_proj": (4, 32, True)})
    assert list(tmp_path.iterdir()) == []


def test_w8a8_per_tensor_is_what_quantize_dynamic_writes(
    base: Path, tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: onnxruntime.quantization.quantize_dynamic on the same graph, lm_head left out of both. It writes int8 weights
    whatever the CPU."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from quantadvisor.methods.formats import onnx_weights
    from quantadvisor.methods.formats.onnx_weights import tensor_linear

    monkeypatch.setattr(onnx_weights, "saturates", lambda: False)
    with Rewrite(base, tmp_path / "ours") as edit:
        shared: dict[str, tuple[str, str, str]] = {}
        for name, node in linears(edit.model).items():
            if name != "lm_head":
                tensor_linear(edit, node, shared)
    (tmp_path / "theirs").mkdir()
    quantize_dynamic(
        base / "scoring.onnx", tmp_path / "theirs" / "scoring.onnx", op_types_to_quantize=["MatMul"], per_channel=True,
        weight_type=QuantType.QInt8, nodes_to_exclude=["/lm_head/MatMul"],
        extra_options={"MatMulConstBOnly": True, "DefaultTensorType": 1},
    )  # fmt: skip
    np.testing.assert_allclose(run(tmp_path / "ours", tokens[0]), run(tmp_path / "theirs", tokens[0]), atol=1e-3)


@pytest.mark.parametrize("per_token", [False, True])
def test_w8a8_is_exact_on_this_cpu(
    base: Path, tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_token: bool
) -> None:
    """uint8 weights about 128 are the same numbers, and no kernel of ONNX Runtime saturates with them."""
    from quantadvisor.methods.formats import onnx_weights

    onnx.quantize_dynamic_w8a8(base, tmp_path / "ours", per_token=per_token)
    monkeypatch.setattr(onnx_weights, "saturates", lambda: True)
    onnx.quantize_dynamic_w8a8(base, tmp_path / "exact", per_token=per_token)
    np.testing.assert_allclose(run(tmp_path / "ours", tokens[0]), run(tmp_path / "exact", tokens[0]), atol=1e-3)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("saturating", [False, True])
def test_given_integers_per_channel_are_stored_as_they_are(
    per_token: bool, saturating: bool, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All 256 codes and their scales, as int8 about 0 or uint8 about 128; linears that none were given for are rounded."""
    from quantadvisor.methods.formats import onnx_weights

    monkeypatch.setattr(onnx_weights, "saturates", lambda: saturating)
    name = "model.layers.1.mlp.down_proj"
    codes = np.random.default_rng(0).permuted(np.arange(64 * 128).reshape(64, 128) % 256, axis=1).astype(np.uint8)
    given = Grouped(codes, np.linspace(0.1, 1, 64, dtype=np.float32)[:, None], np.full((64, 1), 128, np.uint8))
    onnx.quantize_dynamic_w8a8(base, tmp_path / "plain", per_token=per_token)
    onnx.quantize_dynamic_w8a8(base, tmp_path / "given", per_token=per_token, given={name: lambda: given})
    with Rewrite(tmp_path / "given", tmp_path / "a") as found, Rewrite(tmp_path / "plain", tmp_path / "b") as plain:
        stored, scales, zeros = (found.tensor(f"{name}.MatMul.weight_{part}") for part in ("quantized", "scale", "zero_point"))
        np.testing.assert_array_equal(stored.T.astype(int) - zeros.astype(int)[:, None], codes.astype(int) - 128)
        np.testing.assert_array_equal(scales, given.scales[:, 0])
        assert stored.dtype == (np.uint8 if saturating else np.int8)
        changed = {each for each in plain.old if not np.array_equal(plain.tensor(each), found.tensor(each))}
        assert changed == {f"{name}.MatMul.weight_quantized", f"{name}.MatMul.weight_scale"}


def test_7_bits_of_weight_are_exact_in_int8_where_8_are_not(base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    """On any CPU: the same codes about 128 go through products that saturate nowhere. Their KL is that of 7 bits: above 8's."""
    onnx.quantize_dynamic_w8a8(base, tmp_path / "w7a8", per_token=True, bits=7)
    onnx.quantize_dynamic_w8a8(base, tmp_path / "w8a8", per_token=True)
    with Rewrite(tmp_path / "w7a8", tmp_path / "exact") as edit:
        codes = [name for name in edit.old if name.endswith(".weight_quantized")]
        for name in codes:
            seven, zero = edit.tensor(name), edit.tensor(name.replace("_quantized", "_zero_point"))
            assert seven.dtype == np.int8
            assert np.abs(seven).max() == 63
            edit.drop(name)
            edit.drop(name.replace("_quantized", "_zero_point"))
            edit.add(name, (seven.astype(np.int16) + 128).astype(np.uint8))
            edit.add(name.replace("_quantized", "_zero_point"), np.full(len(zero), 128, np.uint8))
    assert len(codes) == 10
    ours = run(tmp_path / "w7a8", tokens[0])
    np.testing.assert_allclose(ours, run(tmp_path / "exact", tokens[0]), atol=1e-4)
    exact = run(base, tokens[0])
    assert kl(exact, run(tmp_path / "w8a8", tokens[0])) < kl(exact, ours)


def test_w8a8_per_tensor_is_fused(base: Path, tmp_path: Path) -> None:
    onnx.quantize_dynamic_w8a8(base, tmp_path / "out")
    found = operators(tmp_path / "out", tmp_path)
    assert found["DynamicQuantizeMatMul"] == 6  # qkv, o, down: inputs of their own
    assert found["MatMulIntegerToFloat"] == 4  # gate and up share theirs
    assert found["MatMulNBits"] == 1
    assert not {"MatMul", "MatMulInteger"} & set(found)


def test_w8a8_per_token_computes_what_numpy_says(base: Path, tmp_path: Path) -> None:
    """One linear cut out of the graph: its output against rounded tokens times rounded channels."""
    import onnx as library
    import onnxruntime as ort

    onnx.quantize_dynamic_w8a8(base, tmp_path / "out", per_token=True)
    assert operators(tmp_path / "out", tmp_path)["MatMulIntegerToFloat"] == 10
    source, target = "/model/layers.0/input_layernorm/output_0", "/model/layers.0/attn/qkv_proj/MatMul/output_0"
    graph = library.load(tmp_path / "out" / "scoring.onnx")
    for name in (source, target):
        value = library.helper.make_tensor_value_info(name, library.TensorProto.FLOAT, ["b", "s", "k"])
        graph.graph.value_info.append(value)
    part = library.utils.Extractor(graph).extract_model([source], [target])
    x = np.random.default_rng(0).standard_normal((1, 7, 64)).astype(np.float32) * np.arange(1, 8)[None, :, None]
    x = x.astype(np.float32)
    found = ort.InferenceSession(part.SerializeToString()).run(None, {source: x})[0]
    with Rewrite(base, tmp_path / "unused") as edit:
        w = np.ascontiguousarray(edit.tensor("model.layers.0.attn.qkv_proj.MatMul.weight").T)
    codes, scale = quantize_channels(w)
    expected = fake_tokens(x[0]) @ (codes * scale[:, None]).T
    np.testing.assert_allclose(found[0], expected, atol=1e-4 * np.abs(expected).max())


def test_per_token_survives_one_loud_token(llama: Path, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    onnx.quantize_dynamic_w8a8(base, tmp_path / "tensor")
    onnx.quantize_dynamic_w8a8(base, tmp_path / "token", per_token=True)
    exact = torch_logits(llama, tokens[0])
    assert kl(exact, run(tmp_path / "token", tokens[0])) < kl(exact, run(tmp_path / "tensor", tokens[0]))


@pytest.mark.parametrize("weights", ["fp32", "w4", "w8a8"])
def test_int8_cache(weights: str, base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    """Chunks of 8 read what earlier chunks wrote; the reference is the same weights with a float cache."""
    plain = base
    if weights == "w4":
        plain = tmp_path / "plain"
        onnx.quantize_weights(base, plain, plan_of(base, 8, 32, True))
    if weights == "w8a8":
        plain = tmp_path / "plain"
        onnx.quantize_dynamic_w8a8(base, plain, per_token=True)
    onnx.quantize_cache(plain, tmp_path / "out", onnx.calibrate_cache(base, tokens))
    for name in ("model.onnx", "scoring.onnx"):
        opened = session(tmp_path / "out", name)
        kinds = {value.type for value in (*opened.get_inputs(), *opened.get_outputs()) if ".key" in value.name}
        assert kinds == {"tensor(int8)"}
    exact, found = run(plain, tokens[0], chunk=8), run(tmp_path / "out", tokens[0], chunk=8)
    assert 0 < kl(exact, found) < 0.01
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert config["search"]["past_present_share_buffer"] is False
    assert (tmp_path / "out" / "model.onnx.data").samefile(plain / "model.onnx.data")


def test_cache_bounds_are_the_maxima_of_channels_and_of_rotary_pairs(base: Path, tokens: np.ndarray) -> None:
    bounds = onnx.calibrate_cache(base, tokens[:2])
    opened = session(base, "model.onnx")
    past = {f"past_key_values.{i}.{side}": np.zeros((1, 2, 0, 16), np.float32) for i in (0, 1) for side in ("key", "value")}
    names = ["present.1.key", "present.1.value"]
    seen = [
        opened.run(names, {"input_ids": row[None], "attention_mask": np.ones((1, 32), np.int64), **past}) for row in tokens[:2]
    ]
    keys, values = (np.concatenate(side) for side in zip(*seen, strict=True))
    norms = np.tile(np.sqrt(keys[..., :8] ** 2 + keys[..., 8:] ** 2), 2)
    assert set(bounds) == set(past)
    for name, sizes in (("past_key_values.1.key", norms), ("past_key_values.1.value", np.abs(values))):
        np.testing.assert_allclose(bounds[name], sizes.max(axis=(0, 2)).reshape(-1), rtol=1e-5)


def test_an_exception_midway_leaves_nothing(base: Path, tmp_path: Path) -> None:
    def interrupted() -> None:
        with Rewrite(base, tmp_path / "out") as edit:
            edit.add("half", np.zeros(4096, np.float32))
            raise KeyboardInterrupt

    def failing_at_the_end() -> None:
        with Rewrite(base, tmp_path / "out") as edit:
            del edit.model.metadata_props[:]

    for broken, error in ((interrupted, KeyboardInterrupt), (failing_at_the_end, KeyError)):
        with pytest.raises(error):
            broken()
        assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_nothing_under_the_name(base: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; import numpy as np\n"
        "from quantadvisor.methods.formats.onnx_base import Rewrite\n"
        "with Rewrite(Path(sys.argv[1]), Path(sys.argv[2])) as edit:\n"
        "    edit.add('half', np.zeros(4096, np.float32))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    source = Path(__file__).resolve().parents[3] / "src"
    command = [sys.executable, "-c", code, str(base), str(tmp_path / "out")]
    done = subprocess.run(command, env={"PYTHONPATH": str(source)})
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()


def test_an_older_folder_is_replaced_whole(base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stale").write_text("old")
    onnx.quantize_weights(base, tmp_path / "out", plan_of(base, 8, 64, True))
    assert not (tmp_path / "out" / "stale").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_genai_generates_from_these_folders(base: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    """Its own loop runs last-position graphs, with a float and with an INT8 cache, and agrees with our logits."""
    import onnxruntime_genai as genai

    onnx.quantize_cache(base, tmp_path / "kv8", onnx.calibrate_cache(base, tokens))
    for folder in (base, tmp_path / "kv8"):
        model = genai.Model(str(folder))
        settings = genai.GeneratorParams(model)
        settings.set_search_options(max_length=20, do_sample=False)
        generator = genai.Generator(model, settings)
        generator.append_tokens(tokens[:1, :16].astype(np.int32))
        generator.generate_next_token()
        assert generator.get_sequence(0)[16] == run(folder, tokens[0, :16])[-1].argmax()
        del generator, model
