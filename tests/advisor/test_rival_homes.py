"""A package that lives in an interpreter of its own is found and timed there; no GPU is here, so by a child that is made up."""

import sys
from pathlib import Path

import pytest
import torch

from quantadvisor.advisor import gpu_home, rival_homes
from quantadvisor.advisor.gpu_home import GpuHome, contenders, rival_of
from quantadvisor.advisor.rival_homes import RivalHomes, apart, missing
from quantadvisor.advisor.selfcheck_command import beside_rivals
from quantadvisor.documents import Figure, KernelCheck, LinearShape
from quantadvisor.kernels.point import Point
from quantadvisor.kernels.rivals import MARLIN, RIVALS, Rival
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.environments import interpreter_of

from . import virtual_rivals
from .test_gpu_probe import DEVICE

VLLM = next(one for one in RIVALS["w4a16"] if one.name == MARLIN)
TORCHAO = next(one for one in RIVALS["w4a16"] if one.package == "torchao")
OURS = Figure(median=4e-6, low=4e-6, high=4e-6, kind="measured")
CHECK = KernelCheck(
    name="w4a16-g64",
    shape="M 16, N 64, K 32",
    right=True,
    times_s={"triton": OURS},
    refused={MARLIN: "not here"},
    fastest="triton",
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """vLLM lives elsewhere, everything else here."""
    monkeypatch.setenv("QA_ASKED", str(tmp_path / "asked"))
    (tmp_path / "python").symlink_to(sys.executable)
    elsewhere = str(tmp_path / "python")
    monkeypatch.setattr(rival_homes, "interpreter_of", lambda name, _: elsewhere if name == "vllm" else sys.executable)
    monkeypatch.setattr(rival_homes, "CHILD", Path(virtual_rivals.__file__))
    for module in (rival_homes, gpu_home):
        monkeypatch.setattr(module, "missing", lambda rival, _=None: None)
    return tmp_path / "asked"


def test_selfcheck_tells_its_time_beside_ours(asked: Path) -> None:
    with RivalHomes(1) as homes:
        found = beside_rivals(CHECK, homes)
        assert found.times_s[MARLIN].median == virtual_rivals.SECONDS
        assert (found.fastest, found.refused, found.times_s["triton"]) == (MARLIN, {}, OURS)
        assert asked.read_text().splitlines() == ["vllm True w4a16-g64 [16, 64, 32]"]
        for other in ({"times_s": {}}, {"name": "w8a8"}, {"shape": "B 16, heads 32/8, D 128, S 2048"}):
            given = CHECK.model_copy(update=other)
            assert beside_rivals(given, homes) == given
    assert len(asked.read_text().splitlines()) == 1


def test_what_ends_its_process_is_said_and_asked_no_more(asked: Path) -> None:
    with RivalHomes(1) as homes:
        found = beside_rivals(CHECK.model_copy(update={"shape": "M 1, N 13, K 32"}), homes)
        assert "planted: an illegal memory access" in found.refused[MARLIN]
        assert found.fastest == "triton"
        assert beside_rivals(CHECK, homes).refused == found.refused
    assert len(asked.read_text().splitlines()) == 1


def test_advisor_kernels_times_it_there_and_a_run_does_not(asked: Path, tmp_path: Path) -> None:
    """A run looks for products that its models can call."""
    kinds = {"w4a16-g64": scheme("w4-g64-bf16")}
    (marlin,) = (one for one in contenders(kinds) if rival_of(one))
    assert (marlin.option, marlin.runtime) == (MARLIN, "vllm")
    shape = LinearShape(name="q", n=64, k=32, count=1)
    for _ in range(2):  # the second one takes what is kept
        with GpuHome(DEVICE, tmp_path / "cache") as home:
            (found,) = home.take([Point(marlin, shape, 16)], end=float("inf"))
        assert found.time_s and found.time_s.median == virtual_rivals.SECONDS
    assert len(asked.read_text().splitlines()) == 1
    assert [one.package for one in (VLLM, TORCHAO) if apart(one)] == ["vllm"]


@pytest.mark.skipif(interpreter_of("vllm") == sys.executable, reason="vLLM has no interpreter of its own here: make runtime-vllm")
def test_the_interpreter_that_vllm_lives_in_is_asked() -> None:
    assert missing(VLLM) is None
    assert missing(Rival("absent", "no_such_package", lambda x, w: None)) == "no_such_package is not installed"
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with RivalHomes(1) as homes:
        said = homes.ask(VLLM, "w4a16-g64", (1, 64, 64))
    assert "CUDA" in said["refused"]  # its torch has none either
