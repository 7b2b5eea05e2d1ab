"""What a folder holds, read from its graph or its config without running it: formats, linears, and how they are stored.

An ONNX folder (`model.onnx`), an OpenVINO IR folder (`openvino_model.xml`) or a Hugging Face folder (`config.json` with
safetensors). What is stored is not what runs: that is measured.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from quantadvisor.documents import BadInput, Candidate, Checkpoint, Device, Format, Inventory, Scheme, Target, Workload
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.environments import interpreter_of, refusal
from quantadvisor.profiling.runtimes.registry import RUNTIMES

from .candidates import asked_runtimes

RUNTIMES_OF = {
    "onnx": ("onnxruntime", "onnxruntime-genai"),
    "openvino": ("openvino",),
    "transformers": ("torch", "vllm", "triton"),
}
PLACES = {
    "onnx": ("onnxruntime", "onnxruntime-genai"),
    "openvino": ("openvino+f32", "openvino+bf16"),
    "transformers": ("torch", "vllm"),
}
"""Runtimes with options on which a checkpoint of the format competes."""
LOW_BIT = {"u2": 2, "i4": 4, "u4": 4, "nf4": 4, "i8": 8, "u8": 8, "f8e4m3": 8, "f8e5m2": 8}
THROUGH = ("Convert", "Subtract", "Multiply", "Reshape", "FakeQuantize", "Transpose", "FakeConvert")
"""What may stand between an OpenVINO weight and its MatMul."""
MIXED_SHARE = 0.1
"""Linears in the rarer of 4 and 8 bit, from which on a checkpoint is called mixed."""
INTEGER_LINEARS = ("MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul", "DynamicQuantizeMatMul")
GIVE = "give an ONNX, OpenVINO or Hugging Face folder, such as DIR/artifact of advisor run"


def inspect(path: str, place: str | None, isa: tuple[str, ...]) -> Checkpoint:
    """The checkpoint as its files describe it, on the runtime `name+option` (None: the format's first)."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise BadInput(path, "is not a folder" if folder.exists() else "no such folder", GIVE)
    if (folder / "model.onnx").is_file():
        kind, described = "onnx", of_onnx(folder)
    elif (folder / "openvino_model.xml").is_file():
        kind, described = "openvino", of_openvino(folder)
    elif (folder / "config.json").is_file():
        kind, described = "transformers", of_transformers(folder)
    else:
        raise BadInput(path, "holds no model.onnx, openvino_model.xml or config.json", GIVE)
    name, options = runtime_for(kind, place, path)
    refused = refusal(name, interpreter_of(name), str(folder), options, isa)
    if refused:
        raise BadInput(path, f"cannot run on {name}: {refused}", "see advisor runtimes")
    cache = "kvu8" in options
    options = tuple(option for option in options if option not in ("kvu8", "kvf16"))  # the session gets them from the scheme
    if cache:
        described["scheme"] = with_cache(described["scheme"])
    return Checkpoint(path=str(folder), format=kind, runtime=name, options=options, **described)


def existing_checkpoints(workload: Workload, inventory: Inventory, device: Device) -> tuple[Candidate, ...]:
    """`checkpoints:` of the spec as candidates of method `given`, on every runtime asked for that reads their format."""
    found: list[Candidate] = []
    asked = asked_runtimes(workload)
    for path in workload.checkpoints:
        checkpoint = inspect(path, None, device.isa)
        check_same_model(checkpoint, inventory, workload.model)
        found += [
            given(checkpoint, place, device.isa, asked[name])
            for place in PLACES[checkpoint.format]
            if (name := place.split("+")[0]) in asked
        ]
    names = [candidate.name for candidate in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadInput("checkpoints", f"two folders would both be called {twice}", "give their folders different names")
    return tuple(found)


def given(checkpoint: Checkpoint, place: str, isa: tuple[str, ...], python: str) -> Candidate:
    made = checkpoint.scheme
    name, *options = place.split("+")
    cache_only = made.quantizes_cache and made.weights is None
    target: Target = "activations" if made.activations else "weights" if made.weights else "kv_cache" if cache_only else "none"
    called = re.sub(r"[^\w.-]+", "-", Path(checkpoint.path).resolve().name)
    return Candidate(
        name=f"given-{called}@{place}", method="given", scheme=made, runtime=name, options=tuple(options), target=target,
        checkpoint=str(Path(checkpoint.path).resolve()),
        refused=refusal(name, python, checkpoint.path, tuple(options), isa),
    )  # fmt: skip


def runtime_for(kind: str, place: str | None, path: str) -> tuple[str, tuple[str, ...]]:
    """(name, options); BadInput where the runtime is unknown or reads another format."""
    able = RUNTIMES_OF[kind]
    name, *options = (place or able[0]).split("+")
    if name not in RUNTIMES:
        raise BadInput("--runtime", f"unknown runtime {name!r}", f"known here: {', '.join(RUNTIMES)}")
    if name not in able:
        raise BadInput("--runtime", f"{name} does not read {path}, a folder in {kind} format", f"give {' or '.join(able)}")
    if name == "openvino" and not options:
        options = ["f32"]
    return name, tuple(options)


def with_cache(made: Scheme) -> Scheme:
    """The scheme with an INT8 cache: an option of OpenVINO, not of its artifact."""
    cache = scheme("fp32-kv8")
    return made.model_copy(update={"name": f"{made.name}-kv8", "keys": cache.keys, "values": cache.values})


def check_quantized(checkpoint: Checkpoint) -> None:
    made = checkpoint.scheme
    if made.compute == "fp32" and not (made.weights or made.activations or made.quantizes_cache):
        raise BadInput(checkpoint.path, "is not quantized, so nothing is to explain", "name the quantized checkpoint")


def check_same_model(checkpoint: Checkpoint, inventory: Inventory, model: str) -> None:
    """A checkpoint of another model cannot be set against this one."""
    for what, found, wanted in (
        ("layers", checkpoint.layers, inventory.layers),
        ("tokens in its vocabulary", checkpoint.vocabulary, inventory.vocabulary),
    ):
        if found is not None and found != wanted:
            text = f"has {found} {what}, the workload's model {model} has {wanted}"
            raise BadInput(checkpoint.path, text, "name the model that it was made from in the workload")


def named(bits: Counter[int], group: int | None, activations: str | None, cache: bool, head_quantized: bool) -> Scheme:
    """The scheme in this project's words. `bits`: linears by bits. `activations`: None, "token", "tensor" or "static"."""
    mixed = min(bits[4], bits[8]) > MIXED_SHARE * sum(bits.values())
    tail = "-kv8" if cache else ""
    if activations is not None:
        made = scheme("w8a8" + {"token": "", "tensor": "-tensor", "static": "-static"}[activations] + tail)
    elif not bits:
        made = scheme("fp32" + tail)
    elif group:
        made = scheme(f"w{'4w8' if mixed else most(bits)}-g{group}{tail}")
    else:
        weights = Format(number="int", bits=most(bits), granularity="channel")
        named_so = {"name": f"w{most(bits)}{tail}", "weights": weights, "lm_head": weights}
        made = scheme("fp32" + tail).model_copy(update=named_so)
    return made if head_quantized or made.weights is None else made.model_copy(update={"lm_head": None, "embeddings": None})


def of_onnx(folder: Path) -> dict[str, Any]:
    """From the graph of `model.onnx`, without its tensors."""
    try:
        import onnx

        graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    except ImportError:
        raise BadInput(str(folder), "onnx is not installed", "pip install 'quantadvisor[cpu]'") from None
    except Exception as error:  # protobuf's DecodeError, or onnx's own
        raise BadInput(str(folder / "model.onnx"), f"is not an ONNX graph ({type(error).__name__})", GIVE) from None
    constant = {tensor.name for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}

    def of_weights(name: str) -> bool:
        """Does an input come from a stored tensor, dequantized or turned on its way?"""
        while name not in constant and (node := makers.get(name)) is not None:
            if node.op_type not in ("DequantizeLinear", "Transpose", "Cast", "Identity"):
                return False
            name = node.input[0]
        return name in constant

    linears, quantized, head_quantized = 0, 0, False
    bits: Counter[int] = Counter()
    groups: Counter[int] = Counter()
    levels: set[int] = set()
    kinds: Counter[str] = Counter()
    for node in graph.node:
        numbers = {attribute.name: attribute.i for attribute in node.attribute}
        low = False
        if node.op_type == "MatMulNBits":
            low = True
            bits[numbers["bits"]] += 1
            groups[numbers["block_size"]] += 1
            levels.add(numbers.get("accuracy_level", 0))
        elif node.op_type in INTEGER_LINEARS:
            low = True
            kinds["token" if node.op_type == "MatMulIntegerToFloat" else "tensor"] += 1
        elif node.op_type in ("MatMul", "Gemm", "FusedMatMul") and of_weights(node.input[1]):
            maker = makers.get(node.input[1])
            low = maker is not None and maker.op_type == "DequantizeLinear"
            if low and (source := makers.get(node.input[0])) is not None and source.op_type == "DequantizeLinear":
                kinds["static"] += 1
            elif low:
                bits[8] += 1
        else:
            continue
        linears, quantized = linears + 1, quantized + low
        head_quantized |= low and "lm_head" in node.name
    cache = [value for value in graph.input if value.name.startswith("past_key_values")]
    eight = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    logits = next((value for value in graph.output if value.name == "logits"), None)
    wide = logits.type.tensor_type.shape.dim[-1].dim_value if logits else 0
    kind = kinds.most_common(1)[0][0] if kinds else None
    made = named(bits, most(groups), kind, any(value.type.tensor_type.elem_type in eight for value in cache), head_quantized)
    return {
        "scheme": made, "linears": linears, "stored_quantized": quantized, "accuracy_levels": tuple(sorted(levels)),
        "layers": len(cache) // 2 or None, "vocabulary": wide or None,
    }  # fmt: skip


def of_openvino(folder: Path) -> dict[str, Any]:
    """From `openvino_model.xml`: each MatMul's second input, followed back to its constant."""
    try:
        root = ElementTree.parse(folder / "openvino_model.xml").getroot()
        layers = {layer.attrib["id"]: layer for layer in root.iter("layer")}
        into = {(edge.attrib["to-layer"], edge.attrib["to-port"]): edge.attrib["from-layer"] for edge in root.iter("edge")}
    except (ElementTree.ParseError, KeyError) as error:
        raise BadInput(str(folder / "openvino_model.xml"), f"is not an OpenVINO graph ({error})", GIVE) from None
    linears, quantized, head_quantized = 0, 0, False
    bits: Counter[int] = Counter()
    groups: Counter[int] = Counter()
    rounded = 0
    for layer in layers.values():
        if layer.attrib.get("type") != "MatMul":
            continue
        weight = follow(layers, into, into.get((layer.attrib["id"], "1")))
        if weight is None:
            continue
        data = weight.find("data")
        shape = [int(size) for size in data.attrib.get("shape", "").split(",") if size.strip()] if data is not None else []
        low = LOW_BIT.get(data.attrib.get("element_type", ""), 0) if data is not None else 0
        linears, quantized = linears + 1, quantized + bool(low)
        if low:
            bits[low] += 1
            groups[shape[-1] if len(shape) == 3 else 0] += 1
            head_quantized |= "lm_head" in layer.attrib.get("name", "")
            source = layers.get(into.get((layer.attrib["id"], "0"), ""))
            rounded += source is not None and source.attrib.get("type") == "FakeQuantize"
    states = sum(layer.attrib.get("type") == "ReadValue" for layer in layers.values())
    made = named(bits, most(groups), "static" if rounded > linears // 2 else None, False, head_quantized)
    config = json_of(folder / "config.json")
    return {
        "scheme": made, "linears": linears, "stored_quantized": quantized,
        "layers": states // 2 or None, "vocabulary": config.get("vocab_size"),
    }  # fmt: skip


def follow(layers: Mapping[str, Any], into: Mapping[tuple[str, str], str], name: str | None) -> Any | None:
    """The constant behind an input, or None where the input is computed."""
    while name is not None:
        layer = layers[name]
        if layer.attrib.get("type") == "Const":
            return layer
        if layer.attrib.get("type") not in THROUGH:
            return None
        name = into.get((name, "0"))
    return None


def of_transformers(folder: Path) -> dict[str, Any]:
    """From config.json: bfloat16 weights, or a `quantization_config` of compressed-tensors, GPTQ, AWQ or bitsandbytes."""
    from quantadvisor.profiling.inventory import inventory_from_config

    config = json_of(folder / "config.json")
    inventory = inventory_from_config(config)
    linears = sum(shape.count for shape in inventory.linears)
    given = config.get("quantization_config")
    if isinstance(given, dict):
        made = of_quantization_config(given, str(folder))
        stored = linears if made.lm_head is not None else linears - 1
    else:
        half = str(config.get("dtype") or config.get("torch_dtype")) == "bfloat16"
        made, stored = scheme("bf16" if half else "fp32"), linears if half else 0
    return {
        "scheme": made, "linears": linears, "stored_quantized": stored,
        "layers": inventory.layers, "vocabulary": inventory.vocabulary,
    }  # fmt: skip


def of_quantization_config(given: Mapping[str, Any], where: str) -> Scheme:
    """Bits and groups of a `quantization_config`."""
    bits, group = given.get("bits"), given.get("group_size")
    activations = None
    if given.get("load_in_4bit") or given.get("load_in_8bit"):
        bits, group = (4, 64) if given.get("load_in_4bit") else (8, None)
    groups = given.get("config_groups")
    if isinstance(groups, dict) and groups:
        first = next(iter(groups.values()))
        weights = first.get("weights") or {}
        bits, group = weights.get("num_bits"), weights.get("group_size")
        if first.get("input_activations"):
            activations = "token" if first["input_activations"].get("dynamic") else "static"
    if not isinstance(bits, int) or not 2 <= bits <= 8:
        method = given.get("quant_method", "unnamed")
        raise BadInput(where, f"quantization_config of {method!r} says nothing about bits that is understood here")
    return named(Counter({bits: 1}), group if isinstance(group, int) and group > 0 else None, activations, False, False)


def json_of(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadInput(str(path), f"not JSON ({error})", "download it again") from None
    return found if isinstance(found, dict) else {}


def most(counts: Counter[int]) -> int:
    """The most frequent value; 0 where there is none."""
    return counts.most_common(1)[0][0] if counts else 0
