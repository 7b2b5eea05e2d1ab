"""Measured lengths from a request log (JSON Lines): what `advisor init --from-log` writes into the spec.

Known names: `prompt_tokens`/`output_tokens`, an OpenAI response's `usage`, `input_length`/`output_length` (Mooncake),
`Request tokens`/`Response tokens` (BurstGPT), `ContextTokens`/`GeneratedTokens` (Azure). Concurrency is Little's law,
the requests' summed durations over the span of the log, and is known only where start and duration (or end) are.
"""

from __future__ import annotations

import datetime
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantadvisor.documents import BadInput, Lengths

PROMPT = (
    "prompt_tokens", "input_tokens", "input_length", "prompt_length", "prompt_len", "num_prompt_tokens",
    "Request tokens", "ContextTokens", "usage.prompt_tokens", "usage.input_tokens",
    "response.usage.prompt_tokens", "response.usage.input_tokens",
)  # fmt: skip
OUTPUT = (
    "output_tokens", "completion_tokens", "output_length", "output_len", "num_output_tokens", "generated_tokens",
    "Response tokens", "GeneratedTokens", "usage.completion_tokens", "usage.output_tokens",
    "response.usage.completion_tokens", "response.usage.output_tokens",
)  # fmt: skip
START = ("timestamp", "start_time", "arrival_time", "start", "created", "Timestamp", "TIMESTAMP")
END = ("end_time", "finish_time", "end", "completed")
DURATION = {"latency_s": 1.0, "duration_s": 1.0, "e2e_latency_s": 1.0, "Elapsed time": 1.0, "latency_ms": 1e-3,
            "duration_ms": 1e-3, "e2e_latency_ms": 1e-3}  # fmt: skip
MOST_TOKENS = 1 << 31
MILLISECOND_EPOCH = 1e11
"""A number beyond this is a time in milliseconds since 1970, one below it is in seconds."""


def lengths_from_log(path: Path) -> tuple[Lengths, Lengths, int | None]:
    """(prompt lengths, output lengths, concurrency or None where the log cannot tell); BadInput names the line."""
    prompts: list[int] = []
    outputs: list[int] = []
    spans: list[tuple[float, float] | None] = []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        record = _record(where, line)
        prompt, output = _count(where, record, PROMPT, "prompt"), _count(where, record, OUTPUT, "output")
        if prompt and output:  # a request of no output failed
            prompts.append(prompt)
            outputs.append(output)
            spans.append(_span(where, record))
    if not prompts:
        raise BadInput(str(path), "no request with prompt and output tokens", "one JSON object per line is expected")
    return _lengths(prompts), _lengths(outputs), _concurrency(spans)


def _lines(path: Path) -> list[str]:
    if path.is_dir():
        raise BadInput(str(path), "is a folder", "name the JSON Lines file in it")
    try:
        return path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise BadInput(str(path), f"not UTF-8 at byte {error.start}", "save it as UTF-8 JSON Lines") from None
    except OSError as error:
        raise BadInput(str(path), f"cannot be read ({error.strerror})", "name a JSON Lines file") from None


def _record(where: str, line: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        what = f"not JSON ({str(error).splitlines()[0]})"
        raise BadInput(where, what, "one JSON object per line is expected") from None
    if not isinstance(record, dict):
        raise BadInput(where, f"a {type(record).__name__}, not an object", "one JSON object per line is expected")
    return record


def _value(record: Mapping[str, Any], names: Sequence[str]) -> tuple[str, Any]:
    """The first of `names` that the record has; a dot steps into a nested object."""
    for name in names:
        value: Any = record
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            return name, value
    return "", None


def _count(where: str, record: Mapping[str, Any], names: Sequence[str], what: str) -> int:
    name, value = _value(record, names)
    if not name:
        raise BadInput(where, f"no {what} tokens among {', '.join(map(repr, list(record)[:8]))}", f"name them {names[0]}")
    whole = not isinstance(value, bool) and isinstance(value, int | float) and value == value // 1
    if not whole or not 0 <= value < MOST_TOKENS:
        raise BadInput(where, f"{name} must be a whole number of tokens, found {value!r}", "mend or drop the line")
    return int(value)


def _span(where: str, record: Mapping[str, Any]) -> tuple[float, float] | None:
    """(start, end) in seconds, where the record has both."""
    name, value = _value(record, START)
    if not name:
        return None
    start = _seconds(where, name, value)
    name, value = _value(record, END)
    if name:
        end = _seconds(where, name, value)
    else:
        name, value = _value(record, tuple(DURATION))
        if not name or isinstance(value, bool) or not isinstance(value, int | float):
            return None
        end = start + value * DURATION[name]
    return (start, end) if end >= start else None


def _seconds(where: str, name: str, value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value / 1000 if value > MILLISECOND_EPOCH else float(value)
    try:
        return datetime.datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        raise BadInput(where, f"{name} is no time, found {value!r}", "give seconds or ISO 8601") from None


def _concurrency(spans: Sequence[tuple[float, float] | None]) -> int | None:
    known = [span for span in spans if span is not None]
    if len(known) < len(spans):
        return None
    length = max(end for _, end in known) - min(start for start, _ in known)
    return max(1, round(sum(end - start for start, end in known) / length)) if length > 0 else None


def _lengths(counts: Sequence[int]) -> Lengths:
    spread = statistics.pstdev(counts)
    return Lengths(mean=round(statistics.fmean(counts), 1), std=round(spread, 1), min=min(counts), max=max(counts))
