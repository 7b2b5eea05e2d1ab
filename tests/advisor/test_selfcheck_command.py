"""`advisor selfcheck` in a shell, and its decisions over made-up devices: none is here, and no kernel ever ran on one."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer

from quantadvisor.advisor import selfcheck_command, selfcheck_runtimes
from quantadvisor.documents import CandidateFailed, Figure, KernelCheck, RuntimeCheck, SelfCheck, compared
from quantadvisor.kernels import processes, selfcheck_record
from quantadvisor.kernels.triton_subjects import COMPILED
from quantadvisor.profiling import nvml


def figure(median: float) -> Figure:
    return Figure(median=median, low=median * 0.99, high=median * 1.01)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    out = tmp_path_factory.mktemp("selfcheck")
    command = [sys.executable, "-P", "-m", "quantadvisor.advisor.cli", "selfcheck", "--interpreted", "--json", "--out", str(out)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(command, capture_output=True, text=True, timeout=170, env=environment), out


def test_every_kernel_gives_the_right_numbers(interpreted: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, out = interpreted
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = SelfCheck.model_validate_json(done.stdout)
    assert found == SelfCheck.read(out / "selfcheck.json")
    assert {one.name for one in found.kernels} == set(COMPILED)
    assert all(one.right and one.error is not None and one.error <= 1 for one in found.kernels)
    assert all(one.speed is None and not one.times_s for one in found.kernels)
    assert found.proof == "interpreted"
    assert "never run on a GPU" in found.note
    for one in found.kernels:
        assert one.compiled_for == ((89, 90, 100, 120) if one.name == "fp8" else (80, 89, 90, 100, 120)), one.name


def test_its_page_says_never_run_on_a_gpu(interpreted: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    text = (interpreted[1] / "selfcheck.html").read_text(encoding="utf-8")
    assert "interpreted; never run on a GPU" in text
    assert "http" not in text.replace("http-equiv", "")
    assert text.count("✓ right") == len(json.loads(interpreted[0].stdout)["kernels"])


class Answers:
    """A child that says what a test wants."""

    said: Mapping[str, Any] = {}
    asked: list[dict[str, Any]]

    def __init__(self, *_: object) -> None:
        Answers.asked = []

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, *_: object) -> None: ...

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        Answers.asked.append(request)
        found = self.said[request["probe"]]
        if isinstance(found, list):
            found = found.pop(0)
        if isinstance(found, Exception):
            raise found
        return dict(found)


LISTED = {"subjects": ["w8a8 1x2x3"], "device": "Made-up GPU, sm_90", "versions": {"triton": "3.9.0"}}
RIGHT = {"name": "w8a8", "shape": "M 1, N 2, K 3", "right": True, "error": 0.5}


def times(ours: float, plain: float) -> dict[str, Any]:
    figures = {"triton": figure(ours), "16 bit": figure(plain)}
    found = {name: one.model_dump() for name, one in figures.items()}
    return RIGHT | {"times_s": found, "speed": compared(figures["triton"], figures["16 bit"]), "fastest": "triton"}


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QUANTADVISOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(nvml, "why_not", lambda: None)
    monkeypatch.setattr(processes, "ProbeProcess", Answers)
    monkeypatch.setattr(selfcheck_runtimes, "checks", lambda: ())


@pytest.mark.usefixtures("with_gpu")
@pytest.mark.parametrize(
    ("answer", "fails", "said"),
    [
        (times(1e-5, 2e-5), False, ""),
        (times(1e-5, 1.01e-5), False, ""),
        (times(2e-5, 1e-5), True, "slower than the 16-bit operator"),
        (RIGHT | {"right": False, "error": 7.0, "reason": "an error 7 times what the formats allow"}, True, "7 times"),
        ({"failed": "OutOfResources: shared memory"}, True, "OutOfResources"),
        (CandidateFailed("its process died at w8a8 (signal SIGSEGV)"), True, "SIGSEGV"),
    ],
    ids=["faster", "tied", "slower", "wrong", "does not launch", "crash"],
)
def test_what_ends_in_exit_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: Any, fails: bool, said: str
) -> None:
    monkeypatch.setattr(Answers, "said", {"list": LISTED, "w8a8 1x2x3": answer})
    code = 0
    try:
        selfcheck_command.selfcheck(out=tmp_path / "here")
    except typer.Exit as end:
        code = end.exit_code
    assert code == (1 if fails else 0)
    assert said in " ".join(capsys.readouterr().err.split())
    found = SelfCheck.read(tmp_path / "here" / "selfcheck.json")
    assert found.proof == "gpu"
    assert [one.passed for one in found.kernels] == [not fails]
    assert all(not request["interpreted"] for request in Answers.asked)


@pytest.mark.usefixtures("with_gpu")
@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        (RuntimeCheck(name="torch", options=("cuda",), right=True, kl=1e-5, on_gpu=("gemm",)), 0, "✓ torch+cuda: KL 1.0e-05"),
        (RuntimeCheck(name="vllm", options=("cuda",), refused="not installed"), 0, "- vllm+cuda: not installed"),
        (RuntimeCheck(name="torch", options=("cuda",), reason="CUDA error"), 1, "✗ torch+cuda: CUDA error"),
    ],
    ids=["right", "refused", "wrong"],
)
def test_a_runtime_that_is_wrong_ends_in_exit_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], found: Any, code: int, said: str
) -> None:
    monkeypatch.setattr(Answers, "said", {"list": LISTED, "w8a8 1x2x3": times(1e-5, 2e-5)})

    def checks() -> tuple[RuntimeCheck, ...]:
        assert selfcheck_record.known("Made-up GPU, sm_90", {"triton": "3.9.0"})  # which the triton runtime asks
        return (found,)

    monkeypatch.setattr(selfcheck_runtimes, "checks", checks)
    ended = 0
    try:
        selfcheck_command.selfcheck(out=tmp_path / "here")
    except typer.Exit as end:
        ended = end.exit_code
    assert (ended, SelfCheck.read(tmp_path / "here" / "selfcheck.json").runtimes) == (code, (found,))
    assert said in " ".join(capsys.readouterr().err.split())
    text = (tmp_path / "here" / "selfcheck.html").read_text(encoding="utf-8")
    assert f"{found.name}+cuda" in text


@pytest.mark.usefixtures("with_gpu")
def test_a_gpu_that_torch_cannot_use_is_said_and_numbers_are_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = {"failed": "torch 2.13.0+cpu is built without CUDA"}
    monkeypatch.setattr(Answers, "said", {"list": [refusal, LISTED], "w8a8 1x2x3": RIGHT})
    found = selfcheck_command.examined(interpreted=False)
    assert found.proof == "interpreted"
    assert found.note.startswith("no GPU here (torch 2.13.0+cpu is built without CUDA)")
    assert [request["interpreted"] for request in Answers.asked] == [False, True, True]


@pytest.mark.usefixtures("with_gpu")
def test_without_triton_nothing_can_be_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Answers, "said", {"list": {"failed": "ModuleNotFoundError: No module named 'triton'"}})
    with pytest.raises(Exception, match="triton is needed"):
        selfcheck_command.selfcheck(interpreted=True, out=tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_out_must_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Exception, match="is a file"):
        selfcheck_command.selfcheck(out=tmp_path / "file")


def test_disjoint_intervals_decide() -> None:
    assert compared(figure(1.0), figure(1.0)) == "tied"
    assert compared(figure(1.0), figure(1.1)) == "faster"
    assert compared(figure(1.1), figure(1.0)) == "slower"


def test_a_kernel_that_breaks_a_rule_at_a_target_is_not_compiled_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from quantadvisor.kernels import triton_compile

    table = json.loads(triton_compile.GOLDEN.read_text(encoding="utf-8"))
    name = next(one for one in table["kernels"] if one.startswith("w8a8/") and one.endswith("sm_90"))
    table["kernels"][name]["spills"] = 4
    (tmp_path / "golden.json").write_text(json.dumps(table))
    monkeypatch.setattr(triton_compile, "GOLDEN", tmp_path / "golden.json")
    assert selfcheck_command.compiled_for("w8a8") == (80, 89, 100, 120)


def test_a_page_of_a_gpu_names_times_clocks_and_who_was_missing() -> None:
    from quantadvisor.reports.selfcheck import page

    clock = {"sm_mhz": (1200, 1400, 1410), "power_w": 312.4, "temperature_c": 61, "throttling": ("power cap",), "mig": True}
    state = {"readings": 9, **clock}
    one = KernelCheck.model_validate(times(2e-5, 1e-5) | {"refused": {"GemLite <b>": "not installed"}, "gpu": state})
    text = page(SelfCheck(proof="gpu", device="Made-up GPU", versions={}, note="graphs", kernels=(one,)))
    assert "1 slower than what they replace" in text
    assert "1200–1410 MHz, 312 W, 61 °C, power cap, MIG" in text
    assert "GemLite &lt;b&gt;: not installed" in text
