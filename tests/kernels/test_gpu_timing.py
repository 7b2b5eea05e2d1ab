"""The order of a timing on a GPU, over a torch.cuda that only writes down what it is asked: no GPU is here."""

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch

from quantadvisor.kernels import gpu_timing

from ..profiling.fake_nvml import fake

inside: list[Any] = []
"""Graphs that are being captured."""


def named(name: str) -> Any:
    def call() -> None:
        if inside:
            inside[-1].call = name
        if inside and name == "waits":
            raise RuntimeError("operation not permitted when stream is capturing")

    return call


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []

    class Graph:
        call = ""

        def replay(self) -> None:
            lines.append(f"replay {self.call}")

    class Stream:
        def wait_stream(self, _: object) -> None: ...

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            lines.append("event")

        def elapsed_time(self, _: object) -> float:
            return 2.5

    @contextmanager
    def graph(of: Graph) -> Any:
        inside.append(of)
        try:
            yield
        finally:
            inside.pop()

    @contextmanager
    def stream(_: Stream) -> Any:
        yield

    fakes = {"CUDAGraph": Graph, "Stream": Stream, "Event": Event, "graph": graph, "stream": stream,
             "current_stream": Stream, "synchronize": lambda: None,
             "get_device_properties": lambda _: SimpleNamespace(L2_cache_size=60 << 20)}  # fmt: skip
    for name, stand_in in fakes.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    flush = SimpleNamespace(zero_=lambda: lines.append("flush"))

    def empty(size: int, **_: object) -> Any:
        lines.append(f"{size >> 20} MiB")
        return flush

    monkeypatch.setattr(torch, "empty", empty)
    return lines


def test_each_sample_is_one_graph_after_a_flush_interleaved(written: list[str]) -> None:
    samples, refused = gpu_timing.interleaved({"a": named("a"), "b": named("b"), "waits": named("waits")}, rounds=2, warm_s=0)
    one = ["flush", "event", "replay a", "event", "flush", "event", "replay b", "event"]
    assert written == ["256 MiB", *one, *one]
    assert samples == {"a": [2.5e-3, 2.5e-3], "b": [2.5e-3, 2.5e-3]}
    assert refused == {"waits": "no CUDA graph can hold it: operation not permitted when stream is capturing"}


def test_versions_are_of_the_driver_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cubin that one driver takes another may not: what was checked under it stays so no longer."""
    assert gpu_timing.driver() is None and "driver" not in gpu_timing.versions()
    monkeypatch.setattr(pynvml, "nvmlLib", fake())
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    assert gpu_timing.versions()["driver"] == "575.57.08"


def test_versions_are_of_our_kernels_files_too(tmp_path: Path) -> None:
    """A kernel that was changed is checked anew."""
    (tmp_path / "triton_a.py").write_text("x = 1")
    before = gpu_timing.written(tmp_path)
    gpu_timing.written.cache_clear()
    (tmp_path / "triton_a.py").write_text("x = 2")
    assert gpu_timing.written(tmp_path) != before
    assert gpu_timing.versions()["kernels"] == gpu_timing.written()
