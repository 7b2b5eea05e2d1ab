"""GPUs as this process may use them, over a fake of NVML."""

from typing import Any

import pynvml
import pytest

from quantadvisor.profiling.device import describe_device
from quantadvisor.profiling.gpus import capability, describe_gpus, environment, on_gpu

from .fake_nvml import NOT_SUPPORTED, OK, fake, gives


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Three H100; what was asked for by index or UUID."""
    seen: list[Any] = []

    def by_uuid(uuid: Any, out: Any) -> int:
        seen.append(uuid.value.decode())
        return OK

    def by_index(index: Any, out: Any) -> int:
        seen.append(index.value)
        return OK

    library = fake(nvmlDeviceGetCount_v2=gives(3), nvmlDeviceGetHandleByUUID=by_uuid, nvmlDeviceGetHandleByIndex_v2=by_index)
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return seen


def test_all_that_nvidia_smi_shows(asked: list[Any]) -> None:
    found = describe_gpus()
    assert [gpu.place for gpu in found] == ["0", "1", "2"]
    assert asked == [0, 1, 2]
    assert (found[0].name, found[0].memory_bytes, found[0].compute_capability, found[0].driver) == (
        "NVIDIA H100 80GB HBM3", 80 << 30, "9.0", "575.57.08",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("said", "places", "handles"),
    [
        ("2,0", ["2", "0"], [2, 0]),
        ("1, GPU-12ab", ["1", "GPU-12ab"], [1, "GPU-12ab"]),
        ("MIG-7", ["MIG-7"], ["MIG-7"]),
        ("1,9,0", ["1"], [1]),
        ("-1", [], []),
        ("", [], []),
    ],
)
def test_what_cuda_visible_devices_leaves(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, said: str, places: list[str], handles: list[Any]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    assert [gpu.place for gpu in describe_gpus()] == places
    assert asked == handles


def test_a_gpu_as_the_device(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    host = describe_device()
    one = on_gpu(host, 1)
    assert (one.kind, one.name, one.memory_bytes, one.host_memory_bytes) == (
        "cuda", "NVIDIA H100 80GB HBM3", 80 << 30, host.memory_bytes,
    )  # fmt: skip
    assert environment(one) == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "0"}
    assert environment(host) == {}
    assert (capability(one), capability(host)) == (90, 0)
    assert one.isa == host.isa


def test_the_fingerprint_is_identity(asked: list[Any]) -> None:
    host = describe_device()
    one, other = on_gpu(host, 0), on_gpu(host, 1)
    assert one.fingerprint == other.fingerprint != host.fingerprint
    smaller = host.gpus[0].model_copy(update={"memory_bytes": 40 << 30})
    assert on_gpu(host.model_copy(update={"gpus": (smaller,)}), 0).fingerprint != one.fingerprint
    newer = host.gpus[0].model_copy(update={"driver": "580.1"})
    assert on_gpu(host.model_copy(update={"gpus": (newer,)}), 0).fingerprint == one.fingerprint


def test_what_an_instance_does_not_tell_is_none(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlLib", fake(nvmlDeviceGetCudaComputeCapability=lambda *_: NOT_SUPPORTED))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    (only,) = describe_gpus()
    assert only.compute_capability is None
    assert capability(on_gpu(describe_device(), 0)) == 0


def test_no_driver_is_no_gpu(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlLib", fake(nvmlInitWithFlags=lambda _: pynvml.NVML_ERROR_DRIVER_NOT_LOADED))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    assert describe_gpus() == ()
