"""What an `advisor selfcheck` forbids on the device that it was of."""

from itertools import product
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


def test_what_is_slower_at_some_sizes_is_not_picked_there() -> None:
    """The next larger M decides, as far as it lies on the same side of 64 rows; without rows, all sizes together."""
    record(check("w4a16-g64", shape="M 1, N 8, K 8", speed="slower"), check("w4a16-g64", shape="M 16, N 8, K 8"))
    at = {m: refusal(GPU, ["w4a16-g64"], VERSIONS, [m]) for m in (1, 2, 16, 17, 64, 65, 4096)}
    assert [m for m, said in at.items() if said] == [1]
    assert "slower on Made-up GPU 3000, sm_90 than the 16-bit operator that it replaces, at M 1, N 8, K 8" in str(at[1])
    assert refusal(GPU, ["w4a16-g64"], VERSIONS, [4096, 1]) is not None
    assert refusal(GPU, ["w4a16-g64"], VERSIONS) is None
    record(check("w4a16-g64", shape="M 1, N 8, K 8"), check("w4a16-g64", shape="M 16, N 8, K 8", speed="slower"),
           check("w4a16-g64", shape="M 512, N 8, K 8", speed="slower"))  # fmt: skip
    assert [m for m in (1, 2, 64, 65, 4096) if refusal(GPU, ["w4a16-g64"], VERSIONS, [m])] == [2, 64, 65, 4096]
    record(check("decode-attention-int4", shape="B 16, heads 32/8, D 128, S 2048", speed="slower"))
    assert "slower" in str(refusal(GPU, ["decode-attention-int4"], VERSIONS, [1]))


@pytest.mark.parametrize("speeds", list(product(["faster", "tied", "slower", None], repeat=3)))
def test_exit_code_and_choice_agree(speeds: tuple[Any, ...]) -> None:
    """Selfcheck fails exactly where there is a number of rows at which the kernel is not picked."""
    checks = [check("w8a8", shape=f"M {m}, N 8, K 8", speed=speed) for m, speed in zip((1, 16, 512), speeds, strict=True)]
    record(*checks)
    failed = SelfCheck(proof="gpu", device=GPU, versions=VERSIONS, note="", kernels=tuple(checks)).failed
    refused = {m for m in (1, 8, 16, 64, 100, 512, 2048) if refusal(GPU, ["w8a8"], VERSIONS, [m])}
    assert bool(failed) == bool(refused)
    assert {int(one.shape.split(",")[0][2:]) for one in failed} <= refused


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
    assert ran("torch", ("cuda",), found) == ("a", "b")
    assert ran("torch", ("cuda", "compile"), found) == ran("vllm", ("cuda",), found) == ()
    assert all(one.proof == "gpu" and one.runtimes for one in shipped()), "a report in the repository that shows no runtime"
