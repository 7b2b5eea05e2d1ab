"""`advisor gate` from a shell: exit codes, every output, and bad input in one line."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from quantadvisor.advisor import gate_sides
from quantadvisor.advisor.cli import main
from quantadvisor.advisor.gate_record import history_page
from quantadvisor.advisor.gate_sides import artifact_bytes, differing, side_of
from quantadvisor.documents import BadInput, Device, Unavailable
from quantadvisor.profiling.environments import interpreter_of, named_interpreter

from .test_gate_stored import set_operators, stored

DEVICE = Device(name="here", cores=2, threads=2, memory_bytes=1 << 30, fingerprint="f")


SPEC = """schema: quantadvisor/workload/1
model: {model}
{more}
traffic: {{prompt_tokens: {prompt}, output_tokens: 4, concurrency: 1}}
"""


def gate(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return advisor("gate", *arguments, **environment)


def advisor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "quantadvisor.advisor.cli", *arguments]
    env = {k: v for k, v in os.environ.items() if not k.startswith("GITHUB_")} | {"COLUMNS": "200"} | environment
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=env)


@pytest.fixture(scope="module")
def documents() -> dict[str, str]:
    """The text of each results.json."""
    made = {
        "base": stored(1, spread=0.003),
        "same": stored(2, spread=0.003),
        "slow": stored(2, 1.2, spread=0.003),
        "fell": stored(2, spread=0.003, edit=set_operators),
        "noisy": stored(3, spread=0.2),
        "elsewhere": stored(2, edit=lambda d: d["device"].update(fingerprint="another")),
    }
    return {name: results.model_dump_json(indent=1) for name, results in made.items()}


@pytest.fixture
def files(documents: dict[str, str], tmp_path: Path) -> dict[str, str]:
    for name, text in documents.items():
        (tmp_path / f"{name}.json").write_text(text)
    return {name: str(tmp_path / f"{name}.json") for name in documents}


@pytest.mark.parametrize(("other", "code"), [("same", 0), ("slow", 1), ("fell", 1), ("noisy", 4), ("elsewhere", 3)])
def test_exit_codes_and_json(files: dict[str, str], other: str, code: int) -> None:
    done = gate(files["base"], files[other], "--json")
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    if code != 3:
        document = json.loads(done.stdout)
        assert document["schema"] == "quantadvisor/gate/1"
        assert document["exit_code"] == code
    else:
        assert "device.fingerprint" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_every_output(files: dict[str, str], tmp_path: Path) -> None:
    paths = {name: tmp_path / "out" / f"gate.{name}" for name in ("junit", "markdown", "html", "record")}
    options = [text for name, path in paths.items() for text in (f"--{name}", str(path))]
    for _ in range(2):
        done = gate(files["base"], files["slow"], *options, GITHUB_ACTIONS="true")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "::error title=" in done.stderr
    assert ElementTree.parse(paths["junit"]).getroot().findall("testcase/failure")
    assert "| ✗ |" in paths["markdown"].read_text()
    assert paths["html"].read_text().startswith("<!doctype html>")
    history = [json.loads(line) for line in paths["record"].read_text().splitlines()]
    assert [line["state"] for line in history] == ["regression", "regression"]
    assert "of 2 gates" in paths["html"].read_text()


def test_the_history_alone_is_drawn_by_report(files: dict[str, str], tmp_path: Path) -> None:
    record, out = tmp_path / "gates.jsonl", tmp_path / "history.html"
    for other in ("same", "slow"):
        gate(files["base"], files[other], "--record", str(record))
    record.write_text(record.read_text().rstrip("\n"))  # as an editor may leave it
    gate(files["base"], files["same"], "--record", str(record))
    assert len(record.read_text().splitlines()) == 3
    assert advisor("report", str(record), "--out", str(out)).returncode == 0
    page = out.read_text()
    assert "of 3 gates" in page
    assert page == history_page(record)


def test_a_step_summary_is_appended_to(files: dict[str, str], tmp_path: Path) -> None:
    summary = tmp_path / "summary"
    summary.write_text("what came before\n")
    gate(files["base"], files["same"], "--markdown", str(summary), GITHUB_STEP_SUMMARY=str(summary))
    assert summary.read_text().startswith("what came before\n### ✓")


def test_inconclusive_may_warn(files: dict[str, str]) -> None:
    done = gate(files["base"], files["noisy"], "--on-inconclusive", "warn", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["state"] == "inconclusive"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("{base}",), "candidate"),
        (("{base}", "/nowhere/at/all"), "does not exist"),
        (("{base}", "{folder}"), "two of a kind"),
        (("{folder}", "{folder}"), "--workload"),
        (("http://127.0.0.1:1", "{base}"), "two of a kind"),
        (("{spec}", "{base}"), "two of a kind"),
        (("a.yaml", "{base}"), "does not exist"),
        (("{spec}", "{spec}", "--workload", "{spec}"), "is in the spec"),
        (("{spec}", "{other_spec}"), "prompt_tokens differs"),
        (("{spec}", "{spec}"), "no such model"),
        (("{base}", "{same}", "--junit", "{folder}"), "is a folder"),
        (("{base}", "{same}", "--threshold", "0"), "--threshold"),
        (("{base}", "{same}", "--threshold", "nan"), "--threshold"),
        (("{base}", "{same}", "--threshold", "0.5"), "--threshold"),
        (("{base}", "{same}", "--alpha", "0.9"), "--alpha"),
        (("{base}", "{same}", "--alpha", "1e-9"), "--alpha"),
        (("{base}", "{same}", "--candidate-env", "python3"), "--candidate-env"),
        (("{base}", "{same}", "--time-budget", "-1"), "--time-budget"),
        (("{base}", "{same}", "--on-inconclusive", "shrug"), "shrug"),
        (("{base}", "{same}", "--record", "{base}/under"), "cannot write"),
        (("{base}", "{same}", "--html", "{same}"), "is what is compared"),
        (("{base}", "{same}", "--record", "{folder}/x", "--junit", "{folder}/x"), "is the output of --junit too"),
        (("{base}", "{same}", "--record", "{cut}"), "is no gate's record"),
        (("{base}", "{large}"), "is 100 MiB, more than any results document has"),
        (("{base}", "{cut}"), "cut.json"),
        (("{newer}", "{base}"), "newer.json"),
        (("{base}", "{nan}"), "nan.json"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    files: dict[str, str], tmp_path: Path, arguments: tuple[str, ...], said: str,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """In this process: those above show that a shell sees the same."""
    whole = Path(files["base"]).read_text()
    (tmp_path / "cut.json").write_text(whole[: len(whole) // 2])
    (tmp_path / "newer.json").write_text(whole.replace("quantadvisor/results/1", "quantadvisor/results/2"))
    (tmp_path / "nan.json").write_text(
        whole.replace('"threads": 2', '"threads": NaN', 1).replace('"median": 0', '"median": NaN', 1)
    )
    (tmp_path / "folder").mkdir()
    with (tmp_path / "large.json").open("wb") as large:
        large.truncate(100 << 20)  # sparse: no disk is filled
    for name, prompt in (("spec", 8), ("other_spec", 9)):
        (tmp_path / f"{name}.yaml").write_text(SPEC.format(model="./nowhere", prompt=prompt, more=""))
    named = files | {path.stem: str(path) for path in (*tmp_path.glob("*.json"), *tmp_path.glob("*.yaml"), tmp_path / "folder")}
    monkeypatch.setattr(sys, "argv", ["advisor", "gate", *(argument.format(**named) for argument in arguments)])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        main()
    stderr = capfd.readouterr().err
    assert ended.value.code == (3 if "differs" in said else 2)
    assert sorted(path.name for path in tmp_path.glob(".*")) == []  # nothing half-written
    assert said in stderr
    assert len(stderr.strip().splitlines()) == 1


def test_an_artifact_is_told_by_its_files(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such folder"):
        side_of("baseline", tmp_path / "absent", None, None, DEVICE)
    with pytest.raises(BadInput, match="is no artifact"):
        side_of("baseline", tmp_path, None, None, DEVICE)
    (tmp_path / "config.json").write_text("{}")
    assert side_of("baseline", tmp_path, None, None, DEVICE).runtime == "torch"
    with pytest.raises(BadInput, match="unknown runtime"):
        side_of("baseline", tmp_path, "tensorrt", None, DEVICE)
    with pytest.raises(Unavailable, match=r"model\.onnx"):
        side_of("baseline", tmp_path, "onnxruntime", None, DEVICE)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert side_of("baseline", tmp_path, None, sys.executable, DEVICE).runtime == "llama.cpp"
    (tmp_path / "openvino_model.xml").write_text("")
    assert side_of("baseline", tmp_path, "openvino+f32", sys.executable, DEVICE).options == ("f32", "kvf16")


def test_a_runtime_with_an_environment_of_its_own_runs_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside ours, as `make runtime-vllm` makes it; whether it can run is asked there."""
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))
    assert interpreter_of("vllm") == sys.executable
    apart = tmp_path / "env-vllm" / "bin" / "python"
    apart.parent.mkdir(parents=True)
    apart.symlink_to(sys.executable)
    assert interpreter_of("vllm") == str(apart)
    monkeypatch.setattr(gate_sides, "refusal", lambda *asked: None if asked[1] == str(apart) else "asked elsewhere")
    assert side_of("baseline", tmp_path, "vllm", None, DEVICE).python == str(apart)


def test_interpreters_versions_and_bytes(tmp_path: Path) -> None:
    assert named_interpreter("--candidate-env", sys.executable) == sys.executable
    for wrong in (str(tmp_path), "/nowhere/python"):
        with pytest.raises(BadInput, match="--candidate-env"):
            named_interpreter("--candidate-env", wrong)
    found = list(differing({"numpy": "1", "torch": "2"}, {"numpy": "1", "torch": "3", "openvino": "4"}))
    assert [(f.name, f.baseline, f.candidate) for f in found] == [("openvino", "absent", "4"), ("torch", "2", "3")]
    (tmp_path / "weights").write_bytes(bytes(7))
    (tmp_path / "built.json").write_text("{}")
    assert artifact_bytes(tmp_path) == 7


def bare_python(folder: Path) -> str:
    """An interpreter of an environment with nothing in it: no numpy, no runtime."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return str(folder / "bin" / "python")


def test_an_environment_without_the_runtime_is_one_line(tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "model.onnx").write_text("")
    write_tokenizer(artifact)
    (tmp_path / "spec.yaml").write_text(SPEC.format(model="./nowhere", prompt=8, more=""))
    options = ("--workload", str(tmp_path / "spec.yaml"), "--quality", "none", "--html", str(tmp_path / "gate.html"))
    bare = bare_python(tmp_path / "env")
    done = gate(str(artifact), str(artifact), *options, "--baseline-env", bare, "--candidate-env", bare)
    assert done.returncode == 2
    assert "its runtime does not load: ModuleNotFoundError" in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2  # the stage that failed, and the error
    assert not (tmp_path / "gate.html").exists()


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    made = Tokenizer(WordLevel({"the": 0, "[UNK]": 1}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    made.save(str(folder / "tokenizer.json"))
