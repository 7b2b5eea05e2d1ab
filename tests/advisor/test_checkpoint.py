"""What a folder says about itself: formats and counts of graphs made by hand, and one line for whatever is not a checkpoint."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from quantadvisor.advisor import stored_graphs
from quantadvisor.advisor.candidates import CACHE_OPTIONS, session_options
from quantadvisor.advisor.checkpoint import (
    CACHES,
    check_quantized,
    check_same_model,
    described,
    existing_checkpoints,
    inspect,
    with_cache,
)
from quantadvisor.advisor.stored_transformers import of_quantization_config
from quantadvisor.documents import BadInput, Checkpoint, Device, Inventory
from quantadvisor.methods.formats import compressed
from quantadvisor.methods.schemes import scheme
from quantadvisor.reports.markdown import render_markdown

from ..reports import sample
from .documents import workload
from .test_diagnose import INVENTORY

LAYER = '<layer id="{id}" name="{name}" type="{type}"><data {data}/></layer>'
EDGE = '<edge from-layer="{0}" from-port="0" to-layer="{1}" to-port="{2}"/>'
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 256,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, "tie_word_embeddings": True,
}  # fmt: skip


def onnx_folder(folder: Path, level: int | None, head: bool, cache: str = "FLOAT") -> Path:
    """Two linears and a head; `level` of MatMulNBits, or None for the integer product of dynamic quantization."""
    onnx = pytest.importorskip("onnx")
    make, kind = onnx.helper.make_node, onnx.TensorProto
    value = onnx.helper.make_tensor_value_info
    constants = [onnx.numpy_helper.from_array(np.zeros((2, 2), np.float32), "w")]
    nodes = []
    for name in ("a", "b"):
        if level is None:
            nodes.append(make("MatMulInteger", ["x", "w"], [name], name=name))
        else:
            more = {"accuracy_level": level} if level else {}
            nodes.append(
                make(
                    "MatMulNBits", ["x", "w"], [name], name=name, domain="com.microsoft", bits=4, block_size=32, K=2, N=2, **more
                )
            )
    nodes.append(make("Transpose", ["w"], ["turned"]))
    plain = make("MatMul", ["x", "turned"], ["logits"], name="/lm_head/MatMul")
    low = make("MatMulNBits", ["x", "w"], ["logits"], name="/lm_head/MatMul_Q8", domain="com.microsoft", bits=8, block_size=32)
    nodes += [low if head else plain, make("MatMul", ["a", "b"], ["scores"])]
    past = [value(f"past_key_values.{i}.{part}", getattr(kind, cache), [1]) for i in range(2) for part in ("key", "value")]
    graph = onnx.helper.make_graph(
        nodes, "g", [value("x", kind.FLOAT, [1]), *past], [value("logits", kind.FLOAT, [1, 1, 256])], constants
    )
    folder.mkdir()
    (folder / "model.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    (folder / "genai_config.json").write_text("{}")
    return folder


def test_onnx_group_weights_with_a_plain_head(tmp_path: Path) -> None:
    found = inspect(str(onnx_folder(tmp_path / "m", 0, head=False)), None, ())
    assert (found.scheme.name, found.linears, found.stored_quantized) == ("w4-g32", 3, 2)
    assert found.accuracy_levels == (0,)
    assert found.scheme.lm_head is None
    assert (found.layers, found.vocabulary) == (2, 256)
    assert found.runtime == "onnxruntime"


def test_onnx_integer_products_and_an_int8_cache(tmp_path: Path) -> None:
    found = inspect(str(onnx_folder(tmp_path / "m", None, head=True, cache="INT8")), "onnxruntime-genai", ())
    assert found.scheme.name == "w8a8-tensor-kv8"
    assert (found.linears, found.stored_quantized) == (3, 3)
    assert found.scheme.quantizes_cache


def products_folder(folder: Path, largest: int, kind: type = np.int8) -> Path:
    """Three products of integers of which two have weights up to `largest`, one of them in a file of its own; and one that ONNX
    Runtime makes of dequantized tensors."""
    onnx = pytest.importorskip("onnx")
    make, numbers, value = onnx.helper.make_node, onnx.TensorProto, onnx.helper.make_tensor_value_info
    tensor = onnx.numpy_helper.from_array
    big, small = np.array([[1, largest], [3, 4]], kind), np.array([[1, 2], [3, 64]], kind)
    outside = tensor(big, "outside")
    onnx.external_data_helper.set_external_data(outside, "weights.bin")
    nodes = [
        make("MatMulInteger", ["x", "big"], ["a"]), make("MatMulInteger", ["x", "small"], ["b"]),
        make("MatMulIntegerToFloat", ["x", "outside", "one", "one"], ["c"], domain="com.microsoft"),
        make("DequantizeLinear", ["x", "one"], ["floats"]), make("DequantizeLinear", ["big", "one"], ["w"]),
        make("MatMul", ["floats", "w"], ["d"]),
    ]  # fmt: skip
    graph = onnx.helper.make_graph(
        nodes, "g", [value("x", numbers.UINT8, [2, 2])], [value("a", numbers.INT32, [2, 2])],
        [tensor(big, "big"), tensor(small, "small"), outside, tensor(np.float32(1), "one")],
    )  # fmt: skip
    folder.mkdir()
    onnx.external_data_helper.save_external_data(outside, str(folder))
    outside.ClearField("raw_data")
    graph.initializer[2].CopyFrom(outside)
    (folder / "model.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    (folder / "genai_config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(("largest", "kind", "here", "count"), [
    (127, np.int8, True, 3), (-65, np.int8, True, 3), (-64, np.int8, True, 0), (255, np.uint8, True, 0), (127, np.int8, False, 0),
])  # fmt: skip
def test_products_that_this_cpu_saturates_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest: int, kind: type, here: bool, count: int
) -> None:
    monkeypatch.setattr(stored_graphs, "saturates", lambda: here)
    found = stored_graphs.saturation_notes(products_folder(tmp_path / "m", largest, kind))
    assert [note.partition(":")[0] for note in found] == [f"{count} linears multiply u8 x s8 with weights beyond 64"] * bool(
        count
    )


def test_a_checkpoint_of_the_spec_says_that_this_cpu_saturates_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime_genai")
    monkeypatch.setattr(stored_graphs, "saturates", lambda: True)
    mine = str(products_folder(tmp_path / "m", 127))
    found = existing_checkpoints(workload(checkpoints=[mine]), INVENTORY, DEVICE)
    assert [one.notes for one in found] == [stored_graphs.saturation_notes(Path(mine))] * 2
    gpu = existing_checkpoints(workload(checkpoints=[mine]), INVENTORY, DEVICE.model_copy(update={"kind": "cuda"}))
    assert gpu
    assert {one.notes for one in gpu} == {()}


def openvino_folder(folder: Path, element: str) -> Path:
    """One linear with grouped weights, one product of two computed tensors, two layers' worth of states."""
    layers = [
        ("0", "x", "Parameter", ""), ("1", "w", "Const", f'element_type="{element}" shape="8, 2, 64"'),
        ("2", "c", "Convert", ""), ("3", "r", "Reshape", ""), ("4", "q_proj/MatMul", "MatMul", ""),
        ("5", "scores", "MatMul", ""), *((str(i), f"s{i}", "ReadValue", "") for i in range(6, 10)),
    ]  # fmt: skip
    edges = [("1", "2", "0"), ("2", "3", "0"), ("0", "4", "0"), ("3", "4", "1"), ("4", "5", "0"), ("4", "5", "1")]
    text = "".join(LAYER.format(id=i, name=name, type=kind, data=data) for i, name, kind, data in layers)
    folder.mkdir()
    xml = f"<net><layers>{text}</layers><edges>{''.join(EDGE.format(*edge) for edge in edges)}</edges></net>"
    (folder / "openvino_model.xml").write_text(xml)
    (folder / "openvino_model.bin").write_bytes(b"")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.mark.parametrize(("element", "name"), [("u4", "w4-g64"), ("i8", "w8-g64")])
def test_openvino_weights_are_followed_to_their_constant(tmp_path: Path, element: str, name: str) -> None:
    pytest.importorskip("openvino")
    found = inspect(str(openvino_folder(tmp_path / "m", element)), "openvino+f32+kvu8", ())
    assert found.scheme.name == f"{name}-kv8"
    assert (found.linears, found.stored_quantized, found.layers) == (1, 1, 2)
    assert found.options == ("f32",)


@pytest.mark.parametrize("runtime", ["vllm", "triton"])
@pytest.mark.parametrize("scheme_name", ["bf16", "w4-g64-bf16", "w8a8-bf16"])
def test_a_cache_that_is_an_option_of_the_session_is_part_of_what_is_explained(runtime: str, scheme_name: str) -> None:
    """The unquantized side then runs without it."""
    _, ends = CACHE_OPTIONS[runtime]
    for option in ends.values():
        made = with_cache(scheme(scheme_name), CACHES[option])
        assert made.quantizes_cache and session_options(runtime, (), made) == (option,)
        assert session_options(runtime, (), scheme(scheme_name)) == ()


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "w4-g128"),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "w8"),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, "w4-g64"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "fp4-b64"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4-b64"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "w8a8-outlier"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8-block"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8-static"),
        ({"quant_method": "fp8"}, "fp8-tensor"),
        ({"quant_method": "fbgemm_fp8"}, "fp8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}}, "w8"),
        (
            {
                "quant_method": "torchao",
                "quant_type": {"default": {"_type": "Int4WeightOnlyConfig", "_data": {"group_size": 32}}},
            },
            "w4-g32",
        ),
        ({"config_groups": {"group_0": {"weights": {"num_bits": 8}, "input_activations": {"dynamic": True}}}}, "w8a8"),
        ({"config_groups": {"g": {"weights": {"num_bits": 4, "group_size": 128}, "input_activations": None}}}, "w4-g128"),
        (
            {
                "config_groups": {
                    "g": {
                        "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
                        "input_activations": {"dynamic": True, "strategy": "token"},
                    }
                }
            },
            "fp8",
        ),
    ],
)
def test_quantization_configs(given: dict[str, object], name: str) -> None:
    found = of_quantization_config(given, "here")
    assert found.name == name
    assert found.lm_head is None
    assert of_quantization_config(given, "here", head_quantized=True).lm_head == found.weights


@pytest.mark.parametrize("kind", compressed.FP8)
def test_an_fp8_folder_is_called_what_the_catalogue_calls_it(tmp_path: Path, kind: str) -> None:
    """By whether the rest of it is in 16 bit."""
    stem = "fp8" if kind == "channel" else f"fp8-{kind}"
    for dtype, name in (("bfloat16", f"{stem}-bf16"), ("float32", stem)):
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"dtype": dtype, "quantization_config": compressed.FP8[kind]}))
        assert described(str(tmp_path)).scheme == scheme(name)


def test_a_quantization_config_nobody_knows_is_one_line() -> None:
    with pytest.raises(BadInput, match="'odd' says nothing about bits") as caught:
        of_quantization_config({"quant_method": "odd"}, "here")
    assert "\n" not in str(caught.value)


def test_bf16_is_a_format_and_fp32_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"dtype": "bfloat16"}))
    assert inspect(str(tmp_path), None, ()).scheme.name == "bf16"
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"dtype": "float32"}))
    plain = inspect(str(tmp_path), None, ())
    assert plain.scheme.name == "fp32"
    with pytest.raises(BadInput, match="not quantized"):
        check_quantized(plain)


def test_what_is_no_checkpoint_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.onnx").write_bytes(b"\xff\xff not a graph")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "openvino_model.xml").write_text("<net><layers>")
    for name, said in (
        ("nowhere", "no such file or folder"), ("file", "is neither a folder nor"), ("empty", "holds no model.onnx"),
        ("broken", "is not an ONNX graph"), ("torn", "is not an OpenVINO graph"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=said) as caught:
            inspect(str(tmp_path / name), None, ())
        assert "\n" not in str(caught.value)


def gguf_file(path: Path, types: dict[str, str], layers: int = 1) -> Path:
    """A GGUF file with those tensors: name -> type, each [64, 64], rounded by the `gguf` package itself."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    for name, kind in types.items():
        number = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quantize(weights, number), raw_dtype=number)
    writer.add_tensor("output_norm.weight", weights[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_types_by_linear(tmp_path: Path) -> None:
    inside = {"blk.0.attn_q.weight": "Q4_0", "blk.0.attn_k.weight": "Q4_0", "blk.0.ffn_up.weight": "Q5_1"}
    one = described(str(gguf_file(tmp_path / "a.gguf", inside | {"token_embd.weight": "Q8_0"})))
    assert (one.format, one.runtime, one.plain, one.scheme.name) == ("gguf", "llama.cpp", "bf16", "q4_0")
    assert (one.linears, one.stored_quantized, one.layers, one.vocabulary) == (4, 4, 1, 64)
    assert one.scheme.weights is not None and one.scheme.weights.bits == 4.5
    assert one.scheme.lm_head is not None and one.scheme.lm_head.bits == 8.5
    head = described(str(gguf_file(tmp_path / "b.gguf", inside | {"token_embd.weight": "Q8_0", "output.weight": "F16"})))
    assert (head.linears, head.stored_quantized, head.scheme.lm_head) == (4, 3, None)
    plain = described(str(gguf_file(tmp_path / "c.gguf", {"blk.0.ffn_up.weight": "F16", "token_embd.weight": "F16"})))
    assert (plain.scheme.name, plain.stored_quantized) == ("bf16", 0)


def test_gguf_files_that_cannot_be_candidates_are_one_line(tmp_path: Path) -> None:
    gguf_file(tmp_path / "m-00001-of-00002.gguf", {"blk.0.ffn_up.weight": "F16", "token_embd.weight": "F16"})
    gguf_file(tmp_path / "norms.gguf", {})
    (tmp_path / "torn.gguf").write_bytes(b"GGUF")
    for name, said in (
        ("m-00001-of-00002.gguf", "llama-gguf-split --merge"), ("norms.gguf", "no weights of a decoder"),
        ("torn.gguf", "truncated"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=said) as caught:
            described(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_codes_are_counted_in_the_safetensors(tmp_path: Path) -> None:
    """What the config leaves open (whether lm_head is quantized, how many linears are) the headers say."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    names = [f"model.layers.0.self_attn.{part}_proj" for part in "qkv"]
    tensors = {f"{name}.qweight": torch.zeros(2, 2, dtype=torch.int32) for name in names}
    tensors |= {f"{names[0]}.g_idx": torch.zeros(2, dtype=torch.int32), "lm_head.weight": torch.zeros(2, 2)}
    save_file(tensors, tmp_path / "model.safetensors")
    config = CONFIG | {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}, "dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = described(str(tmp_path))
    assert (found.scheme.name, found.stored_quantized, found.plain) == ("w4-g32", 3, "bf16")
    assert found.scheme.lm_head is None
    save_file(tensors | {"lm_head.weight": torch.zeros(2, 2, dtype=torch.int8)}, tmp_path / "model.safetensors")
    assert described(str(tmp_path)).scheme.lm_head is not None
    (tmp_path / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00not JSON here")
    with pytest.raises(BadInput, match="corrupt or truncated safetensors"):
        described(str(tmp_path))


@pytest.mark.parametrize(
    ("given", "command"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "pip install bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "pip install --no-deps gptqmodel"),
        ({"quant_method": "awq", "bits": 4, "group_size": 32}, "pip install --no-deps gptqmodel"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8}}}},
            "pip install compressed-tensors",
        ),
    ],
)
def test_a_missing_package_is_one_line_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, object], command: str
) -> None:
    """As a candidate it is refused and the run goes on; `explain`, which has nothing else to do, ends there."""
    import importlib.util

    absent = ("bitsandbytes", "gptqmodel", "compressed_tensors")
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name in absent else found(name, *more))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": given}))
    inventory = INVENTORY.model_copy(update={"vocabulary": 256})
    asked = workload(checkpoints=[str(tmp_path)], runtimes=["torch"])
    (candidate,) = existing_checkpoints(asked, inventory, DEVICE)
    assert (candidate.method, candidate.target) == ("given", "weights")
    assert candidate.refused is not None and command in candidate.refused
    with pytest.raises(BadInput, match=command) as caught:
        inspect(str(tmp_path), "torch", ())
    assert "\n" not in str(caught.value)


def test_refusal_and_layouts_are_of_the_interpreter_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker runs there; ours may have another build."""
    from quantadvisor.advisor import checkpoint

    asked: list[str] = []

    def refusal(name: str, python: str, *_: object) -> None:
        asked.append(python)

    monkeypatch.setattr(checkpoint, "refusal", refusal)
    monkeypatch.setattr(checkpoint, "layouts", lambda python: {"q4_0": python})
    made = Checkpoint(path="m.gguf", format="gguf", runtime="llama.cpp", scheme=scheme("q4_0"), linears=1, stored_quantized=1)
    monkeypatch.setattr(checkpoint, "described", lambda _: made)
    assert inspect("m.gguf", None, (), {"llama.cpp": "/their/python"}).layouts == {"q4_0": "/their/python"}
    assert inspect("m.gguf", None, (), {"torch": "/their/python"}).layouts == {"q4_0": sys.executable}
    assert asked == ["/their/python", sys.executable]
    assert not inspect("m.gguf", "llama.cpp+cuda", ()).layouts  # on a GPU the CPU's layouts hold no weights


@pytest.mark.parametrize(("place", "said"), [("tensorrt", "unknown runtime"), ("openvino", "does not read")])
def test_a_runtime_that_does_not_fit(tmp_path: Path, place: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        inspect(str(onnx_folder(tmp_path / "m", 4, head=True)), place, ())


def test_another_models_checkpoint(tmp_path: Path) -> None:
    found: Checkpoint = inspect(str(onnx_folder(tmp_path / "m", 4, head=True)), None, ())
    other = Inventory(
        architecture="L", layers=30, hidden=64, vocabulary=256, heads=4, kv_heads=2, head_dim=16, max_context_tokens=None,
        tied_embeddings=True, linears=(), embedding_parameters=0, linear_parameters=0, other_parameters=0, kv_values_per_token=1,
    )  # fmt: skip
    with pytest.raises(BadInput, match="has 2 layers"):
        check_same_model(found, other, "m")


DEVICE = Device(name="cpu", isa=("avx2",), cores=2, threads=2, memory_bytes=1 << 34, fingerprint="f")


def test_checkpoints_of_the_spec_compete_on_every_runtime_that_reads_them(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    pytest.importorskip("openvino")
    mine = str(onnx_folder(tmp_path / "my int4", 4, head=False))
    theirs = str(openvino_folder(tmp_path / "theirs", "i8"))
    inventory = INVENTORY.model_copy(update={"vocabulary": 256})
    found = {c.name: c for c in existing_checkpoints(workload(checkpoints=[mine, theirs]), inventory, DEVICE)}
    assert list(found) == [
        "given-my-int4@onnxruntime", "given-my-int4@onnxruntime-genai", "given-theirs@openvino+f32", "given-theirs@openvino+bf16",
    ]  # fmt: skip
    one = found["given-my-int4@onnxruntime"]
    assert (one.method, one.target, one.checkpoint, one.refused) == ("given", "weights", mine, None)
    assert "bf16" in (found["given-theirs@openvino+bf16"].refused or "")
    only = workload(checkpoints=[mine, theirs], runtimes=["openvino"])
    refused = {c.name: c.refused for c in existing_checkpoints(only, inventory, DEVICE)}
    assert list(refused) == ["given-my-int4@onnxruntime", "given-theirs@openvino+f32", "given-theirs@openvino+bf16"]
    assert refused["given-my-int4@onnxruntime"] == (
        "ONNX, read by onnxruntime, onnxruntime-genai only; runtimes: names openvino: add onnxruntime there"
    )
    assert refused["given-theirs@openvino+f32"] is None


def test_what_no_runtime_asked_for_reads_is_refused_with_its_reason(tmp_path: Path) -> None:
    gguf = str(gguf_file(tmp_path / "m.gguf", {"blk.0.ffn_up.weight": "F16", "token_embd.weight": "F16"}))
    inventory = INVENTORY.model_copy(update={"layers": 1, "vocabulary": 64})
    (found,) = existing_checkpoints(workload(checkpoints=[gguf], runtimes=["onnxruntime"]), inventory, DEVICE)
    assert (found.name, found.runtime, found.checkpoint) == ("given-m@llama.cpp", "llama.cpp", gguf)
    assert found.refused == "GGUF, read by llama.cpp only; runtimes: names onnxruntime: add llama.cpp there"
    theirs = str(openvino_folder(tmp_path / "theirs", "i8"))
    gpu = DEVICE.model_copy(update={"kind": "cuda"})
    inventory = INVENTORY.model_copy(update={"vocabulary": 256})
    (found,) = existing_checkpoints(workload(checkpoints=[theirs]), inventory, gpu)
    assert (found.name, found.refused) == (
        "given-theirs@openvino+f32", "OpenVINO IR, read by openvino only, not on a GPU: set device: cpu",
    )  # fmt: skip


def test_what_no_runtime_here_reads_is_refused_and_the_others_compete(tmp_path: Path) -> None:
    """Engines, formats that are not understood, shards, torn files: each in the list with its reason, and nothing raised."""
    pytest.importorskip("onnxruntime")
    for name in ("engine", "aqlm", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "engine" / "config.json").write_text(json.dumps({"pretrained_config": {}, "build_config": {}}))
    (tmp_path / "engine" / "rank0.engine").write_bytes(b"x")
    (tmp_path / "aqlm" / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": {"quant_method": "aqlm"}}))
    gguf_file(tmp_path / "m-00001-of-00002.gguf", {"blk.0.ffn_up.weight": "F16", "token_embd.weight": "F16"})
    (tmp_path / "m.plan").write_bytes(b"x")
    onnx_folder(tmp_path / "mine", 4, head=False)
    names = ("engine", "m.plan", "aqlm", "m-00001-of-00002.gguf", "empty", "mine")
    asked = workload(checkpoints=[str(tmp_path / name) for name in names], runtimes=["onnxruntime"])
    found = existing_checkpoints(asked, INVENTORY.model_copy(update={"vocabulary": 256}), DEVICE)
    said = {one.name: one.refused for one in found}
    assert list(said) == [
        "given-engine@tensorrt-llm", "given-m.plan@tensorrt-llm", "given-aqlm@torch", "given-m-00001-of-00002@llama.cpp",
        "given-empty@unknown", "given-mine@onnxruntime",
    ]  # fmt: skip
    *reasons, none = said.values()
    words = ("read by TensorRT-LLM only", "TensorRT engine", "'aqlm' says nothing about bits", "gguf-split --merge", "holds no")
    assert none is None
    assert [word in str(reason) for word, reason in zip(words, reasons, strict=True)] == [True] * 5
    assert {one.method for one in found} == {"given"}
    results = sample.complete()
    told = render_markdown([results.model_copy(update={"candidates": (*results.candidates, *found)})])
    assert "given-engine@tensorrt-llm" in told and "read by TensorRT-LLM only" in told


def test_a_checkpoint_of_another_model_or_none_at_all_is_bad_input(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    mine = str(onnx_folder(tmp_path / "m", 4, head=False))
    with pytest.raises(BadInput, match="256 tokens in its vocabulary"):
        existing_checkpoints(workload(checkpoints=[mine]), INVENTORY, DEVICE)
    with pytest.raises(BadInput, match="no such file or folder"):
        existing_checkpoints(workload(checkpoints=[str(tmp_path / "gone")]), INVENTORY, DEVICE)
    (tmp_path / "x").mkdir()
    twice = str(onnx_folder(tmp_path / "x" / "m", 4, head=False))
    inventory = INVENTORY.model_copy(update={"vocabulary": 256})
    with pytest.raises(BadInput, match="different names"):
        existing_checkpoints(workload(checkpoints=[mine, twice]), inventory, DEVICE)
