"""What every document is: frozen, validated, written whole or not at all.

Units live in field names (`_s` seconds, `_bytes`, `_tokens`, `flops`); human units appear only in `reports/`.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AllowInfNan, BaseModel, ConfigDict

Target = Literal["weights", "activations", "kv_cache", "none"]
"""The tensor that a method shrinks; `none` changes only the runtime or the float type."""

NumberClass = Literal["measured", "modelled", "cited"]

KernelSource = Literal["measured", "interpolated", "roofline"]
"""Where a kernel's time comes from, the most certain first."""

Finite = Annotated[float, AllowInfNan(False)]


class Document(BaseModel):
    """A frozen document that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def write(self, path: Path) -> None:
        """Write as JSON: to a temporary name in the same folder, synced, then renamed."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        return cls.model_validate_json(path.read_bytes())


class OpenDocument(Document):
    """A document whose unknown fields are accepted and kept, so that an older reader loses nothing."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())


class Figure(OpenDocument):
    """One number with its spread and its class.

    `low` and `high` bound the 95 % bootstrap interval of the median; `samples` are the raw ones, in the field's unit;
    `blocks` name the process that each came from, where there were several.
    """

    median: Finite
    low: Finite
    high: Finite
    samples: tuple[Finite, ...] = ()
    blocks: tuple[int, ...] = ()
    kind: NumberClass = "measured"
    source: str = ""


def write_text(path: Path, text: str) -> None:
    """Atomic write: temporary file in the target folder, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def canonical(document: BaseModel) -> str:
    """The document as canonical JSON: the text that hashes and cache keys are made of."""
    return json.dumps(document.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
