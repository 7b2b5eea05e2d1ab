"""What is kept of models: folders that were built once, `cache/models/<name>-<hash>`, each with its SourceCheckpoint as
source.json; and exports, ghosts and references, `cache/derived/<hash>`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from quantadvisor.documents import BadInput, SourceCheckpoint
from quantadvisor.kernels.installed import installed

DOCUMENT = "source.json"
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "added_tokens.json", "*.jinja")
WRITERS = (
    "quantadvisor", "torch", "transformers", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-genai", "openvino", "nncf",
    "optimum-intel", "gguf", "compressed-tensors",
)  # fmt: skip
"""Packages that exports and references come from."""


def cached(cache: Path, name: str, key: str, build: Callable[[Path], SourceCheckpoint]) -> tuple[Path, SourceCheckpoint]:
    """The folder `cache/models/<name>-<key>`: as it lies there, or built under a temporary name and renamed."""
    target = cache / "models" / f"{name}-{key[:12]}"
    if (target / DOCUMENT).is_file():
        return target, SourceCheckpoint.read(target / DOCUMENT)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=".building-"))
    except OSError as error:
        raise BadInput(
            str(target.parent), f"cannot be written ({error.strerror})", "make room there, or name another folder"
        ) from None
    try:
        source = build(folder)
        folder.chmod(0o755)
        for file in folder.iterdir():  # safetensors writes 0600
            file.chmod(0o644)
        source = source.model_copy(update={"path": str(target), "sha256": sha256_of(folder / "model.safetensors")})
        source.write(folder / DOCUMENT)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target, source


def derived(cache: Path, source: SourceCheckpoint, folder: Path) -> Path:
    """Where what is made of a model is kept: by its weights, by the files that say how to compute with them, by who makes it."""
    told = {file.name: sha256_of(file) for file in described_by(folder)}
    text = json.dumps([source.sha256, told, installed(WRITERS)], sort_keys=True)
    return cache / "derived" / hashlib.sha256(text.encode()).hexdigest()[:16]


def described_by(folder: Path) -> list[Path]:
    """Config, tokenizer and the model's own code, in order."""
    patterns = ("config.json", *TOKENIZER_FILES, "*.py")
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})


def sha256_of(*files: Path) -> str:
    """SHA-256 of one file, or of the digests of several in order."""
    digests = []
    for file in files:
        with file.open("rb") as opened:
            digests.append(hashlib.file_digest(opened, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
