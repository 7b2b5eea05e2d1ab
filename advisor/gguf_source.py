"""A GGUF file made a Hugging Face folder: fp32 safetensors, config, tokenizer.

Names, shapes and dequantization are those of transformers (`load_gguf_checkpoint`, which `from_pretrained` calls too);
calling it here, on a model of no weights, halves the time. The header is checked first, since the parsers trust it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quantadvisor.documents import BadInput

MAGIC = b"GGUF"
VERSIONS = (2, 3)
FLOAT_TYPES = {"F64", "F32", "F16", "BF16"}
CONTROL_TOKENS = (3, 4)
"""gguf.TokenType: CONTROL and USER_DEFINED are never split."""

DIGITS_APART = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
"""`tokenizer.ggml.pre` whose pre-tokenizer is GPT-2's with every digit by itself (llama.cpp, src/llama-vocab.cpp)."""

BROKEN = (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, OSError, struct.error)
"""What the parser raises on a corrupt file, depending on where it is corrupt."""


def open_gguf(path: Path) -> Any:
    """A `gguf.GGUFReader`, or BadInput that says what is wrong with the file."""
    mend = "download it again"
    try:
        with path.open("rb") as file:
            head = file.read(24)
    except OSError as error:
        raise BadInput(str(path), (error.strerror or "cannot be read").lower(), "name a readable GGUF file") from None
    if len(head) < 24:
        raise BadInput(str(path), f"truncated GGUF: {len(head)} bytes", mend)
    magic, version, tensors, fields = struct.unpack("<4sIQQ", head)
    if magic != MAGIC:
        raise BadInput(str(path), f"not a GGUF file: it starts with {magic!r}, not {MAGIC!r}", mend)
    if version not in VERSIONS:
        raise BadInput(str(path), f"GGUF version {version}, readable are 2 and 3", "convert it with a current llama.cpp")
    size = path.stat().st_size
    if tensors * 32 + fields * 12 > size:
        raise BadInput(str(path), f"corrupt GGUF: {tensors} tensors and {fields} fields in {size:,} bytes", mend)
    import gguf

    try:
        with _no_collector():
            return gguf.GGUFReader(path)
    except BROKEN as error:
        raise BadInput(str(path), f"corrupt or truncated GGUF ({_short(error)})", mend) from None


def tensor_types(reader: Any) -> Counter[str]:
    """How many tensors of more than one dimension are stored in which type."""
    return Counter(tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1)


def quantized_types(reader: Any) -> str | None:
    """`Q4_1 (GGUF: 210 x Q4_1, 1 x Q8_0)`, the most frequent first, or None for a float file."""
    types = tensor_types(reader)
    low = [name for name, _ in types.most_common() if name not in FLOAT_TYPES]
    return f"{low[0]} (GGUF: {', '.join(f'{n} x {name}' for name, n in types.most_common())})" if low else None


def load_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Any], Any, dict[str, Any]]:
    """(tensors by Hugging Face name, config.json, tokenizers.Tokenizer, tokenizer_config.json)."""
    reader = open_gguf(path)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    try:
        with _no_collector(), _no_progress():
            parsed = load_gguf_checkpoint(str(path))
            _refuse_too_deep(path, parsed["config"], len(reader.tensors))
            config = AutoConfig.for_model(**parsed["config"])
            with torch.device("meta"):
                shell = AutoModelForCausalLM.from_config(config)
            tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=shell)["tensors"]
        _refuse_incomplete(path, shell, tensors, bool(config.tie_word_embeddings))
        pre, adds_bos = _field(reader, "tokenizer.ggml.pre"), _field(reader, "tokenizer.ggml.add_bos_token")
        tokenizer = _tokenizer(parsed, pre, adds_bos)
    except BadInput:
        raise
    except Exception as error:  # whatever a loader of somebody else's raises on a corrupt file
        what = f"cannot be loaded as a causal language model ({_short(error)})"
        raise BadInput(str(path), what, "use a GGUF of an architecture that transformers reads") from None
    described = config.to_dict() | {"architectures": [type(shell).__name__], "dtype": "float32"}
    return tensors, described, tokenizer, _tokenizer_config(parsed)


def write_folder(
    folder: Path, tensors: Mapping[str, Any], config: Mapping[str, Any], tokenizer: Any, described: Mapping[str, Any]
) -> None:
    """model.safetensors, config.json, generation_config.json and the tokenizer files."""
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    ends = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config.get(key) is not None}
    for name, content in (("config", config), ("generation_config", ends), ("tokenizer_config", described)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))


def _refuse_too_deep(path: Path, config: Mapping[str, Any], tensors: int) -> None:
    """A corrupt count would build layers without end."""
    layers = config.get("num_hidden_layers")
    if not isinstance(layers, int) or not 0 < layers <= tensors:
        raise BadInput(str(path), f"corrupt GGUF: {layers} layers of {tensors} tensors", "download it again")


def _refuse_incomplete(path: Path, shell: Any, tensors: Mapping[str, Any], tied: bool) -> None:
    """A tensor that is missing would be random in the loaded model, and nobody would be told."""
    for name, wanted in shell.state_dict().items():
        if name not in tensors:
            if tied and name == "lm_head.weight":
                continue
            raise BadInput(str(path), f"tensor {name} is missing", "download it again")
        if tuple(tensors[name].shape) != tuple(wanted.shape):
            found = f"{tuple(tensors[name].shape)} instead of {tuple(wanted.shape)}"
            raise BadInput(str(path), f"tensor {name} has the shape {found}", "download it again")
        if not bool(tensors[name].isfinite().all()):
            raise BadInput(str(path), f"tensor {name} holds NaN or infinity", "download it again")


def _tokenizer(parsed: Mapping[str, Any], pre: str | None, adds_bos: bool | None) -> Any:
    """transformers' conversion, except where it would split digits, add a BOS or end a turn wrongly: byte-level BPE."""
    described = parsed["tokenizer"]
    if described.get("tokenizer_type") == "gpt2" and (pre in DIGITS_APART or pre in ("gpt-2", "default", None)):
        return _byte_level(described, digits=pre in DIGITS_APART, adds_bos=bool(adds_bos))
    from transformers.integrations.ggml import convert_gguf_tokenizer

    return convert_gguf_tokenizer(parsed["config"]["model_type"], described)[0]


def _byte_level(described: Mapping[str, Any], digits: bool, adds_bos: bool) -> Any:
    """GPT-2's byte-level BPE; with `digits`, every digit is a token of its own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    tokens = list(described["tokens"])
    merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in described["merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    kinds = described.get("token_type") or []
    whole = [token for token, kind in zip(tokens, kinds, strict=False) if kind in CONTROL_TOKENS]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in whole])
    split = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if adds_bos and (bos := described.get("bos_token_id")) is not None:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{tokens[bos]} $A", special_tokens=[(tokens[bos], bos)])
    return tokenizer


def _tokenizer_config(parsed: Mapping[str, Any]) -> dict[str, Any]:
    tokens, ids = parsed["tokenizer"].get("tokens", []), parsed["tokenizer"]
    described: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unk"), ("pad", "pad")):
        number = ids.get(f"{theirs}_token_id", parsed["tokenizer_config"].get(f"{theirs}_token_id"))
        if number is not None and 0 <= int(number) < len(tokens):
            described[f"{ours}_token"] = tokens[int(number)]
    if template := parsed["tokenizer_config"].get("chat_template"):
        described["chat_template"] = template
    if limit := parsed["config"].get("max_position_embeddings"):
        described["model_max_length"] = int(limit)
    return described


def _field(reader: Any, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:160]


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """The parsers make a numpy object per token: without the cyclic collector they take half the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def _no_progress() -> Iterator[None]:
    """The loader's own bar off: the run draws its own."""
    from transformers import modeling_gguf_pytorch_utils as loader

    bar = loader.tqdm
    loader.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        loader.tqdm = bar
