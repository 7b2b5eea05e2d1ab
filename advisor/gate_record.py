"""The history of a gate: JSON Lines of gate documents, appended to by `--record`, drawn by `--html` and `advisor report`."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from quantadvisor.documents import BadInput, Gate

LARGEST_BYTES = 64 << 20


def read_record(path: Path) -> list[Gate]:
    """Every gate of the file in its order, or BadInput naming the line that is none."""
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise BadInput(str(path), f"{path.stat().st_size >> 20} MiB is no history of gates", "start another file")
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise BadInput(str(path), f"cannot be read: {error.strerror}", "give a file written by --record") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(Gate.model_validate_json(line))
        except ValidationError as error:
            what = error.errors()[0]["msg"]
            raise BadInput(f"{path}:{number}", f"is no gate's record: {what}", "give a file written by --record") from None
    return found


def history_page(path: Path) -> str:
    """The page of the last gate, with all of them drawn."""
    from quantadvisor.reports.gate import page

    history = read_record(path)
    if not history:
        raise BadInput(str(path), "holds no gate", "give a file written by --record")
    return page(history[-1], history)
