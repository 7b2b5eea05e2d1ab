"""action.yml: its steps run as shell, in a repository with a branch, an older main, and stand-ins for Python and the gate."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
PYTHON = """#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then exec {real} -m venv --without-pip "$3"; fi
exec {real} "$@"
"""
ADVISOR = """#!/bin/sh
printf '%s\\n' "$@" > "$RUNNER_TEMP/asked"
printf '{{"schema":"x","state":"{state}","exit_code":{code},"metrics":[{{"state":"pass"}}]}}'
exit {code}
"""
BUILD = (
    'mkdir -p "$ARTIFACT" && cp value "$ARTIFACT" && command -v python > "$ARTIFACT/python" && echo x >> "$RUNNER_TEMP/builds"'
)


def git(folder: Path, *arguments: str) -> str:
    name = ("-c", "user.name=t", "-c", "user.email=t@t")
    return subprocess.run(["git", *name, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder: Path, value: str) -> None:
    (folder / "value").write_text(value)
    git(folder, "add", ".")
    git(folder, "commit", "-qm", value)


class Job:
    """A runner's job on a checkout whose branch left main at "old"; main has moved to "newer" since."""

    def __init__(self, folder: Path, state: str = "pass", code: int = 0) -> None:
        self.folder, self.outputs = folder, dict[str, str]()
        origin, self.checkout = folder / "origin", folder / "check out"
        origin.mkdir()
        git(origin, "init", "-q", "-b", "main")
        commit(origin, "old")
        git(folder, "clone", "-q", str(origin), str(self.checkout))
        git(self.checkout, "checkout", "-q", "-b", "change")
        commit(self.checkout, "new")
        commit(origin, "newer")
        self.programs = folder / "programs"
        self.programs.mkdir()
        self.temp = folder / "runner temp"
        self.temp.mkdir()
        for name, text in (
            ("python", PYTHON.format(real=sys.executable)),
            ("gatekeeper", ADVISOR.format(state=state, code=code)),
        ):
            (self.programs / name).write_text(text)
            (self.programs / name).chmod(0o755)
        inputs = {name: str(given.get("default", "")) for name, given in ACTION["inputs"].items()}
        self.inputs = inputs | {"workload": "spec.yaml", "build": BUILD, "install": "true", "advisor": "gatekeeper"}

    def known(self, name: str) -> str:
        """The value of one operand of a workflow expression."""
        kind, _, key = name.partition(".")
        if kind == "inputs":
            return self.inputs[key]
        return {"github.base_ref": "main"}.get(name) or self.outputs[key.replace(".outputs.", " ")]

    def evaluated(self, text: str) -> str:
        def value(found: re.Match[str]) -> str:
            return next((v for v in map(self.known, found[1].split(" || ")) if v), "")

        return re.sub(r"\$\{\{ (.+?) \}\}", value, text)

    def run(self) -> int:
        """Every shell step in turn, as `bash --noprofile --norc -eo pipefail` of the runner; the last one's exit code."""
        code = 0
        for step in ACTION["runs"]["steps"]:
            if "run" in step:
                code = self.step(step)
                if code:
                    break
        return code

    def step(self, step: dict[str, Any]) -> int:
        script, output = self.folder / "step.sh", self.folder / "output"
        script.write_text(step["run"])
        output.write_text("")
        env = {"PATH": f"{self.programs}:/usr/bin:/bin", "HOME": str(self.folder), "RUNNER_TEMP": str(self.temp)}
        env |= {"GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(self.folder / "summary")}
        env |= {name: self.evaluated(str(text)) for name, text in step.get("env", {}).items()}
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
        done = subprocess.run(command, cwd=self.checkout, env=env, capture_output=True, text=True, check=False)
        for line in output.read_text().splitlines():
            name, _, value = line.partition("=")
            self.outputs[f"{step['id']} {name}"] = value
        assert "command not found" not in done.stderr, done.stderr
        return done.returncode


def test_both_sides_are_built_by_their_own_checkout_and_gated(tmp_path: Path) -> None:
    job = Job(tmp_path)
    assert job.run() == 0
    work = Path(job.outputs["base work"])
    assert (work / "baseline" / "value").read_text() == "old"  # the merge base, not what main is now
    assert (work / "candidate" / "value").read_text() == "new"
    for side in ("baseline", "candidate"):
        assert (work / side / "python").read_text().strip() == str(work / f"env-{side}" / "bin" / "python")
    asked = (job.temp / "asked").read_text().splitlines()
    assert asked[:5] == ["gate", str(work / "baseline"), str(work / "candidate"), "--workload", "spec.yaml"]
    assert asked[asked.index("--on-inconclusive") + 1] == "warn"
    assert "--time-budget" not in asked  # a budget that was asked for and is too short is an error, not a warning
    assert asked[asked.index("--markdown") + 1] == str(tmp_path / "summary")
    assert job.outputs["gate state"] == "pass"
    assert Path(job.outputs["gate json"]).is_file()


def test_the_options_are_the_gates_own(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.inputs["time-budget"] = "300"
    job.run()
    said = subprocess.run(
        [sys.executable, "-P", "-m", "quantadvisor.advisor.cli", "gate", "--help"],
        capture_output=True, text=True, check=True,
        env={"COLUMNS": "200", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT / "src")},
    ).stdout  # fmt: skip
    options = [word for word in (job.temp / "asked").read_text().splitlines() if word.startswith("--")]
    assert options
    assert [option for option in options if option not in said] == []


@pytest.mark.parametrize(("state", "code"), [("regression", 1), ("anomalous", 3), ("inconclusive", 0)])
def test_the_gates_exit_code_is_the_steps(tmp_path: Path, state: str, code: int) -> None:
    job = Job(tmp_path, state, code)
    assert job.run() == code
    assert job.outputs["gate state"] == state


def test_a_restored_baseline_is_not_built_again_and_a_cut_one_is(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.run()
    keys = job.outputs["base baseline"], job.outputs["base recipe"]
    job.run()
    assert (job.temp / "builds").read_text().count("x") == 3  # baseline once, candidate twice
    assert (job.outputs["base baseline"], job.outputs["base recipe"]) == keys
    (Path(job.outputs["base work"]) / "baseline" / ".whole").unlink()
    job.run()
    assert (job.temp / "builds").read_text().count("x") == 5


def test_without_a_pull_request_the_commit_before_is_the_baseline(tmp_path: Path) -> None:
    job = Job(tmp_path)
    commit(job.checkout, "newest")
    first = ACTION["runs"]["steps"][0]
    script = {**first, "env": {**first["env"], "BASE_REF": ""}}
    assert job.step(script) == 0
    assert (Path(job.outputs["base work"]) / "tree" / "value").read_text() == "new"


def test_a_build_that_fails_fails_the_job(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.inputs["build"] = "false"
    assert job.run() != 0
    assert not (job.temp / "asked").exists()
