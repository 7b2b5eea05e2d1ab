"""What the proving table knows, as records in a file of lines: rows, speeds, rows of the encoder, oracles' verdicts.

A row is what the load of a machine does not change: bytes, quality, operators, what applying costs. It belongs to a model
and to the text that judged it. A speed belongs to a machine beside. Both are appended as soon as they are known, so that an
interrupted run goes on; the newest of each counts. The page's own records lie beside it (docs/methods.jsonl), so that a
fresh checkout goes on from there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from quantadvisor.documents import Device, Figure, Interval, OpenDocument, Quality, write_text
from quantadvisor.methods.schemes import scheme

ROOT = Path(__file__).resolve().parent.parent

EARLIER = " °"
"""Beside the name of a row that other code made."""
Kind = Literal["measured", "simulated", "refused", "failed"]


class Row(OpenDocument):
    """One method x scheme. `model`, `text`: the first 12 digits of their SHA-256."""

    record: Literal["row"] = "row"
    model: str
    text: str
    method: str
    scheme: str
    target: str
    kind: Kind
    machine: str = ""
    """Where: integer kernels differ between instruction sets, so its quality may a little."""
    place: str | None = None
    reason: str | None = None
    bytes: int | None = None
    plain_bytes: int | None = None
    """Of the unquantized model in the same form."""
    quality: Quality | None = None
    apply_cpu_s: float | None = None
    """Of all threads together, which other work on the machine lengthens little."""
    apply_peak_bytes: int | None = None
    quantized_linears: int | None = None
    linears: int | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    code: str = ""
    """Digest of the method's file; "" of records from before there was one."""

    @property
    def name(self) -> str:
        return f"{self.method}-{self.scheme}"


class Speed(OpenDocument):
    """Of a measured row on one machine: time of the unquantized model in the same runtime over this one's."""

    record: Literal["speed"] = "speed"
    model: str
    name: str
    place: str
    device: str
    """The machine's fingerprint."""
    machine: str
    decode: Figure | None = None
    prefill: Figure | None = None
    reason: str | None = None


class EncoderRow(OpenDocument):
    """One method x scheme on the encoder: `distance` 1 - cosine, `top1` 0..1, over the texts. What it stores and what applying it
    costs is as in Row."""

    record: Literal["encoder"] = "encoder"
    model: str
    name: str
    target: str
    distance: Interval
    top1: float
    bytes: int | None = None
    plain_bytes: int | None = None
    apply_cpu_s: float | None = None
    apply_peak_bytes: int | None = None
    seconds: float
    code: str = ""
    """Digest of the method's file; "" of records from before there was one."""

    @property
    def method(self) -> str:
        return self.name.partition("-")[0]


class Samples(OpenDocument):
    """Of a method x scheme that calibrates, on so many samples of `length` tokens; simulated."""

    record: Literal["samples"] = "samples"
    model: str
    text: str
    name: str
    samples: int
    length: int
    kl: Interval
    apply_cpu_s: float
    code: str = ""
    """Digest of the method's code; "" of records from before there was one."""


class Greedy(OpenDocument):
    """Of one linear: what share of w^T H w is left as error in so many of its rows, by method."""

    record: Literal["greedy"] = "greedy"
    model: str
    name: str
    scheme: str
    rows: int
    rtn: float
    gptq: float
    obq: float
    code: str = ""
    """Digest of the methods' code; "" of records from before there was one."""


class Verdict(OpenDocument):
    """Of a method's oracle, on the code whose digest is `code`."""

    record: Literal["verdict"] = "verdict"
    name: str
    test: str
    code: str
    verdict: str


Record = Row | Speed | EncoderRow | Samples | Greedy | Verdict
RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="record")])


class Known(NamedTuple):
    """By name; speeds by (name, device), samples by (name, how many)."""

    rows: dict[str, Row]
    speeds: dict[tuple[str, str], Speed]
    encoder: dict[str, EncoderRow]
    samples: dict[tuple[str, int], Samples]
    greedy: dict[str, Greedy]
    verdicts: dict[str, Verdict]

    def add(self, record: Record) -> None:
        if isinstance(record, Row):
            self.rows[record.name] = record
        elif isinstance(record, Speed):
            self.speeds[record.name, record.device] = record
        elif isinstance(record, EncoderRow):
            self.encoder[record.name] = record
        elif isinstance(record, Samples):
            self.samples[record.name, record.samples] = record
        elif isinstance(record, Greedy):
            self.greedy[record.name] = record
        else:
            self.verdicts[record.name] = record


ALIKE = 0.005
"""Part by which bytes of one graph differ: what a file is called is stored in it."""


def twins(row: Row, rows: Mapping[str, Row]) -> list[str]:
    """Names of other measured rows of the same operators and sizes, whose weights alone are others: the same format in the same
    runtime, as many quantized linears, as many bytes. Their times are the same."""
    return [
        other.name
        for other in rows.values()
        if other.name != row.name and other.kind == row.kind == "measured" and form(other) == form(row) and same_size(other, row)
    ]


def form(row: Row) -> tuple[object, ...]:
    return row.place, row.quantized_linears, row.linears, scheme(row.scheme).model_dump_json(exclude={"name"})


def same_size(one: Row, other: Row) -> bool:
    a, b = one.bytes or 0, other.bytes or 0
    return abs(a - b) <= ALIKE * min(a, b)


def read(paths: Iterable[Path], model: str, text: str) -> Known:
    """Records of this model and text, later files and lines over earlier ones; a line cut short is passed over."""
    known = Known({}, {}, {}, {}, {}, {})
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                record = RECORD.validate_json(line)
            except ValidationError:
                continue
            ours = getattr(record, "model", model) == model or isinstance(record, EncoderRow)
            if ours and getattr(record, "text", text) == text:
                known.add(record)
    return known


def digest_of(paths: Iterable[Path]) -> str:
    """Of files of this checkout and their names: the first 12 digits of a SHA-256."""
    found = hashlib.sha256()
    for path in sorted(paths):
        found.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:12]


def code_of(*modules: str) -> str:
    """Digest of modules of methods/."""
    return digest_of(ROOT / "methods" / f"{name}.py" for name in modules)


def outdated(row: Row | EncoderRow) -> bool:
    """Has the method's file changed since the row was made?"""
    return bool(row.code) and row.code != code_of(row.method)


def append(path: Path, record: Record) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(as_line(record))


def write(path: Path, known: Known) -> None:
    """One line each, in an order that does not depend on when they were measured."""
    records = [*known.rows.values(), *known.speeds.values(), *known.encoder.values(), *known.samples.values()]
    records += [*known.greedy.values(), *known.verdicts.values()]
    write_text(path, "".join(map(as_line, records)))


def as_line(record: Record) -> str:
    return json.dumps(in_short(record.model_dump(mode="json", exclude_none=True)), separators=(",", ":")) + "\n"


def in_short(value: object) -> object:
    """Numbers to six digits, which is more than any interval here tells."""
    if isinstance(value, dict):
        return {name: in_short(one) for name, one in value.items()}
    if isinstance(value, list):
        return [in_short(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def machine_of(device: Device) -> str:
    return f"{device.name}, {device.cores} cores ({', '.join(device.isa)})"
