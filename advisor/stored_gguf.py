"""What a GGUF file stores, read from its header: which type each linear has. Of a folder, `model.gguf` or its only one."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from quantadvisor.documents import BadInput, Format, Scheme
from quantadvisor.methods.schemes import scheme

from .gguf_source import FLOAT_TYPES, open_gguf

SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
EMBEDDINGS, HEAD = "token_embd.weight", "output.weight"
CODEBOOKS = ("IQ", "MXFP", "NVFP", "TQ")
"""Beginnings of types whose codes stand for values of a table; all others are integers times a scale."""


def gguf_in(path: Path) -> Path | None:
    """The GGUF file that `path` is or holds; None where there is none, or several without one called model.gguf."""
    if path.is_file():
        return path if path.suffix.lower() == ".gguf" else None
    found = sorted(path.glob("*.gguf"))
    return path / "model.gguf" if path / "model.gguf" in found else found[0] if len(found) == 1 else None


def of_gguf(path: Path) -> dict[str, Any]:
    if SHARD.search(path.name):
        raise BadInput(str(path), "is one of several shards", "merge them: llama-gguf-split --merge FIRST-SHARD model.gguf")
    try:
        reader = open_gguf(path)
    except ImportError:
        raise BadInput(str(path), "gguf is not installed", "pip install gguf") from None
    tensors = {tensor.name: tensor for tensor in reader.tensors if len(tensor.shape) > 1 and tensor.name.endswith(".weight")}
    types = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    head = types.get(HEAD) or types.get(EMBEDDINGS)
    inside = {name: kind for name, kind in types.items() if name not in (EMBEDDINGS, HEAD)}
    if not inside or head is None:
        raise BadInput(str(path), "holds no weights of a decoder", "name the GGUF file of a language model")
    stored = [*inside.values(), head]
    architecture = reader.get_field("general.architecture")
    blocks = reader.get_field(f"{architecture.contents()}.block_count") if architecture else None
    return {
        "scheme": of_types(Counter(inside.values()), head), "linears": len(stored), "plain": "bf16",
        "stored_quantized": sum(kind not in FLOAT_TYPES for kind in stored),
        "layers": int(blocks.contents()) if blocks else None,
        "vocabulary": int(tensors[EMBEDDINGS].shape[1]) if EMBEDDINGS in tensors else None,
    }  # fmt: skip


def of_types(inside: Counter[str], head: str) -> Scheme:
    """The scheme named after the most frequent quantized type of the layers; `head`: that of the output layer."""
    low = [kind for kind, _ in inside.most_common() if kind not in FLOAT_TYPES]
    if not low:
        return scheme("fp32" if set(inside) <= {"F32", "F64"} else "bf16")
    made = Scheme(name=low[0].lower(), compute="bf16", weights=format_of(low[0]))
    return made.model_copy(update={"lm_head": format_of(head), "embeddings": format_of(head)})


def format_of(kind: str) -> Format | None:
    """A ggml type as a format, its scales counted into the bits; None for a float."""
    import gguf

    if kind in FLOAT_TYPES:
        return None
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    number = "codebook" if kind.startswith(CODEBOOKS) else "int"
    symmetric = not kind.endswith("_1") and kind not in ("Q2_K", "Q4_K", "Q5_K")
    return Format(number=number, bits=8 * size / block, granularity="block", group_size=block, symmetric=symmetric)
