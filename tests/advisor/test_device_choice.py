"""`device:` of a spec, on a CPU machine and on planted GPUs."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quantadvisor.advisor import candidates, cli, device_choice, listings, pipeline
from quantadvisor.advisor.device_choice import chosen_device
from quantadvisor.documents import BadInput, Device, Gpu
from quantadvisor.reports.html import render_html
from quantadvisor.reports.text import render_text

from ..reports import sample
from .documents import workload

H100 = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=80 << 30, compute_capability="9.0", driver="575", place="3")
CPU = Device(name="a CPU", cores=8, threads=8, memory_bytes=1 << 36, fingerprint="f")


def plant(monkeypatch: pytest.MonkeyPatch, *gpus: Gpu, able: tuple[str, ...] = ()) -> None:
    """A machine with those GPUs, on which these runtimes compute."""
    monkeypatch.setattr(device_choice, "describe_device", lambda: CPU.model_copy(update={"gpus": gpus}))
    monkeypatch.setattr(device_choice.nvml, "why_not", lambda: None if gpus else "NVML finds no GPU")
    monkeypatch.setattr(candidates, "refusal", lambda name, *_: None if name in able else "not installed")


@pytest.mark.parametrize(("device", "kind"), [("auto", "cuda"), ("cuda:0", "cuda"), ("cuda", "cuda"), ("cpu", "cpu")])
def test_a_gpu_that_a_runtime_can_use(monkeypatch: pytest.MonkeyPatch, device: str, kind: str) -> None:
    plant(monkeypatch, H100, able=("vllm",))
    assert chosen_device(workload(device=device)).kind == kind


def test_auto_takes_the_cpu_where_no_runtime_that_is_asked_for_uses_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, H100, able=("vllm",))
    assert chosen_device(workload(runtimes=["torch"])).kind == "cpu"
    plant(monkeypatch)
    assert chosen_device(workload()).kind == "cpu"


OLD = "the NVIDIA driver runs CUDA up to 12.2, torch is built for CUDA 13.0: update the driver"


class Heard:
    """A progress that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        yield

    def say(self, what: str) -> None:
        self.said.append(what)


def plant_an_old_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch and vLLM run on that machine's CPU; its driver is too old for either."""

    def refused(name: str, python: str, path: str | None, options: tuple[str, ...], isa: tuple[str, ...]) -> str | None:
        return OLD if "cuda" in options or name == "triton" else None

    plant(monkeypatch, H100)
    monkeypatch.setattr(candidates, "refusal", refused)


UNUSED = f"device: auto leaves {H100.name} unused: torch, vllm: {OLD}; openvino: nothing is offered for it on a GPU: device: cpu"


def test_why_auto_left_the_gpu_unused_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    plant_an_old_driver(monkeypatch)
    device = chosen_device(workload(runtimes=["torch", "vllm", "openvino"]))
    assert (device.kind, device.gpus, device.notes) == ("cpu", (H100,), (UNUSED,))
    assert chosen_device(workload(device="cpu")).notes == ()
    assert chosen_device(workload(runtimes=[{"name": "vllm", "url": "http://127.0.0.1:1"}])).notes == ()
    plant(monkeypatch, H100, able=("vllm",))
    assert chosen_device(workload(runtimes=["torch", "vllm"])).notes == ()


def test_why_the_gpu_is_unused_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_an_old_driver(monkeypatch)

    def no_model(*_: object) -> None:
        raise BadInput("model", "none")

    monkeypatch.setattr(pipeline, "load_model", no_model)
    heard = Heard()
    with pytest.raises(BadInput, match="model"):
        pipeline.Run(workload(runtimes=["torch", "vllm", "openvino"]), tmp_path, False, heard)
    assert heard.said == [UNUSED]
    heard = Heard()
    listings.kernels(listings.Asked(), 1.0, heard)
    assert OLD in heard.said[0]
    heard = Heard()
    monkeypatch.setattr(listings.catalogue, "runtimes_here", lambda *_, **__: ())
    listings.runtimes(listings.Asked(), heard)
    assert OLD in heard.said[0]


def test_the_listings_take_a_device() -> None:
    for command in ("runtimes", "kernels"):
        done = CliRunner().invoke(cli.app, [command, "--device", "gpu"])
        assert "--device: 'gpu' is no device" in str(done.exception)


def test_why_the_gpu_is_unused_stands_in_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = sample.minimal()
    assert "leaves" not in render_text(made)
    made = made.model_copy(update={"device": made.device.model_copy(update={"notes": (UNUSED,)})})
    assert f"Note: {UNUSED}" in render_text(made)
    assert OLD in render_html([made])
    cli.show(made, tmp_path, as_json=False, quiet=False)
    assert OLD in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "gpus", "line"),
    [
        ("cuda:0", (), "device: 'cuda:0' is not here: this machine has a CPU; NVML finds no GPU; use auto or cpu, or install"),
        ("cuda:2", (H100, H100), "'cuda:2' is not here: NVML finds 2: cuda:0 NVIDIA H100 80GB HBM3, cuda:1 NVIDIA H100"),
        ("gpu", (H100,), "device: 'gpu' is no device; use auto, cpu, or cuda:0 for the first GPU"),
        ("cuda:-1", (H100,), "'cuda:-1' is no device"),
    ],
)
def test_bad_devices_end_in_one_line(monkeypatch: pytest.MonkeyPatch, device: str, gpus: tuple[Gpu, ...], line: str) -> None:
    plant(monkeypatch, *gpus, able=("torch",))
    with pytest.raises(BadInput) as error:
        chosen_device(workload(device=device))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_a_named_gpu_is_taken_even_where_nothing_runs_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the reasons of the runtimes are what the user is told."""
    plant(monkeypatch, H100)
    device = chosen_device(workload(device="cuda:0"))
    with pytest.raises(BadInput, match=r"can run on NVIDIA H100 80GB HBM3: .*: not installed"):
        candidates.check_runtimes(workload(runtimes=["torch", "vllm"]), device)
    with pytest.raises(BadInput, match="openvino: nothing is offered for it on a GPU: device: cpu"):
        candidates.check_runtimes(workload(runtimes=["openvino"]), device)


def test_run_ends_in_exit_2(tmp_path: Path) -> None:
    spec = tmp_path / "chat.yaml"
    spec.write_text(
        "schema: quantadvisor/workload/1\nmodel: builtin:smollm2-135m\ndevice: cuda:7\n"
        "traffic: {prompt_tokens: 8, output_tokens: 2, concurrency: 1}\n"
    )
    command = [sys.executable, "-P", "-m", "quantadvisor.advisor.cli", "run", str(spec), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    said = done.stderr.strip().splitlines()
    assert len([line for line in said if "cuda:7" in line]) == 1
    assert not (tmp_path / "out" / "results.json").exists()
