"""Times of calls on a GPU: CUDA graphs, the L2 cache emptied before each, interleaved so that drift hits all alike.

A graph leaves out the host's launches, which hide every gain of a small kernel; emptying the L2 is what a model does, which
reads every layer's weights once a token. Events enclose the graph alone; writing the buffer that empties the cache takes
longer than the host needs to enqueue what follows, so no launch is timed. Never run on a GPU.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

Call = Callable[[], Any]
ROUNDS = 40
WARM_S = 0.5
"""Sustained work before the first sample: clocks have settled by then."""
LEAST_FLUSH_BYTES = 256 << 20


def gpu_name(number: int = 0) -> str:
    """Name and capability of a GPU, the first that is seen."""
    import torch

    major, minor = torch.cuda.get_device_capability(number)
    return f"{torch.cuda.get_device_name(number)}, sm_{major}{minor}"


def versions() -> dict[str, str]:
    """Of what a kernel is written in, of what makes its code, and of what runs it."""
    import torch
    import triton

    found = {
        "torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda, "driver": driver(),
        "kernels": written(),
    }  # fmt: skip
    return {name: version for name, version in found.items() if version}


@cache
def written(folder: Path = Path(__file__).parent) -> str:
    """Digest of our kernels' own files."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(folder.glob("triton_*.py")))).hexdigest()[:12]


def driver() -> str | None:
    """Version of the NVIDIA driver, as NVML tells it; None without one."""
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # ImportError, or any NVMLError: no driver, no permission
        return None


def captured(call: Call) -> Any:
    """The call as a CUDA graph, after three runs on a side stream, in which Triton compiles and libraries set up."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def interleaved(
    calls: Mapping[str, Call], rounds: int = ROUNDS, warm_s: float = WARM_S
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """(seconds per call, one sample a round, by name; why a name has none)."""
    import torch

    graphs: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for name, call in calls.items():
        try:
            graphs[name] = captured(call)
        except Exception as error:  # a call that waits for the host cannot be captured, and its time would be the host's
            refused[name] = f"no CUDA graph can hold it: {(str(error).strip() or type(error).__name__).splitlines()[0][:200]}"
    size = max(LEAST_FLUSH_BYTES, 2 * torch.cuda.get_device_properties(0).L2_cache_size)
    buffer = torch.empty(size, dtype=torch.int8, device="cuda")
    began = time.perf_counter()
    while graphs and time.perf_counter() - began < warm_s:
        for graph in graphs.values():
            graph.replay()
        torch.cuda.synchronize()
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, graph in graphs.items():
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            buffer.zero_()
            first.record()
            graph.replay()
            last.record()
            torch.cuda.synchronize()
            samples[name].append(first.elapsed_time(last) / 1e3)
    return samples, refused
