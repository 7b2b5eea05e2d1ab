"""Model folders that were built once: `cache/models/<name>-<hash>`, each with its SourceCheckpoint as source.json."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from quantadvisor.documents import BadInput, SourceCheckpoint

DOCUMENT = "source.json"


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


def sha256_of(*files: Path) -> str:
    """SHA-256 of one file, or of the digests of several in order."""
    digests = []
    for file in files:
        with file.open("rb") as opened:
            digests.append(hashlib.file_digest(opened, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
