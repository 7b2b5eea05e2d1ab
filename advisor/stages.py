"""The stages of a run: each leaves a document in DIR/stages, so that an interrupted run continues where it was.

A stage is computed once per run; `--resume` reads what is there. The stage documents carry the run's key (workload,
device and model), and a folder with another key is refused rather than mixed.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from quantadvisor.documents import BadInput, Document

Kind = TypeVar("Kind", bound=Document)


class Progress(Protocol):
    """Where a run says what it is doing."""

    def stage(self, title: str) -> Any: ...

    def say(self, what: str) -> None: ...


class StageRecord(Document):
    """A stage's document beside its key and how long it took, seconds."""

    key: str
    seconds: float
    document: dict[str, Any]


class Stages:
    """The stage documents of one run in one folder."""

    def __init__(self, folder: Path, key: str, resume: bool, progress: Progress) -> None:
        self.folder, self.key, self.progress = folder / "stages", key, progress
        self.seconds: dict[str, float] = {}
        if resume:
            self._check_key()
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            shutil.rmtree(folder / "work", ignore_errors=True)

    def run(self, name: str, title: str, kind: type[Kind], compute: Callable[[], Kind]) -> Kind:
        """The stage's document: read if it is there, else computed and written."""
        path = self.folder / f"{name}.json"
        with self.progress.stage(title):
            if path.exists():
                record = StageRecord.read(path)
                self.seconds[name] = record.seconds
                self.progress.say("already done")
                return kind.model_validate(record.document)
            start = time.monotonic()
            document = compute()
            self.seconds[name] = time.monotonic() - start
            StageRecord(key=self.key, seconds=self.seconds[name], document=document.model_dump(mode="json", by_alias=True)).write(
                path
            )
            return document

    def _check_key(self) -> None:
        for path in sorted(self.folder.glob("*.json")):
            try:
                found = StageRecord.read(path).key
            except ValidationError:
                path.unlink()
                continue
            if found != self.key:
                what = "holds a run of another workload, model or device, or by other versions of packages"
                raise BadInput(str(self.folder.parent), what, "run without --resume")


class Quiet:
    """A progress that says nothing."""

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        yield

    def say(self, what: str) -> None:
        return None
