"""Wherever a model comes from, it becomes one thing: a folder of fp32 safetensors with config and tokenizer.

Sources: `builtin:smollm2-135m`, a Hugging Face folder, a GGUF file, a hub id. Results are cached under
`cache/models/<name>-<hash>`, built under a temporary name and renamed when whole. Pickles are never loaded. A source
that is already quantized (by its type, its config, or because its values lie on a low-bit grid) is said to be.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from quantadvisor.documents import BadInput, SourceCheckpoint

from . import builtin_model, gguf_source
from .model_cache import TOKENIZER_FILES, cached, described_by, sha256_of
from .weight_grid import grid_of

Progress = Callable[[str], None]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
CAUSAL = ("ForCausalLM", "LMHeadModel")
HUB_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")


def resolve_model(
    model: str, cache: Path, trust_remote_code: bool = False, progress: Progress | None = None
) -> tuple[Path, SourceCheckpoint]:
    """(folder of fp32 safetensors, where it came from); raises BadInput for anything that is not a causal LM."""
    say = progress or (lambda _: None)
    if model.startswith("builtin:"):
        return builtin_model.resolve(model, cache, say)
    path = Path(model).expanduser()
    if path.is_dir():
        return from_folder(path, cache, trust_remote_code, say)
    if path.suffix.lower() in PICKLES:
        raise BadInput(model, "a pickle, which is never loaded", "convert it to safetensors and name the folder")
    if path.suffix.lower() == ".gguf" and path.exists():
        return from_gguf(path, cache, say)
    if path.is_file():
        raise BadInput(model, "neither a folder nor a GGUF file", "name the folder that holds config.json")
    if HUB_ID.fullmatch(model) and path.suffix.lower() != ".gguf" and not path.parent.is_dir():
        return from_hub(model, cache, trust_remote_code, say)
    raise BadInput(model, "no such model", f"name a folder, a GGUF file, a hub id (org/name) or {builtin_model.NAME}")


def from_gguf(path: Path, cache: Path, say: Progress) -> tuple[Path, SourceCheckpoint]:
    """A GGUF file, dequantized to fp32."""
    reader = gguf_source.open_gguf(path)
    quantized = gguf_source.quantized_types(reader)
    del reader
    digest = sha256_of(path)

    def build(folder: Path) -> SourceCheckpoint:
        say(f"dequantizing {path.name}")
        gguf_source.write_folder(folder, *gguf_source.load_gguf(path))
        return SourceCheckpoint(model=str(path), path="", sha256="", already_quantized=quantized)

    return cached(cache, path.stem, digest, build)


def from_folder(path: Path, cache: Path, trust: bool, say: Progress, name: str = "") -> tuple[Path, SourceCheckpoint]:
    """A Hugging Face folder: used in place where it is one fp32 file already, else converted into the cache."""
    config = read_config(path, trust)
    files = weight_files(path)
    quantized = quantized_by_config(config, files)
    model = name or str(path)
    say(f"reading {model}")
    ready = files == [path / "model.safetensors"] and (path / "tokenizer.json").is_file()
    if ready and stored_types(files) == {"F32"}:
        check_weights(files, config)
        source = SourceCheckpoint(
            model=model, path=str(path), sha256=sha256_of(*files), already_quantized=quantized or grid_of(files)
        )
        return path, source

    def build(folder: Path) -> SourceCheckpoint:
        say(f"converting {model} to fp32")
        grid = quantized or grid_of(files)
        check_weights(files, config)
        _convert(path, files, config, folder)
        return SourceCheckpoint(model=model, path="", sha256="", already_quantized=grid)

    return cached(cache, path.name or "model", sha256_of(*described_by(path), *files), build)


def from_hub(model: str, cache: Path, trust: bool, say: Progress) -> tuple[Path, SourceCheckpoint]:
    """Safetensors and JSON of a hub repository (its code only where the spec trusts it), then as a folder."""
    from huggingface_hub import snapshot_download

    say(f"downloading {model}")
    patterns = [*HUB_PATTERNS, *(["*.py"] if trust else [])]
    try:
        folder = snapshot_download(model, allow_patterns=patterns)
    except (OSError, ValueError, RuntimeError) as error:  # not found, gated, offline, no network: all end here
        reason = str(error).split("\n")[0][:160]
        mend = "check the id and the network (HF_TOKEN for a gated one), or name a local folder"
        raise BadInput(model, f"cannot be fetched from the hub ({type(error).__name__}: {reason})", mend) from None
    return from_folder(Path(folder), cache, trust, say, name=model)


def read_config(folder: Path, trust: bool) -> dict[str, Any]:
    """config.json of a causal language model, or BadInput."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(str(folder), "no config.json in this folder", "name a Hugging Face model folder") from None
    except (OSError, ValueError) as error:
        raise BadInput(str(file), f"not JSON ({error})", "download it again") from None
    if not isinstance(config, dict):
        raise BadInput(str(file), f"a {type(config).__name__}, not an object", "download it again")
    names = config.get("architectures") or []
    if not any(str(name).endswith(CAUSAL) for name in names):
        found = ", ".join(map(str, names)) or "none named"
        raise BadInput(str(file), f"architecture {found}: not a causal language model", "name a text decoder")
    if config.get("auto_map") and not trust:
        raise BadInput(str(file), "the model ships its own code (auto_map)", "set trust_remote_code: true to run it")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, in order; an index that names a missing shard is refused."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise BadInput(str(index), f"not a safetensors index ({error})", "download it again") from None
        files = [folder / Path(str(name)).name for name in names]
    else:
        files = sorted(folder.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise BadInput(str(folder), f"{missing[0]} is missing", "download it again")
    if not files:
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
        if pickles:
            raise BadInput(str(folder / pickles[0]), "a pickle, which is never loaded", "convert it to safetensors")
        raise BadInput(str(folder), "no *.safetensors in this folder", "name a Hugging Face model folder")
    return files


@contextlib.contextmanager
def open_weights(file: Path) -> Iterator[Any]:
    """`safetensors.safe_open` on torch, with BadInput for a file that is not whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            yield opened
    except (SafetensorError, OSError, ValueError) as error:
        what = f"corrupt or truncated safetensors ({' '.join(str(error).split())[:120]})"
        raise BadInput(str(file), what, "download it again") from None


def stored_types(files: list[Path]) -> set[str]:
    found: set[str] = set()
    for file in files:
        with open_weights(file) as opened:
            found |= {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    return found


def quantized_by_config(config: Mapping[str, Any], files: list[Path]) -> str | None:
    """What `quantization_config` says; packed integers cannot serve as a source and are refused."""
    packed = sorted(stored_types(files) - {"F64", "F32", "F16", "BF16"})
    described = config.get("quantization_config")
    scheme = str(described.get("quant_method", "unnamed")) if isinstance(described, dict) else None
    if packed:
        what = f"weights are stored as {', '.join(packed)}" + (f" by {scheme}" if scheme else "")
        raise BadInput(str(files[0].parent), what, "name the checkpoint in 16 or 32 bit that it was made from")
    return f"{scheme} (quantization_config)" if scheme else None


def check_weights(files: list[Path], config: Mapping[str, Any]) -> None:
    """Every value finite, the layers and the embedding those of the config: else BadInput, one line."""
    layers: set[int] = set()
    for file in files:
        with open_weights(file) as opened:
            for name in opened.keys():  # noqa: SIM118
                tensor = opened.get_tensor(name)
                if not bool(tensor.isfinite().all()):
                    raise BadInput(str(file), f"tensor {name} holds NaN or infinity", "download it again")
                if found := re.search(r"\.(?:layers|h|blocks)\.(\d+)\.", f".{name}"):
                    layers.add(int(found[1]))
                if name.endswith("embed_tokens.weight"):
                    wanted = (config.get("vocab_size"), config.get("hidden_size"))
                    if tuple(tensor.shape) != wanted:
                        what = f"{name} has the shape {tuple(tensor.shape)}, config.json says {wanted}"
                        raise BadInput(str(file), what, "take weights and config from one model")
    wanted_layers = config.get("num_hidden_layers", config.get("n_layer"))
    if layers and len(layers) != wanted_layers:
        what = f"weights of {len(layers)} layers, config.json says {wanted_layers}"
        raise BadInput(str(files[0].parent), what, "take weights and config from one model")


def _convert(path: Path, files: list[Path], config: Mapping[str, Any], folder: Path) -> None:
    """One fp32 model.safetensors, the config that says so, and the tokenizer as tokenizer.json."""
    _write_fp32(files, folder / "model.safetensors")
    described = {key: value for key, value in config.items() if key not in ("torch_dtype", "quantization_config")}
    (folder / "config.json").write_text(json.dumps(described | {"dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
    for pattern in (*TOKENIZER_FILES, "generation_config.json"):
        for file in path.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
    if not (folder / "tokenizer.json").is_file():
        _make_tokenizer_json(path, folder)


def _write_fp32(files: list[Path], out: Path) -> None:
    """Every tensor of `files` in float32, one in memory at a time: the header of the format (8 bytes of its length, JSON) can be
    written first, since all sizes are known. https://github.com/huggingface/safetensors"""
    shapes: dict[str, tuple[Path, list[int]]] = {}
    for file in files:
        with open_weights(file) as opened:
            shapes |= {name: (file, list(opened.get_slice(name).get_shape())) for name in opened.keys()}  # noqa: SIM118
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (_, shape) in shapes.items():
        start, end = end, end + 4 * prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with out.open("wb") as written:
        written.write(len(text).to_bytes(8, "little") + text)
        for name, (file, _) in shapes.items():
            with open_weights(file) as opened:
                opened.get_tensor(name).float().contiguous().numpy().tofile(written)


def _make_tokenizer_json(path: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(str(path), local_files_only=True).save_pretrained(str(folder))
    except (OSError, ValueError, ImportError, TypeError) as error:
        what = f"no tokenizer.json, and none can be made ({' '.join(str(error).split())[:100]})"
        raise BadInput(str(path), what, "add the model's tokenizer.json") from None
    if not (folder / "tokenizer.json").is_file():
        raise BadInput(str(path), "no tokenizer.json, and none can be made", "add the model's tokenizer.json")
