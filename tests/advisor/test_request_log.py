"""Request logs of the usual spellings; a line that says nothing is named by its number."""

import json
from pathlib import Path
from typing import Any

import pytest

from quantadvisor.advisor.request_log import lengths_from_log
from quantadvisor.documents import BadInput


def log(tmp_path: Path, *records: Any) -> Path:
    file = tmp_path / "log.jsonl"
    file.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records))
    return file


@pytest.mark.parametrize(
    "record",
    [
        {"prompt_tokens": 40, "output_tokens": 4},
        {"input_length": 40, "output_length": 4, "timestamp": 27000, "hash_ids": [1]},
        {"id": "x", "usage": {"prompt_tokens": 40, "completion_tokens": 4, "total_tokens": 44}},
        {"Timestamp": 5, "Request tokens": 40, "Response tokens": 4},
        {"TIMESTAMP": "2023-11-16 18:15:46.6805900", "ContextTokens": 40, "GeneratedTokens": 4},
        {"response": {"usage": {"input_tokens": 40, "output_tokens": 4}}},
    ],
)
def test_the_usual_names(tmp_path: Path, record: dict[str, Any]) -> None:
    prompt, output, concurrency = lengths_from_log(log(tmp_path, record, "", record))
    assert (prompt.mean, prompt.std, prompt.min, prompt.max) == (40, 0, 40, 40)
    assert output.mean == 4
    assert concurrency is None


def test_concurrency_is_littles_law(tmp_path: Path) -> None:
    base = {"prompt_tokens": 10, "output_tokens": 2}
    overlapping = [base | {"timestamp": float(i), "latency_ms": 4000} for i in range(97)]
    assert lengths_from_log(log(tmp_path, *overlapping))[2] == 4  # 97 x 4 s within 100 s
    ends = [base | {"start_time": f"2026-01-01T00:00:0{i}+00:00", "end_time": 1767225600.0 + i + 1} for i in range(3)]
    assert lengths_from_log(log(tmp_path, *ends))[2] == 1


def test_a_failed_request_does_not_count(tmp_path: Path) -> None:
    good, failed = {"prompt_tokens": 10, "output_tokens": 2}, {"prompt_tokens": 900, "output_tokens": 0}
    assert lengths_from_log(log(tmp_path, good, failed))[0].max == 10


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "a list, not an object"),
        ('{"a": 1}', "no prompt tokens among 'a'; name them prompt_tokens"),
        ('{"prompt_tokens": 3}', "no output tokens"),
        ('{"prompt_tokens": -3, "output_tokens": 1}', "prompt_tokens must be a whole number of tokens, found -3"),
        ('{"prompt_tokens": true, "output_tokens": 1}', "found True"),
        ('{"prompt_tokens": 1e999, "output_tokens": 1}', "found inf"),
        ('{"prompt_tokens": 3, "output_tokens": 1, "start_time": "soon", "latency_s": 1}', "start_time is no time"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        lengths_from_log(log(tmp_path, {"prompt_tokens": 1, "output_tokens": 1}, line))
    assert "log.jsonl:2: " in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_log_at_all(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "none", "cannot be read"), (tmp_path, "is a folder"), (log(tmp_path), "no request")):
        with pytest.raises(BadInput, match=said):
            lengths_from_log(path)
