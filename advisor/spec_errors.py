"""What is wrong with a spec, as one line: file and line, field, value found, how to mend it.

Pydantic says where; this file says it in the words of the spec: the nearest known field, the unit that the name
carries, and, where a value came with a unit (`2s`, `8 GB`), the number to write instead.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from quantadvisor.documents import BadInput, Workload

Path = tuple[str | int, ...]

UNITS = {
    "ms": "milliseconds",
    "s": "seconds",
    "gib": "GiB (2^30 bytes)",
    "mib": "MiB (2^20 bytes)",
    "tokens": "tokens",
    "rate_per_s": "requests per second",
}
SUFFIXES = "bytes|kib|mib|gib|tib|kb|mb|gb|tb|ns|us|ms|s|sec|secs|seconds|min|minutes|h|hours|tokens|per_s|per_hour"
FACTORS = {
    "s": {"ms": 1e-3, "s": 1.0, "sec": 1.0, "seconds": 1.0, "min": 60.0, "minutes": 60.0, "m": 60.0, "h": 3600.0},
    "gib": {
        "gib": 1.0,
        "gb": 1e9 / 2**30,
        "g": 1.0,
        "mib": 1 / 1024,
        "mb": 1e6 / 2**30,
        "m": 1 / 1024,
        "tib": 1024.0,
        "tb": 1e12 / 2**30,
        "bytes": 2.0**-30,
        "kib": 2.0**-20,
    },
}
FACTORS["ms"] = {unit: 1000 * factor for unit, factor in FACTORS["s"].items()}
FACTORS["mib"] = {unit: 1024 * factor for unit, factor in FACTORS["gib"].items()}


def bad_spec(name: str, error: ValidationError, data: Mapping[str, Any], lines: Mapping[Path, int]) -> BadInput:
    """The error that explains most: unknown fields first, since they explain missing ones; then the deepest."""
    found = [(real_path(one["loc"], data, one["type"]), one) for one in error.errors(include_url=False)]
    path, one = max(found, key=_explains)
    kind = one["type"]
    if kind == "extra_forbidden":
        what, mend = f"unknown field (value {_short(one['input'])})", mend_unknown(path, one["input"])
    elif kind == "missing":
        what, mend = "is missing", f"add it: {describe(path)}"
    else:
        what, mend = _wrong_value(path, one)
    return BadInput(place(name, path, lines), what, mend)


def _explains(found: tuple[Path, Any]) -> tuple[bool, int, bool]:
    path, one = found
    return one["type"] == "extra_forbidden", len(path), one["type"] == "value_error"


def place(name: str, path: Path, lines: Mapping[Path, int]) -> str:
    """`chat.yaml:7: traffic.concurrency`; the line is that of the nearest field that the file has."""
    line = next((lines[path[:i]] for i in range(len(path), -1, -1) if path[:i] in lines), None)
    where = name if line is None else f"{name}:{line}"
    return f"{where}: {dotted(path)}" if path else where


def dotted(path: Path) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def real_path(location: Sequence[str | int], data: Any, kind: str) -> Path:
    """The location without pydantic's names of union branches, which are not in the file."""
    path: list[str | int] = []
    for i, part in enumerate(location):
        inside = isinstance(data, Mapping) and part in data
        listed = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if inside or listed:
            path.append(part)
            data = data[part]
        elif kind == "missing" and i == len(location) - 1:
            path.append(part)
    return tuple(path)


def mend_unknown(path: Path, value: Any) -> str:
    """`did you mean ttft_ms (milliseconds)?`: same stem with another unit, then near names here, then anywhere."""
    name, parent = str(path[-1]), path[:-1]
    here = sorted(fields_of(parent))
    stem = _stem(name)
    same = [known for known in here if _stem(known) == stem and unit_of(known)]
    if same:
        number = _converted(value, name, same[0])
        return f"write {dotted((*parent, same[0]))}, in {UNITS[unit_of(same[0])]}" + (f": {number}" if number else "")
    if near := difflib.get_close_matches(name, here, 1, 0.6):
        return f"did you mean {dotted((*parent, near[0]))}?"
    elsewhere = [p for p in all_fields() if p[-1] == name] or [p for p in all_fields() if _stem(str(p[-1])) == stem]
    if elsewhere:
        return f"it belongs to {dotted(elsewhere[0][:-1]) or 'the top level'}: write {dotted(elsewhere[0])}"
    return f"known here: {', '.join(here)}"


def describe(path: Path) -> str:
    """`traffic.concurrency (requests in flight)`, from the schema."""
    model = model_at(path[:-1])
    field = _field(model, str(path[-1])) if model and path else None
    if field is not None and str(path[-1]) == "schema":
        return "schema: quantadvisor/workload/1"
    return f"{dotted(path)} ({field.description})" if field is not None and field.description else dotted(path)


def unit_of(name: str) -> str:
    """`ttft_ms` -> `ms`; empty where the name carries none."""
    return next((unit for unit in UNITS if name == unit or name.endswith(f"_{unit}")), "")


def fields_of(path: Path) -> set[str]:
    model = model_at(path)
    return {field.alias or name for name, field in model.model_fields.items()} if model else set()


def all_fields(model: type[BaseModel] = Workload, path: Path = ()) -> list[Path]:
    """Paths of every field of the spec."""
    found: list[Path] = []
    for name, field in model.model_fields.items():
        here = (*path, field.alias or name)
        found.append(here)
        for inner in models_in(field.annotation):
            found += all_fields(inner, here)
    return found


def model_at(path: Path) -> type[BaseModel] | None:
    """The model that describes the mapping at `path`."""
    model: type[BaseModel] = Workload
    for part in path:
        if isinstance(part, int):
            continue
        field = _field(model, part)
        inner = models_in(field.annotation) if field is not None else []
        if not inner:
            return None
        model = inner[0]
    return model


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Models among the branches of a union, a tuple or Annotated."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in typing.get_args(annotation) for model in models_in(argument)]


def _field(model: type[BaseModel] | None, name: str) -> Any:
    fields = model.model_fields if model else {}
    return next((field for key, field in fields.items() if name in (key, field.alias)), None)


def _wrong_value(path: Path, one: Any) -> tuple[str, str]:
    value, kind, name = one["input"], one["type"], str(path[-1]) if path else ""
    context, found = one.get("ctx", {}), f"found {_short(one['input'])}"
    means = describe(path) if path else "see advisor init"
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        return (
            f"must be {kind.replace('_', ' ').replace('than equal', 'than or equal to')} {_bound(context)}, {found}",
            (f"give {means}"),
        )
    if kind == "literal_error":
        wanted = str(context["expected"])
        near = difflib.get_close_matches(str(value), re.findall(r"'([^']*)'", wanted), 1, 0.5)
        return f"must be {wanted}, {found}", f"did you mean {near[0]}?" if near else f"give {means}"
    if kind == "int_from_float":
        return f"must be a whole number, {found}", f"give {means}"
    if kind.startswith(("int_", "float_")):
        number = _converted(value, "", name) if isinstance(value, str) else ""
        unit = f" in {UNITS[unit_of(name)]}" if unit_of(name) else ""
        return f"must be a number{unit}, {found}", f"write {number}" if number else f"give {means}"
    if kind in ("model_type", "dict_type"):
        return f"must be a mapping, {found}", f"its fields: {', '.join(sorted(fields_of(path)))}"
    if kind == "value_error":
        return f"{context['error']}, {found}", ""
    return f"{str(one['msg'])[:1].lower()}{str(one['msg'])[1:]}, {found}", f"give {means}"


def _bound(context: Mapping[str, Any]) -> str:
    return next(f"{context[key]:g}" for key in ("gt", "ge", "lt", "le") if key in context)


def _stem(name: str) -> str:
    return re.sub(rf"_(?:{SUFFIXES})$", "", name.lower())


def _converted(value: Any, from_name: str, to_name: str) -> str:
    """`2s` for ttft_ms, or 2 of ttft_s: `2000`. Empty where no number can be read."""
    text = f"{value}{from_name.rsplit('_', 1)[-1]}" if isinstance(value, int | float) else str(value)
    parts = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]+)\s*", text)
    factor = FACTORS.get(unit_of(to_name), {}).get(parts[2].lower()) if parts else None
    return f"{float(parts[1]) * factor:.6g}" if parts and factor else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
