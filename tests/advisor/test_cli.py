"""What a user's shell sees: exit codes, one line for bad input, one JSON document on standard output."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quantadvisor import __version__

from ..reports.sample import minimal

SPEC = """schema: quantadvisor/workload/1
model: {model}
traffic: {{prompt_tokens: {prompt}, output_tokens: 8, concurrency: 1}}
{more}
"""


def advisor(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "quantadvisor.advisor.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def spec(folder: Path, model: str = "builtin:smollm2-135m", prompt: object = 64, more: str = "") -> str:
    path = folder / "spec.yaml"
    path.write_text(SPEC.format(model=model, prompt=prompt, more=more))
    return str(path)


def test_version() -> None:
    assert advisor("--version").stdout == f"quantadvisor {__version__}\n"


@pytest.mark.parametrize("which", ["workload", "results"])
def test_schema_is_one_json_document(which: str) -> None:
    assert json.loads(advisor("schema", which).stdout)["type"] == "object"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"more": "qualty: {}"}, "quality"),
        ({"more": "memory_limit_gb: 2"}, "memory_limit_gib"),
        ({"prompt": -5}, "prompt_tokens"),
        ({"model": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"more": "runtimes: [tensorrt]"}, "tensorrt"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(change: dict[str, object], said: str, tmp_path: Path) -> None:
    done = advisor("run", spec(tmp_path, **change), "--out", str(tmp_path / "out"))  # type: ignore[arg-type]
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()[-1:]) == 1
    assert "Traceback" not in done.stderr
    assert said in done.stderr
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize("arguments", [("nosuch",), ("run",), ("run", "x.yaml", "--nosuch"), ("gate",)])
def test_a_wrong_command_line_is_one_line_and_exit_2(arguments: tuple[str, ...]) -> None:
    done = advisor(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_corrupt_gguf_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(40))
    done = advisor("run", spec(tmp_path, model=str(tmp_path / "model.gguf")), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "model.gguf" in done.stderr


def test_an_unwritable_output_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = advisor("run", spec(tmp_path), "--out", str(tmp_path / "file" / "out"))
    assert done.returncode == 2
    assert "cannot write here" in done.stderr


def test_init_writes_a_spec_that_is_refused_twice(tmp_path: Path) -> None:
    out = str(tmp_path / "workload.yaml")
    assert advisor("init", "--preset", "rag", "--out", out).returncode == 0
    assert advisor("init", "--out", out).returncode == 2


def test_report_again_is_byte_for_byte(tmp_path: Path) -> None:
    minimal().write(tmp_path / "results.json")
    for name in ("a.html", "b.html"):
        assert advisor("report", str(tmp_path), "--out", str(tmp_path / name)).returncode == 0
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_report_writes_what_its_ending_says_and_not_into_a_folder(tmp_path: Path) -> None:
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    for path in (one, other):
        minimal().write(path)
    begins = {"r.md": "#", "r.txt": "QuantAdvisor", "r.html": "<!doctype html>"}
    for name, word in begins.items():
        assert advisor("report", str(one), str(other), "--out", str(tmp_path / name)).returncode == 0
        assert (tmp_path / name).read_text().lower().startswith(word.lower()), name
    done = advisor("report", str(one), "--out", str(tmp_path))
    assert done.returncode == 2
    assert "is a folder" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("text", ["", "{", '{"schema": "quantadvisor/results/9"}', "[]"])
def test_a_broken_results_file_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(text)
    done = advisor("report", str(tmp_path), "--out", str(tmp_path / "r.html"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "r.html").exists()


def heed_interrupts() -> None:
    """What a shell without job control starts in the background ignores SIGINT, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_continue(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "quantadvisor.advisor.cli", "run", spec(tmp_path), "--out", str(tmp_path / "out")]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts)
    assert running.stderr
    line = ""
    while "Model" not in line:
        line = running.stderr.readline()
    time.sleep(1.0)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 130, said
    assert "--resume" in said
    assert not (tmp_path / "out" / "results.json").exists()
