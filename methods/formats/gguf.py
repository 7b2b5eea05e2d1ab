"""GGUF artifacts for llama.cpp: a folder with `model.gguf`.

export_base  Hugging Face folder -> float32 GGUF (the `gguf` package writes it)
randomise    float32 GGUF -> the same with random weights: what ghosts are made of
quantize     float32 GGUF -> any of llama.cpp's types (its own `llama_model_quantize` rounds)
write_codes  Hugging Face folder and integers that were rounded already -> Q4_0 or Q8_0, with the same codes
"""

from __future__ import annotations

import ctypes
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quantadvisor.documents.errors import BadInput, CandidateFailed
from quantadvisor.kernels.ggml_types import BLOCK, FLOAT, SUPER_BLOCK, block_of, fitting, linear_type

from ..affine import Grouped, refuse_not_finite
from ..refusals import row_widths
from . import huggingface
from .folders import new_folder

FILE = "model.gguf"
ARCHITECTURES = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
"""model_type -> gguf.MODEL_ARCH. LLAMA rotates neighbouring channels, so q_proj and k_proj are permuted."""
TYPES = {
    "f32": 0, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k": 11, "q4_k": 14, "q5_k": 16, "q6_k": 18,
    "bf16": 32,
}  # fmt: skip
"""enum llama_ftype of llama.h; of the super-blocks the small mixes, in which fewest tensors get a larger type."""
NORMAL, UNUSED, CONTROL, USER_DEFINED = 1, 5, 3, 4
"""gguf.TokenType."""


def refuse(config: Mapping[str, Any]) -> str | None:
    found = config.get("model_type")
    if found not in ARCHITECTURES:
        return f"no map to GGUF for model_type {found!r}; known are {', '.join(ARCHITECTURES)}"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind != "default":
        return f"its rotary positions are scaled ({kind}): our GGUF export writes unscaled ones only"
    return None


def refuse_rows(config: Mapping[str, Any], type_name: str) -> str | None:
    """Why no file of the type can be made: blocks of 32 must divide every row. (Where super-blocks do not, `fitting` does.)"""
    for key, width in row_widths(config).items():
        if fitting(type_name, width) == FLOAT:
            return f"blocks of {BLOCK} do not divide {key} = {width}, and llama.cpp has no smaller ones"
    return None


Store = Callable[[str, Any], tuple[Any, Any]]
"""(Hugging Face name, float32 array) -> what is stored of it, row by row, and its gguf type; None: the array's own"""


def export_base(model_folder: Path, out: Path) -> None:
    """Every tensor in float32 under llama.cpp's names, the hyperparameters and the tokenizer."""
    write_file(model_folder, out, "f32", lambda _, w: (w, None))


def write_codes(model_folder: Path, out: Path, given: Mapping[str, Callable[[], Grouped]], bits: int) -> None:
    """Linears of `given`, symmetric integers of 4 or 8 bits in groups of whole blocks, as blocks of Q4_0 or Q8_0; embeddings and
    lm_head rounded to Q8_0, vectors in float32. BadInput where a block does not hold the very same."""
    import gguf

    name_of_type = {4: "q4_0", 8: "q8_0"}[bits]
    q8_0 = gguf.GGMLQuantizationType.Q8_0

    def store(name: str, w: Any) -> tuple[Any, Any]:
        if bring := given.get(name.removesuffix(".weight")):
            return blocks(name, bring(), bits), gguf.GGMLQuantizationType[name_of_type.upper()]
        return (w, None) if w.ndim == 1 else (gguf.quantize(w, q8_0), q8_0)

    write_file(model_folder, out, name_of_type, store)


def blocks(name: str, linear: Grouped, bits: int) -> Any:
    """Of codes [N, K]: uint8 [N, bytes of a row]. A block is a float16 scale and BLOCK codes: nibbles less 8, the first half of
    the block low; or int8."""
    rows, width = linear.codes.shape
    scales = linear.scales.repeat(width // BLOCK // linear.scales.shape[1], axis=1)
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    if (linear.zeros != 1 << (bits - 1)).any() or not np.array_equal(half.astype(np.float32), scales):
        what = "has zero points, or scales that float16 does not hold: blocks of q4_0 and q8_0 do not hold the same"
        raise BadInput(name, what, "quantize the model itself: the method gguf")
    cut = linear.codes.reshape(rows, -1, BLOCK)
    packed = cut[..., : BLOCK // 2] | cut[..., BLOCK // 2 :] << 4 if bits == 4 else cut ^ np.uint8(128)
    return np.concatenate([half[..., None].view(np.uint8), packed], axis=-1).reshape(rows, -1)


def write_file(model_folder: Path, out: Path, type_name: str, store: Store) -> None:
    """Every tensor as it is stored, under llama.cpp's names; the hyperparameters and the tokenizer."""
    import gguf

    config = json.loads((model_folder / "config.json").read_text())
    if refused := refuse(config):
        raise CandidateFailed(refused)
    architecture = getattr(gguf.MODEL_ARCH, ARCHITECTURES[config["model_type"]])
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    with new_folder(out) as folder:
        writer = gguf.GGUFWriter(folder / FILE, gguf.MODEL_ARCH_NAMES[architecture])
        write_hyperparameters(writer, config, type_name)
        write_tokenizer(writer, model_folder, config["vocab_size"])
        for name, tensor in tensors(model_folder):
            known = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if known is None:
                raise CandidateFailed(f"GGUF has no name for the tensor {name}")
            stored, kind = store(name, tensor)
            writer.add_tensor_info(known, stored.shape, stored.dtype, stored.nbytes, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in tensors(model_folder):  # one at a time: add_tensor would keep them all
            stored, _ = store(name, tensor)
            writer.write_tensor_data(rotated(name, stored, config) if architecture == gguf.MODEL_ARCH.LLAMA else stored)
        writer.close()


def tensors(model_folder: Path) -> Iterator[tuple[str, Any]]:
    """(Hugging Face name, float32 array); a tied lm_head is not stored twice."""
    for path in huggingface.shards(model_folder):
        for name, value in huggingface.tensors(path):
            yield name, value.float().numpy()


def rotated(name: str, tensor: Any, config: Mapping[str, Any]) -> Any:
    """q and k with the halves of each head interleaved: Hugging Face rotates halves, llama.cpp's LLAMA neighbours."""
    stem = name.rsplit(".", 1)[0]
    if not stem.endswith(("q_proj", "k_proj")):
        return tensor
    heads = config["num_attention_heads"]
    if stem.endswith("k_proj"):
        heads = config.get("num_key_value_heads") or heads
    return tensor.reshape(heads, 2, len(tensor) // heads // 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


def write_hyperparameters(writer: Any, config: Mapping[str, Any], type_name: str) -> None:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(TYPES[type_name])


def write_tokenizer(writer: Any, model_folder: Path, size: int) -> None:
    """A byte-level BPE tokenizer; other kinds leave the file without one: llama.cpp then takes tokens only."""
    import gguf

    path = model_folder / "tokenizer.json"
    described = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if described.get("model", {}).get("type") != "BPE" or "ByteLevel" not in json.dumps(described.get("decoder")):
        writer.add_tokenizer_model("none")
        return
    added = {item["id"]: item for item in described.get("added_tokens", [])}
    names = {number: token for token, number in described["model"]["vocab"].items()}
    names |= {number: item["content"] for number, item in added.items()}
    kinds = {number: CONTROL if item.get("special") else USER_DEFINED for number, item in added.items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(described))
    writer.add_token_list([names.get(i, f"[PAD{i}]") for i in range(size)])
    writer.add_token_types([kinds.get(i, NORMAL if i in names else UNUSED) for i in range(size)])
    gguf.SpecialVocab(model_folder, load_merges=True, n_vocab=size).add_to_gguf(writer, quiet=True)


def pre_tokenizer(described: Mapping[str, Any]) -> str:
    """llama.cpp's name of how the text is split before BPE, by what tokenizer.json says of it."""
    text = json.dumps(described.get("pre_tokenizer"))
    if "{1,3}" in text:
        return "llama-bpe"
    if "Split" in text:
        return "qwen2"
    return "smollm" if "Digits" in text else "gpt-2"


def randomise(base: Path, out: Path, seed: int = 0) -> None:
    """N(0, 0.02) in the place of every matrix."""
    import gguf

    draw = np.random.default_rng(seed)
    with new_folder(out) as folder:
        shutil.copyfile(base / FILE, folder / FILE)
        for tensor in gguf.GGUFReader(folder / FILE, "r+").tensors:
            if len(tensor.shape) > 1:
                tensor.data[...] = draw.standard_normal(tensor.data.shape, np.float32) * np.float32(0.02)


def tensor_names(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """{Hugging Face name of a linear: name of its weight in the file}."""
    import gguf

    known = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, ARCHITECTURES[config["model_type"]]), config["num_hidden_layers"])
    return {name: known.get_name(f"{name}.weight", try_suffixes=(".weight",)) for name in names}


def importance_table(importance: Mapping[str, Any]) -> Any:
    """llama.cpp's array of (tensor, weights of its inputs, their number), ended by an empty entry."""
    import llama_cpp

    entry = llama_cpp.llama_cpp.llama_model_imatrix_data
    table = (entry * (len(importance) + 1))()
    for place, (name, values) in zip(table, importance.items(), strict=False):
        place.name, place.data, place.size = name.encode(), values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), len(values)
    return table


def types(config: Mapping[str, Any], names: Iterable[str], type_name: str, weighed: bool = False) -> dict[str, str]:
    """{linear: the type that it has in a file of `type_name`}, by Hugging Face names; `weighed`: with an importance matrix.
    Those of a file that is there already: `types_note`."""
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    repeat = heads // (config.get("num_key_value_heads") or heads)
    hidden = config["hidden_size"]
    widths = {"down_proj": config["intermediate_size"], "o_proj": heads * (config.get("head_dim") or hidden // heads)}
    found = {}
    for name in names:
        layer, linear = int(name.split(".")[2]), name.rsplit(".", 1)[1]
        found[name] = fitting(linear_type(type_name, linear, layer, layers, repeat, weighed), widths.get(linear, hidden))
    return found


def types_note(folder: Path, type_name: str) -> tuple[str, ...]:
    """What linears of the layers have another type than the file's, one line for each, read from the file."""
    import gguf

    tensors = gguf.GGUFReader(folder / FILE).tensors
    held = [(tensor.tensor_type.name.lower(), int(tensor.shape[0])) for tensor in tensors
            if tensor.name.startswith("blk.") and len(tensor.shape) > 1]  # fmt: skip
    notes = []
    for (found, width), count in sorted(Counter(held).items()):
        if found != type_name:
            fits = width % block_of(type_name) == 0
            why = "llama.cpp's mix" if fits else f"super-blocks of {SUPER_BLOCK} do not divide their rows of {width}"
            notes.append(f"{count} of {len(held)} linears in {found} instead of {type_name}: {why}")
    return tuple(notes)


def round_rows(w: Any, type_name: str, importance: Any = None) -> Any:
    """w: float32 [N, K] -> what its blocks stand for [N, K], by `ggml_quantize_chunk`; importance: float32 [K].

    CandidateFailed where the type's blocks do not divide the rows: `fitting` says which type does.
    """
    import gguf
    import llama_cpp

    number = gguf.GGMLQuantizationType[type_name.upper()]
    block, size = gguf.GGML_QUANT_SIZES[number]
    rows, width = w.shape
    if width % block:
        raise CandidateFailed(f"blocks of {block} ({type_name}) do not divide rows of {width}")
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    source, packed = np.ascontiguousarray(w), np.zeros((rows, width // block * size), np.uint8)
    pointer = None if importance is None else importance.ctypes.data
    library.ggml_quantize_chunk(number.value, source.ctypes.data, packed.ctypes.data, 0, rows, width, pointer)
    value = gguf.dequantize(packed, number)
    refuse_not_finite(value.min(), value.max(), name=f"weights in {type_name}")
    return value


def quantize(base: Path, out: Path, type_name: str, threads: int = 2, importance: Mapping[str, Any] | None = None) -> None:
    """llama.cpp's own rounding, in its own mix of types (`types` foretells it, `types_note` reads it).

    `importance`: tensor -> mean squares of its inputs, float32 [K] ("imatrix"), which weigh the errors of a block.
    """
    import llama_cpp

    said: list[str] = []
    keep = llama_cpp.llama_log_callback(lambda _level, text, _data: said.append(text.decode(errors="replace")))
    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = TYPES[type_name], threads
    if importance:
        params.imatrix = importance_table(importance)
    with new_folder(out) as folder:
        code = llama_cpp.llama_model_quantize(str(base / FILE).encode(), str(folder / FILE).encode(), ctypes.byref(params))
        if code:
            raise CandidateFailed(f"llama_model_quantize gave {code} for {type_name}: {' '.join(''.join(said[-2:]).split())}")
