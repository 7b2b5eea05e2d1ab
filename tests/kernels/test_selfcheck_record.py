"""What an `advisor selfcheck` forbids on the device that it was of."""

from pathlib import Path
from typing import Any

import pytest

from quantadvisor.documents import KernelCheck, RuntimeCheck, SelfCheck
from quantadvisor.documents.selfcheck import Proof
from quantadvisor.kernels.selfcheck_record import keep, place, ran, refusal, shipped
from quantadvisor.kernels.triton_modules import CACHES, needed
from quantadvisor.kernels.triton_subjects import COMPILED

GPU, VERSIONS = "Made-up GPU 3000, sm_90", {"triton": "3.9.0"}


def check(name: str, **change: Any) -> KernelCheck:
    return KernelCheck.model_validate({"name": name, "shape": "M 1", "right": True, "speed": "faster"} | change)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QUANTADVISOR_CACHE", str(tmp_path))


def record(*kernels: KernelCheck, proof: Any = "gpu") -> None:
    keep(SelfCheck(proof=proof, device=GPU, versions=VERSIONS, note="", kernels=kernels))


def test_what_passed_may_be_picked() -> None:
    record(check("w8a8"), check("w8a8", speed="slower"), check("fp8", speed=None))
    assert refusal(GPU, ["w8a8", "fp8"], VERSIONS) is None


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (check("w8a8", right=False, reason="an error 7 times"), "w8a8 is wrong on Made-up GPU 3000"),
        (check("w8a8", speed="slower"), "slower on Made-up GPU 3000"),
        (check("fp8"), "w8a8 was not checked"),
    ],
)
def test_what_did_not_pass_is_named(one: KernelCheck, said: str) -> None:
    record(one)
    assert said in str(refusal(GPU, ["w8a8"], VERSIONS))


def test_other_devices_other_versions_and_the_interpreter_say_nothing() -> None:
    record(check("w8a8"), proof="interpreted")
    assert "never checked" in str(refusal(GPU, ["w8a8"], VERSIONS))
    record(check("w8a8"))
    assert "other versions" in str(refusal(GPU, ["w8a8"], {"triton": "3.10"}))
    assert "never checked" in str(refusal("Another GPU, sm_90", ["w8a8"], VERSIONS))
    place(GPU).write_text("{")
    assert "never checked" in str(refusal(GPU, ["w8a8"], VERSIONS))


def test_every_kernel_that_a_checkpoint_takes_is_one_that_is_checked() -> None:
    packed = {
        "format": "pack-quantized",
        "config_groups": {name: {"weights": {"num_bits": 4, "group_size": group}} for name, group in (("a", 32), ("b", 128))},
    }
    assert needed(packed, ("kvint4",)) == ["w4a16-g128", "w4a16-g32", "decode-attention-int4"]
    assert needed({}, ()) == []
    for layout in ("int-quantized", "float-quantized"):
        for option in CACHES:
            assert set(needed({"format": layout}, (option,))) <= set(COMPILED)


def test_reports_in_the_repository_say_which_runtime_ran_where(tmp_path: Path) -> None:
    """Right ones on a GPU alone: not wrong ones, not refused ones, not the interpreter's."""

    def report(device: str, proof: Proof, *runtimes: RuntimeCheck) -> None:
        made = SelfCheck(proof=proof, device=device, versions={}, note="", kernels=(), runtimes=runtimes)
        made.write(tmp_path / f"{device}.json")

    right = RuntimeCheck(name="torch", options=("cuda",), right=True)
    report("b", "gpu", right, RuntimeCheck(name="vllm", options=("cuda",), reason="wrong"))
    report("a", "gpu", right, RuntimeCheck(name="vllm", options=("cuda",), refused="not here"))
    report("c", "interpreted", right)
    found = shipped(tmp_path)
    assert ran("torch", found) == ("a", "b")
    assert ran("vllm", found) == ()
    assert all(one.proof == "gpu" and one.runtimes for one in shipped()), "a report in the repository that shows no runtime"
