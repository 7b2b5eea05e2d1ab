"""`advisor plan` from the shell: the exit codes, one line for bad input, one JSON document on standard output."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from quantadvisor.advisor import cli

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


def in_process(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["advisor", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


LLAMA = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192}  # fmt: skip
H100 = ["--device", "h100"]


@pytest.mark.parametrize(
    ("config", "more", "arguments", "said"),
    [
        ({**LLAMA, "vocab_size": None}, "", H100, "the field vocab_size is missing"),
        ({**LLAMA, "model_type": "rwkv"}, "", H100, "architecture 'rwkv' is unknown here"),
        ({**LLAMA, "model_type": None}, "", H100, "the config's field model_type is missing"),
        ({**LLAMA, "text_config": "x"}, "", H100, "text_config must be a mapping"),
        ({**LLAMA, "model_type": "mixtral"}, "", H100, "the field num_local_experts is missing"),
        ({**LLAMA, "model_type": "mixtral", "num_local_experts": 8}, "", H100, "the field num_experts_per_tok is missing"),
        (LLAMA, "family: [FOLDER/other]", H100, "architecture 'rwkv' is unknown here"),
        (LLAMA, "runtimes: []", H100, "the list is empty"),
        (LLAMA, "", ["--device", "h1000"], "did you mean h100_sxm"),
        (LLAMA, "", [], "no GPU is named"),
        (LLAMA, "parallel: {tensor: 3}", H100, "3 does not divide the 32 attention heads"),
        ({**LLAMA, "max_position_embeddings": 1024}, "", H100, "beyond the 1,024 of the model"),
        (LLAMA, "slo: {tpot_ms: 0.01}", H100, "below the physical floor: reading the weights"),
        (LLAMA, "slo: {ttft_ms: 0.01}", H100, "below the physical floor: the prompt"),
        (LLAMA, "", [*H100, "--out", "FILE/below"], "cannot be written"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    config: dict[str, object], more: str, arguments: list[str], said: str,
) -> None:  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC.replace("meta-llama/Llama-3.1-8B-Instruct", str(tmp_path)) + more.replace("FOLDER", str(tmp_path)))
    (tmp_path / "FILE").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({**LLAMA, "model_type": "rwkv"}))
    given = [one.replace("FILE", str(tmp_path / "FILE")) for one in arguments]
    assert in_process(["plan", str(path), *given], monkeypatch) == 2
    found = capsys.readouterr()
    assert said in found.err
    assert (found.out, len(found.err.strip().splitlines())) == ("", 1)


def test_written_and_drawn_again(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """plan.json holds all of the page: `advisor report` draws the same bytes."""
    out, again = tmp_path / "out", tmp_path / "again.html"
    assert in_process(["plan", spec, "--device", "a100", "--out", str(out)], monkeypatch) == 0
    assert sorted(path.name for path in out.iterdir()) == ["plan.json", "report.html"]
    assert in_process(["report", str(out), "--out", str(again)], monkeypatch) == 0
    assert again.read_bytes() == (out / "report.html").read_bytes()


def test_nothing_is_half_written(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that cannot be drawn leaves no plan.json behind."""

    def broken(_: object) -> str:
        raise KeyError("a scheme that the page has no words for")

    monkeypatch.setattr("quantadvisor.reports.plan.render_plan", broken)
    assert in_process(["plan", spec, *H100, "--out", str(tmp_path / "out")], monkeypatch) == 70
    assert not (tmp_path / "out").exists()


def test_sizes_that_do_not_hold_say_why_on_a_line_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC + "family: [meta-llama/Llama-3.1-70B]\n")
    said = advisor("plan", str(path), "--device", "l40s").stderr
    assert "not meta-llama/Llama-3.1-70B in bf16: 131.4 GiB of weights leave no room for one request in" in said
    assert "judged on one l40s" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found | {"devices": [{"device": "x"}]}, "is not a plan: devices.0"),
        (lambda found: found | {"schema": 7}, ""),
    ],
)
def test_a_damaged_plan_is_refused(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: Any, said: str
) -> None:
    assert in_process(["plan", spec, "--device", "a100", "--out", str(tmp_path)], monkeypatch) == 0
    capsys.readouterr()
    stored = tmp_path / "plan.json"
    stored.write_text(json.dumps(change(json.loads(stored.read_text()))))
    assert in_process(["report", str(stored), "--out", str(tmp_path / "x.html")], monkeypatch) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


def test_nothing_fits(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC.replace("8B-Instruct", "405B") + "parallel: {tensor: 1}\n")
    assert advisor("plan", str(path), "--device", "l40s").returncode == 5
