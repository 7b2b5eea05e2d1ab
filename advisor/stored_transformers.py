"""What a Hugging Face folder stores: `quantization_config`, and which weights lie in the safetensors as low-bit codes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantadvisor.documents import BadInput, Format, Scheme
from quantadvisor.methods.formats.huggingface import AUTOGPTQ, autogptq_settings
from quantadvisor.methods.schemes import scheme

from .stored_words import json_of, named

CODES = {"I8", "U8", "I32", "F8_E4M3", "F8_E5M2", "F4"}
"""safetensors' names of element types that hold codes: bytes, floats of 8 bit, or integers packed into words."""
WEIGHTS = re.compile(r"(?P<module>.+)\.(?:weight|weight_packed|qweight|weight\._data|_weight_qdata)$")
BLOCK_SIZES = {"nf4": 64, "fp4": 64}
"""bitsandbytes' blocks of 4-bit weights."""


def of_transformers(folder: Path) -> dict[str, Any]:
    """From config.json and the headers of the safetensors: 16-bit weights, or those of a `quantization_config`."""
    from quantadvisor.profiling.inventory import inventory_from_config

    config = json_of(folder / "config.json")
    inventory = inventory_from_config(config)
    linears = sum(shape.count for shape in inventory.linears)
    given = config.get("quantization_config") or quanto_config(folder)
    if not given and autogptq_settings(folder):
        what = f"its GPTQ settings lie in {AUTOGPTQ} alone, which no runtime here reads"
        raise BadInput(str(folder), what, "advisor convert FOLDER --format gptq")
    half = str(config.get("dtype") or config.get("torch_dtype")) in ("bfloat16", "float16")
    plain = "bf16" if half else "fp32"
    if isinstance(given, dict):
        coded = coded_modules(folder)
        made = of_quantization_config(given, str(folder), any("lm_head" in name for name in coded))
        name = f"{made.name}-bf16" if half and made.name.startswith("fp8") else made.name  # as the catalogue calls it
        made = made.model_copy(update={"name": name, "compute": plain})
        stored = len(coded) or linears - (made.lm_head is None)
    else:
        made, stored = scheme(plain), linears if half else 0
        plain = "fp32"
    return {
        "scheme": made, "linears": linears, "stored_quantized": stored, "plain": plain,
        "layers": inventory.layers, "vocabulary": inventory.vocabulary,
    }  # fmt: skip


def quanto_config(folder: Path) -> dict[str, Any] | None:
    """What optimum-quanto wrote beside a config that says nothing of it: `quanto_qmap.json`, module -> its types."""
    if not (folder / "quanto_qmap.json").is_file():
        return None
    weights = Counter(str(one.get("weights")) for one in json_of(folder / "quanto_qmap.json").values() if isinstance(one, dict))
    kind = re.fullmatch(r"qint([248])", weights.most_common(1)[0][0]) if weights else None
    return {"quant_method": "optimum-quanto", "bits": int(kind[1]) if kind else None}


def coded_modules(folder: Path) -> set[str]:
    """Names of the modules whose weights the safetensors hold as codes; read from their headers alone."""
    found = set()
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as opened:
                size = int.from_bytes(opened.read(8), "little")
                header = json.loads(opened.read(size)) if size < file.stat().st_size else {}
        except (OSError, ValueError) as error:
            raise BadInput(str(file), f"corrupt or truncated safetensors ({type(error).__name__})", "download it again") from None
        for name, tensor in header.items():
            if name != "__metadata__" and tensor["dtype"] in CODES and (matched := WEIGHTS.match(name)):
                found.add(matched["module"])
    return found


def of_quantization_config(given: Mapping[str, Any], where: str, head_quantized: bool = False) -> Scheme:
    """The scheme of a `quantization_config` of GPTQ, AWQ, bitsandbytes, FP8, MXFP4, torchao, hqq or compressed-tensors."""
    method = str(given.get("quant_method", "unnamed"))
    groups = given.get("config_groups")
    if isinstance(groups, dict) and groups:
        made = of_group(next(iter(groups.values())))
    elif method in ("fp8", "fbgemm_fp8"):
        made = scheme(eight_bit_floats(given, method))
    elif method == "mxfp4":
        made = Scheme(name="mxfp4", weights=Format(number="float", bits=4, granularity="block", group_size=32))
    elif given.get("load_in_4bit"):
        kind = str(given.get("bnb_4bit_quant_type", "fp4"))
        weights = Format(number="codebook", bits=4, granularity="block", group_size=BLOCK_SIZES.get(kind, 64))
        made = Scheme(name=f"{kind}-b{weights.group_size}", weights=weights)
    elif given.get("load_in_8bit"):
        made = scheme("w8a8-outlier").model_copy(update={"lm_head": None, "embeddings": None})
    elif method == "torchao":
        made = of_torchao(json.dumps(given.get("quant_type")))
    elif method == "hqq":
        sizes = (given.get("quant_config") or {}).get("weight_quant_params") or {}
        made = of_integers(sizes.get("nbits"), sizes.get("group_size"), None)
    else:
        made = of_integers(given.get("bits", given.get("w_bit")), given.get("group_size", given.get("q_group_size")), None)
    if made is None:
        what = f"quantization_config of {method!r} says nothing about bits that is understood here"
        raise BadInput(where, what, "understood are GPTQ, AWQ, bitsandbytes, FP8, MXFP4, torchao, hqq and compressed-tensors")
    return made.model_copy(update={"lm_head": made.weights, "embeddings": None}) if head_quantized else made


def of_integers(bits: object, group: object, activations: str | None) -> Scheme | None:
    if not isinstance(bits, int) or not 2 <= bits <= 8:
        return None
    return named(Counter({bits: 1}), group if isinstance(group, int) and group > 0 else None, activations, False, False)


def of_group(group: Mapping[str, Any]) -> Scheme | None:
    """A group of compressed-tensors: {weights: {num_bits, type, strategy, group_size}, input_activations: {…} or null}."""
    weights, inputs = group.get("weights") or {}, group.get("input_activations")
    bits, size, strategy = weights.get("num_bits"), weights.get("group_size"), weights.get("strategy")
    if weights.get("type") == "float":
        if bits == 8 and inputs:
            kind = "-block" if strategy == "block" else "-static" if not inputs.get("dynamic") else ""
            return scheme("fp8" + (kind or ("-tensor" if inputs.get("strategy") == "tensor" else "")))
        if not isinstance(bits, int):
            return None
        granularity = "block" if size else "channel"
        made = Format(number="float", bits=bits, granularity=granularity, group_size=size or None)
        return Scheme(name=f"wfp{bits}" + (f"-b{size}" if size else ""), weights=made)
    return of_integers(bits, size, ("token" if inputs.get("dynamic") else "static") if inputs else None)


def eight_bit_floats(given: Mapping[str, Any], method: str) -> str:
    """The scheme's name: blocks of 128 x 128, a scale per row (FBGEMM), or one for the tensor."""
    if given.get("weight_block_size"):
        return "fp8-block"
    if method == "fbgemm_fp8":
        return "fp8"
    return "fp8-static" if given.get("activation_scheme") == "static" else "fp8-tensor"


def of_torchao(described: str) -> Scheme | None:
    """From the name of torchao's config: Int4WeightOnly, Int8WeightOnly, Int8DynamicActivationInt8Weight, Float8…"""
    text = described.replace("_", "").lower()
    if "float8" in text:
        return scheme("fp8" if "dynamicactivation" in text else "wfp8")
    if "int8dynamicactivationint8" in text:
        return of_integers(8, None, "token")
    if not (found := re.search(r"int([48])weightonly", text)):
        return None
    size = re.search(r'"groupsize": (\d+)', text)
    return of_integers(int(found[1]), int(size[1]) if size else None, None)
