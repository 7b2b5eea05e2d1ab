"""`advisor plan` from the shell: the exit codes, one line for bad input, one JSON document on standard output."""

import json
from pathlib import Path

import pytest

from .test_cli import advisor

SPEC = """schema: quantadvisor/workload/1
model: meta-llama/Llama-3.1-8B-Instruct
traffic: {prompt_tokens: 1024, output_tokens: 128, concurrency: 8}
"""


@pytest.fixture
def spec(tmp_path: Path) -> str:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return str(path)


def test_json_is_one_document(spec: str) -> None:
    done = advisor("plan", spec, "--device", "h100", "--device", "l40s", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["schema"] == "quantadvisor/plan/1"
    assert [one["device"] for one in found["devices"]] == ["h100_sxm", "l40s"]
    assert all(one["choice"] for one in found["devices"])


def test_people_read_standard_error(spec: str) -> None:
    done = advisor("plan", spec, "--device", "h100")
    assert (done.returncode, done.stdout) == (0, "")
    for word in ("who wins", "TPOT", "modelled", "h100_sxm"):
        assert word in done.stderr


def test_a_preset_needs_no_file() -> None:
    assert advisor("plan", "Qwen/Qwen3-8B", "--preset", "chat", "--device", "a100").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--device", "h1000"], "did you mean h100_sxm"), ([], "no GPU is named")],
)
def test_bad_input(spec: str, arguments: list[str], said: str) -> None:
    done = advisor("plan", spec, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_nothing_fits(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC.replace("8B-Instruct", "405B") + "parallel: {tensor: 1}\n")
    assert advisor("plan", str(path), "--device", "l40s").returncode == 5
