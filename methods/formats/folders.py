"""Artifacts appear whole or not at all: a folder is written under a temporary name beside its own, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, named `out` only once the block ends without an exception; else it is removed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=PARTIAL))
    try:
        yield work
        os.chmod(work, 0o755)
        if out.exists():
            shutil.rmtree(out)
        os.replace(work, out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def remove_partial(out: Path) -> None:
    """What a killed process left of `out`. Nobody may be writing it."""
    for left in out.parent.glob(f".{out.name}.*{PARTIAL}"):
        shutil.rmtree(left, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """The same bytes under a second name: no copy where the file system can link. Artifacts are never edited."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def link_folder(source: Path, out: Path) -> None:
    """The files of `source` again under the name `out`."""
    with new_folder(out) as work:
        for path in sorted(source.iterdir()):
            if path.is_file():
                link_or_copy(path, work / path.name)


def link_file(source: Path, out: Path, name: str) -> None:
    """A folder `out` that holds `source` again under `name`."""
    with new_folder(out) as work:
        link_or_copy(source, work / name)
