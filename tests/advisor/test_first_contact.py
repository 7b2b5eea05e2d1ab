"""Which Triton kernels a run checks on a GPU that it meets for the first time, and what it then refuses."""

import json
from pathlib import Path

import pytest

from quantadvisor.advisor import first_contact
from quantadvisor.advisor.first_contact import check_kernels, cited, kernels_of, products, proven
from quantadvisor.documents import Device, Gpu, KernelCheck, SelfCheck
from quantadvisor.documents.selfcheck import RuntimeCheck
from quantadvisor.kernels import gpu_timing
from quantadvisor.kernels.triton_subjects import COMPILED
from quantadvisor.methods.schemes import scheme

from .documents import candidate, workload

NAME = "NVIDIA Virtual V1"
GPU = Gpu(name=NAME, memory_bytes=80 << 30, compute_capability="9.0", place="5")
DEVICE = Device(kind="cuda", name=NAME, cores=1, threads=1, memory_bytes=80 << 30, gpus=(GPU,), fingerprint="f")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file that notes every subject that was checked."""
    monkeypatch.setenv("QUANTADVISOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("QA_GPU", f"{NAME}, sm_90")
    monkeypatch.setenv("QA_VERSIONS", json.dumps(gpu_timing.versions()))
    monkeypatch.setenv("QA_CHECKED", str(tmp_path / "checked"))
    monkeypatch.setattr(first_contact, "CHILD", Path(__file__).with_name("virtual_selfcheck.py"))
    return tmp_path / "checked"


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("bf16", ()),
        ("w8a8-bf16", ("w8a8",)),
        ("fp8-bf16", ("fp8",)),
        ("w4-g64-bf16", ("w4a16-g64-asymmetric",)),
        ("w8-g64-bf16", ("w8a16-g64",)),
        ("nf4-b64-bf16", ("codebook-nf4",)),
        ("w8a8-outlier-fp16", ("llm-int8",)),
        ("bf16-kv4-turbo", ("decode-attention-turbo",)),
        ("w8a8-bf16-kvf8-unit", ("w8a8", "decode-attention-fp8")),
    ],
)
def test_kernels_of_a_scheme(name: str, kernels: tuple[str, ...]) -> None:
    assert kernels_of(scheme(name), ()) == kernels


def test_what_the_catalogue_cites_can_be_checked() -> None:
    assert cited()
    assert cited() <= set(COMPILED)
    assert set(products()) | {"llm-int8"} == {kernel for kernel in cited() if not kernel.startswith("decode-attention-")}


def test_only_what_is_cited_is_checked_and_once(asked: Path) -> None:
    work = workload(runtimes=["triton"])
    check_kernels(work, DEVICE, lambda _: None)
    seen = asked.read_text().splitlines()
    assert {name.partition(" ")[0] for name in seen} == cited()
    assert len(seen) == 2 * len(cited())  # each at both shapes
    check_kernels(work, DEVICE, lambda _: None)
    assert asked.read_text().splitlines() == seen


def test_what_selfcheck_found_there_stands(asked: Path) -> None:
    """Its kernels are not checked again, and what it says of runtimes is kept."""
    runtime = RuntimeCheck(name="torch", options=("cuda",), right=True)
    fp8 = KernelCheck(name="fp8", shape="s", right=False, reason="seen before")
    record = first_contact.selfcheck_record
    found = SelfCheck(
        proof="gpu", device=f"{NAME}, sm_90", versions=gpu_timing.versions(), note="by hand", kernels=(fp8,), runtimes=(runtime,)
    )
    record.keep(found)
    check_kernels(workload(runtimes=["triton"]), DEVICE, lambda _: None)
    assert "fp8" not in {name.partition(" ")[0] for name in asked.read_text().splitlines()}
    now = record.known(f"{NAME}, sm_90", gpu_timing.versions())
    assert now
    assert (now.note, now.runtimes, now.kernels[0]) == ("by hand", (runtime,), fp8)
    assert cited() <= {one.name for one in now.kernels}


def test_other_versions_are_checked_anew(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_kernels(workload(runtimes=["triton"]), DEVICE, lambda _: None)
    before = len(asked.read_text().splitlines())
    monkeypatch.setattr(first_contact.selfcheck_record, "known", lambda *_: None)
    check_kernels(workload(runtimes=["triton"]), DEVICE, lambda _: None)
    assert len(asked.read_text().splitlines()) == 2 * before


def test_wrong_and_slow_kernels_refuse_their_candidates(asked: Path) -> None:
    names = (
        "dynamic_int8-w8a8-bf16@triton", "fp8-fp8-bf16@triton", "none-bf16@triton", "kv_fp8-bf16-kvf8-unit@triton",
        "dynamic_int8-w8a8-bf16@vllm+cuda",
    )  # fmt: skip
    plain = [candidate(name, 1.0) for name in names]
    before = {one.name: one.refused for one in proven(plain, DEVICE, [8])}
    assert "never checked" in str(before["fp8-fp8-bf16@triton"])
    check_kernels(workload(runtimes=["triton"]), DEVICE, lambda _: None)
    after = {one.name: one.refused for one in proven(plain, DEVICE, [8])}
    assert "w8a8 is wrong on NVIDIA Virtual V1, sm_90 (1x40x192): planted" in str(after[names[0]])
    assert [after[name] for name in names[1:]] == [None] * 4


def test_a_slow_cache_is_never_picked(asked: Path) -> None:
    check_kernels(workload(runtimes=["triton"]), DEVICE, lambda _: None)
    versions = gpu_timing.versions()
    said = first_contact.selfcheck_record.refusal(f"{NAME}, sm_90", ["decode-attention-int4"], versions)
    assert "slower on NVIDIA Virtual V1" in str(said)


def test_a_cpu_and_other_runtimes_start_nothing(asked: Path) -> None:
    check_kernels(workload(runtimes=["torch"]), DEVICE, lambda _: None)
    check_kernels(workload(runtimes=["triton"]), DEVICE.model_copy(update={"kind": "cpu"}), lambda _: None)
    assert not asked.exists()


def test_a_torch_without_cuda_is_said(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real child: its torch has no GPU here."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("torch has a GPU here")
    monkeypatch.undo()
    said: list[str] = []
    check_kernels(workload(runtimes=["triton"]), DEVICE, said.append)
    assert "Triton kernels cannot be checked: torch" in said[0]
