"""Real checkpoints with one known cause each for being no faster: a random Llama of SmolLM2's widths, built and run here.

Sizes are such that the planted cause outweighs all others by far, so that a busy machine does not hide it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantadvisor.methods.formats import onnx as onnx_format
from quantadvisor.methods.formats.onnx_base import Rewrite, linears
from quantadvisor.methods.formats.onnx_weights import channel_weight, replace
from quantadvisor.methods.registry import method
from quantadvisor.methods.schemes import scheme

from ..methods.conftest import write_llama

TOKENS = np.random.default_rng(1).integers(3, 250, (2, 32)).astype(np.int64)
WIDTHS = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 8192, "max_position_embeddings": 8192,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "small": WIDTHS,
    "wide head": WIDTHS | {"num_hidden_layers": 1, "vocab_size": 49152},
    "flat": {"intermediate_size": 8192, "num_hidden_layers": 4, "max_position_embeddings": 8192},
    "blocks": WIDTHS | {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2},
}
"""Linears are most of `small`, lm_head is most of `wide head`; `flat` writes 128 values for each that it
reads, so that rounding them outweighs the products; 128 divides what `blocks` has."""
SHORT, BATCH, PROMPT, LONG = (32, 48, 1), (16, 48, 8), (256, 2, 1), (2048, 2000, 16)
"""(prompt tokens, output tokens, concurrency)"""

Build = Callable[[Path, Path, Path], None]
"""(model folder, its fp32 export for the runtime, folder to write)"""


@dataclass(frozen=True)
class Planted:
    cause: str
    said: str
    """What the change must speak of."""
    build: Build
    traffic: tuple[int, int, int]
    model: str = "small"
    place: str = "onnxruntime"
    package: str = "onnxruntime_genai"
    seen: str = ""
    """What the evidence must name."""
    absent: Callable[[], str | None] = lambda: None
    """Why the cause cannot be planted on this CPU."""


def make(name: str, scheme_name: str, runtime: str = "onnxruntime", **more: Any) -> Build:
    def build(model: Path, base: Path, out: Path) -> None:
        method(name).apply(model, scheme(scheme_name), runtime, TOKENS, out, base=base, **more)

    return build


def cached(name: str, scheme_name: str) -> Build:
    """The method's weights with an INT8 cache on top."""

    def build(model: Path, base: Path, out: Path) -> None:
        make(name, scheme_name)(model, base, out.with_name("weights"))
        make("kv_int8", f"{scheme_name}-kv8")(model, out.with_name("weights"), out)

    return build


def left_out(wanted: Callable[[str], bool]) -> Build:
    """INT4 in groups of 64 but for the linears that are `wanted` left in fp32."""

    def build(model: Path, base: Path, out: Path) -> None:
        plan = {name: (8 if name == "lm_head" else 4, 64, False) for name in onnx_format.linear_names(base) if not wanted(name)}
        onnx_format.quantize_weights(base, out, plan)

    return build


def edited(change: Callable[[Rewrite, Any], None]) -> Build:
    """INT4 in groups of 64, then a change to every MatMulNBits that leaves its numbers as they are."""

    def build(model: Path, base: Path, out: Path) -> None:
        make("rtn", "w4-g64")(model, base, out.with_name("weights"))
        with Rewrite(out.with_name("weights"), out) as edit:
            for node in edit.nodes:
                if node.op_type == "MatMulNBits":
                    change(edit, node)

    return build


def in_order(edit: Rewrite, node: Any) -> None:
    """The order of the inputs, spelt out: as exporters of act-order write it. Of 8 bits ONNX Runtime computes no such product."""
    sizes = {attribute.name: attribute.i for attribute in node.attribute}
    if sizes["bits"] != 4:
        return
    node.input.extend([""] * (4 - len(node.input)))
    node.input.append(edit.add(f"{node.name}_g_idx", np.arange(sizes["K"], dtype=np.int32) // sizes["block_size"]))


def float_zeros(edit: Rewrite, node: Any) -> None:
    if len(node.input) < 4:  # symmetric
        return
    sizes = {attribute.name: attribute.i for attribute in node.attribute}
    blocks = -(-sizes["K"] // sizes["block_size"])
    zeros = np.asarray(edit.tensor(node.input[3])).reshape(sizes["N"], -1)
    zeros = np.stack([zeros & 15, zeros >> 4], -1).reshape(sizes["N"], -1)[:, :blocks]
    edit.drop(node.input[3])
    node.input[3] = edit.add(f"{node.name}_zeros", zeros.reshape(-1).astype(np.float32))


def overridable(edit: Rewrite, node: Any) -> None:
    """The weight as an input of the graph with a default, as exporters write it for old readers: a caller might replace it. Of
    attention's linears, whose calls then take many times what a whole layer does."""
    import onnx

    if "/attn/" not in node.name:
        return
    codes = np.asarray(edit.tensor(node.input[1]))
    edit.model.graph.input.append(onnx.helper.make_tensor_value_info(node.input[1], onnx.TensorProto.UINT8, codes.shape))


def static_qdq(model: Path, base: Path, out: Path) -> None:
    """Every linear between QuantizeLinear and DequantizeLinear with fixed scales, as quantize_static writes it."""
    import onnx

    make = onnx.helper.make_node
    with Rewrite(base, out) as edit:
        edit.add("step", np.array(0.1, np.float32))
        edit.add("middle", np.array(128, np.uint8))
        for name, node in linears(edit.model).items():
            if name == "lm_head":
                continue
            source, target = node.input[0], node.output[0]
            weight, scales, zeros = channel_weight(edit, node)
            parts = {key: f"{name}_{key}" for key in ("x_codes", "x", "w", "y", "y_codes")}
            rounded = [
                make("QuantizeLinear", [source, "step", "middle"], [parts["x_codes"]], name=parts["x_codes"]),
                make("DequantizeLinear", [parts["x_codes"], "step", "middle"], [parts["x"]], name=parts["x"]),
                make("DequantizeLinear", [weight, scales, zeros], [parts["w"]], name=parts["w"], axis=1),
                make("MatMul", [parts["x"], parts["w"]], [parts["y"]], name=node.name),
                make("QuantizeLinear", [parts["y"], "step", "middle"], [parts["y_codes"]], name=parts["y_codes"]),
                make("DequantizeLinear", [parts["y_codes"], "step", "middle"], [target], name=parts["y_codes"] + "_float"),
            ]
            replace(edit, [node], rounded)


def blocks_of_fp8(model: Path, base: Path, out: Path) -> None:
    """Weights in E4M3, one scale per block of 128 x 128, as DeepSeek-V3's checkpoints: transformers expands them on a CPU."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, out)
    tensors = load_file(model / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        n, k = tensors[name].shape
        tiles = tensors[name].reshape(n // 128, 128, k // 128, 128)
        scale = tiles.abs().amax((1, 3)) / 448
        tensors[name] = (tiles / scale[:, None, :, None]).reshape(n, k).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    described = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": described}))


def bitsandbytes_nf4(model: Path, base: Path, out: Path) -> None:
    import shutil

    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    made = AutoModelForCausalLM.from_pretrained(model, quantization_config=settings, device_map="cpu")
    made.save_pretrained(out)
    for path in model.glob("tokenizer*"):
        shutil.copyfile(path, out / path.name)


def fused_nf4() -> str | None:
    from bitsandbytes.functional import has_avx512bf16

    return "bitsandbytes multiplies NF4 as it is on a CPU with AVX512-BF16: nothing is expanded" if has_avx512bf16() else None


PLANTED = {
    "ONNX Runtime INT4 without accuracy_level": Planted(
        "fallback_or_slow_kernel", "accuracy_level 4", make("rtn", "w4-g64", accuracy_level=0), SHORT
    ),
    "ONNX Runtime INT4 with the order of its inputs": Planted(
        "fallback_or_slow_kernel", "without g_idx (act-order)", edited(in_order), SHORT
    ),
    "ONNX Runtime INT4 with zero points in float": Planted(
        "fallback_or_slow_kernel", "without zero points in float", edited(float_zeros), SHORT
    ),
    "ONNX Runtime INT4 with its weights among the inputs": Planted(
        "fallback_or_slow_kernel", "without the weights among the graph's inputs", edited(overridable), SHORT
    ),
    "ONNX Runtime INT8 without accuracy_level": Planted(
        "fallback_or_slow_kernel", "accuracy_level 4", make("rtn", "w8-g64", accuracy_level=0), SHORT
    ),
    "MatMulNBits at large M": Planted("wrong_phase", "w8a8", make("rtn", "w8-g64", accuracy_level=0), (512, 1, 1)),
    "static QDQ in DequantizeLinear": Planted(
        "activation_quantization", "float", static_qdq, PROMPT, "flat", seen="QuantizeLinear and DequantizeLinear take"
    ),
    "activations rounded by operators of their own": Planted(
        "activation_quantization", "float", make("dynamic_int8", "w7a8"), PROMPT, "flat"
    ),
    "lm_head left in fp32": Planted(
        "layers_left_unquantized", "the 1 linear that", left_out(lambda name: name == "lm_head"), SHORT, "wide head"
    ),
    "the MLPs left in fp32": Planted("layers_left_unquantized", "the 18 linears", left_out(lambda name: ".mlp." in name), SHORT),
    "weights quantized where the cache binds": Planted("wrong_tensor", "KV cache", make("rtn", "w4-g64"), LONG),
    "cache quantized where the weights bind": Planted("wrong_tensor", "quantize the weights", make("kv_int8", "fp32-kv8"), SHORT),
    "an INT8 cache in prefill's attention": Planted("attention", "leave the cache", cached("rtn", "w8-g64"), (1024, 2, 1)),
    "FP8 that is expanded at load": Planted(
        "fallback_or_slow_kernel", "no quantized kernel ran", blocks_of_fp8, SHORT, "blocks", "torch", "accelerate"
    ),
    "bitsandbytes NF4 expanded for more than one row": Planted(
        "fallback_or_slow_kernel", "fast at these sizes", bitsandbytes_nf4, BATCH, place="torch", package="bitsandbytes",
        absent=fused_nf4,
    ),
    "compressed-tensors expanded at load": Planted(
        "fallback_or_slow_kernel", "no quantized kernel ran", make("gptq", "w4-g64-bf16", "vllm"), SHORT,
        place="torch", package="compressed_tensors",
    ),
    "llama.cpp without its repacked kernels": Planted(
        "fallback_or_slow_kernel", "without the option plain", make("gguf", "q4_0", "llama.cpp"), SHORT,
        place="llama.cpp+plain", package="llama_cpp",
    ),
    "llama.cpp without flash attention": Planted(
        "attention", "llama.cpp+fa", make("gguf", "q8_0", "llama.cpp"), (4096, 500, 1), place="llama.cpp+plain",
        package="llama_cpp",
    ),
}  # fmt: skip


def write_model(name: str, folder: Path) -> Path:
    return write_llama(folder, **MODELS[name])
