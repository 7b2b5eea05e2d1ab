"""Results of a long method on disk, linear by linear, so that an interrupted run goes on where it stopped.

They lie in a hidden folder beside the artifact, whose name holds a hash of all that they depend on; it is removed when
the artifact is whole. What is computed again from the same inputs has the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from . import half_products

Arrays = dict[str, NDArray[Any]]
Kept = MutableMapping[str, Arrays]
"""linear -> its arrays (codes, scales, zeros, …)"""


@contextmanager
def kept_beside(out: Path, model_folder: Path, calibration: NDArray[int64], settings: str) -> Iterator[Kept]:
    """The results for `out`, those of an earlier run with the same inputs among them. Removed unless the block raises."""
    stem = f".{out.name}.kept-"
    folder = out.parent / (stem + key(model_folder, calibration, settings))
    for stale in out.parent.glob(f"{stem}*"):
        if stale != folder:
            shutil.rmtree(stale)
    folder.mkdir(parents=True, exist_ok=True)
    yield Folder(folder)
    shutil.rmtree(folder)


def key(model_folder: Path, calibration: NDArray[int64], settings: str) -> str:
    """Of the settings, the CPU's arithmetic, the calibration tokens, the config, and the files of weights (see `stamps`)."""
    digest = hashlib.sha256(f"{settings} {half_products.arithmetic()}".encode())
    digest.update(str(calibration.shape).encode() + np.ascontiguousarray(calibration).tobytes())
    digest.update((Path(model_folder) / "config.json").read_bytes())
    digest.update(stamps(model_folder, "*.safetensors").encode())
    return digest.hexdigest()[:16]


def stamps(folder: Path, pattern: str) -> str:
    """Names, sizes and times of files."""
    found = [(path.name, path.stat()) for path in sorted(Path(folder).glob(pattern))]
    return "".join(f"{name} {known.st_size} {known.st_mtime_ns}" for name, known in found)


def resumed(found: int, what: str = "linears") -> tuple[str, ...]:
    """The note of a run that found so many there."""
    return (f"{found} {what} taken from an interrupted run",) if found else ()


class Folder(MutableMapping[str, Arrays]):
    """One safetensors file per linear; a file is there whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getitem__(self, name: str) -> Arrays:
        from safetensors.numpy import load_file

        if name not in self:
            raise KeyError(name)
        return dict(load_file(self._file(name)))

    def __setitem__(self, name: str, arrays: Arrays) -> None:
        from safetensors.numpy import save_file

        partial = self.path / f"{name}.partial"
        save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, partial)
        os.replace(partial, self._file(name))

    def __delitem__(self, name: str) -> None:
        self._file(name).unlink()

    def __contains__(self, name: object) -> bool:
        return self._file(str(name)).exists()

    def __iter__(self) -> Iterator[str]:
        return (path.stem for path in sorted(self.path.glob("*.safetensors")))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"
