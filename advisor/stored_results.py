"""Reads a results.json back, or says in one line why it is none."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from quantadvisor.documents import BadInput, Results

LARGEST_BYTES = 64 << 20
"""A run's results are one or two MiB; what is larger is something else, and would take long to say so."""


def read_results(path: Path) -> Results:
    file = path / "results.json" if path.is_dir() else path
    try:
        if file.stat().st_size > LARGEST_BYTES:
            raise BadInput(str(file), f"{file.stat().st_size >> 20} MiB is no results document", "give the results.json of a run")
        return Results.read(file)
    except OSError as error:
        raise BadInput(str(file), f"cannot be read: {error.strerror}", "give a results.json or the folder of a run") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BadInput(str(file), f"is not a results document: {place or 'document'}: {first['msg']}") from None
