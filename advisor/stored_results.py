"""Reads a results.json back, or says in one line why it is none.

A document that our own `run` cannot have written (cut short, not a number, a negative time) is refused here, so that
whoever reads results need not doubt every figure again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from quantadvisor.documents import BadInput, Figure, Results
from quantadvisor.documents.results import SCHEMA

LARGEST_BYTES = 64 * 2**20
"""Of a file; a run over 60 candidates writes about 1 MiB."""
SIGNED = frozenset({"residue_s", "other_s"})
"""Differences of two timings, which noise can turn."""
COUNTED = frozenset({"count", "batch", "tokens", "layers", "linears", "max_concurrency", "perplexity", "users"})
POSITIVE = frozenset({"m", "n", "k", "bits", "group_size", "hidden", "vocabulary", "heads", "kv_heads", "head_dim"})
"""Sizes that nothing has without."""
MEASURES = ("_s", "_bytes", "_tokens", "_per_token", "_parameters")
PARTS = frozenset({"median", "low", "high", "samples"})
"""Of a figure: what is measured is the name above."""
PLAUSIBLE = (1e-30, 1e30)
"""Magnitudes outside are no measurement, in whatever unit."""

MEND, AGAIN = "give the results.json that a run wrote", "measure again"


def read_results(path: Path) -> Results:
    file = path / "results.json" if path.is_dir() else path
    text = content(file)
    try:
        raw = parsed(file, text)
        check_schema(file, raw)
        check_numbers(file, raw)
        results = Results.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])[:200]
        raise BadInput(str(file), f"is not a results document: {place or 'document'}: {first['msg'][:200]}") from None
    except RecursionError:
        raise BadInput(str(file), "is nested too deeply", MEND) from None
    check_samples(file, results)
    return results


def content(file: Path) -> bytes:
    try:
        size = file.stat().st_size
        if size > LARGEST_BYTES:
            what = f"is {size / 2**20:,.0f} MiB, more than any results document has"
            raise BadInput(str(file), what, MEND)
        return file.read_bytes()
    except OSError as error:
        raise BadInput(str(file), f"cannot be read: {error.strerror}", "give a results.json or the folder of a run") from None


def parsed(file: Path, text: bytes) -> Any:
    def refuse(word: str) -> NoReturn:
        raise BadInput(str(file), f"holds {word}, which is no number", AGAIN)

    try:
        return json.loads(text, parse_constant=refuse)
    except ValueError as error:
        what = f"is not JSON, or was cut short: {' '.join(str(error).split())[:160]}"
        raise BadInput(str(file), what, MEND) from None


def check_schema(file: Path, raw: Any) -> None:
    """Another schema is said by its name: a newer one asks for a newer advisor."""
    named = raw.get("schema") if isinstance(raw, dict) else None
    if named == SCHEMA:
        return
    if isinstance(named, str) and named.startswith(SCHEMA.rpartition("/")[0] + "/"):
        raise BadInput(str(file), f"is of schema {named[:60]}, and this version reads {SCHEMA}", "upgrade quantadvisor")
    raise BadInput(str(file), f"is not a results document: its schema is not {SCHEMA}", MEND)


def check_numbers(file: Path, raw: Any) -> None:
    """No magnitude that nothing has, and no negative time, size or count."""
    if found := impossible(raw):
        path, number = found
        raise BadInput(str(file), f"{'.'.join(path)[:160]}: {str(number)[:20]} cannot be", AGAIN)


def check_samples(file: Path, results: Results) -> None:
    """What calls itself measured has its samples."""
    for candidate in results.candidates:
        for name, figure in candidate.measured or ():
            if isinstance(figure, Figure) and figure.kind == "measured" and not figure.samples:
                where = f"candidates.{candidate.name[:80]}.measured.{name}"
                raise BadInput(str(file), f"{where} has no samples", "measure it again: a median alone has no interval")


def impossible(value: Any, name: str = "") -> tuple[tuple[str, ...], float] | None:
    """The first number that cannot be, after the names that lead to it; places in lists are not named. `name` says what
    the value is of."""
    kind = type(value)
    if kind is dict:
        for key, part in value.items():
            if found := impossible(part, name if key in PARTS else key):
                return (key, *found[0]), found[1]
    elif kind is list:
        for part in value:
            if found := impossible(part, name):
                return found
    elif (kind is float or kind is int) and not allowed(value, name):
        return (), value
    return None


def allowed(number: float, name: str) -> bool:
    if number <= 0 and name in POSITIVE:
        return False
    if number < 0 and (name in COUNTED or (name.endswith(MEASURES) and name not in SIGNED)):
        return False
    return number == 0 or PLAUSIBLE[0] <= abs(number) <= PLAUSIBLE[1]
