"""ONNX Runtime on an NVIDIA GPU: its CUDA and TensorRT execution providers, caches bound on the device, what each node got.

Device 0 of what the process sees. Without a provider's libraries ONNX Runtime goes on with the CPU and says so in its log
only; here that is an error. Written against the documented interfaces; its refusals were seen with onnxruntime-gpu on a machine
without a GPU, its sessions with stand-ins: never run on a GPU.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
from pathlib import Path
from typing import Any

from . import nvidia

PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
CPU = "CPUExecutionProvider"
PACKAGES = "'onnxruntime-gpu[cuda,cudnn]' nvidia-ml-py"
MEND = f"pip uninstall -y onnxruntime && pip install {PACKAGES}"
LEAST_SUBGRAPH = 5
"""Nodes that TensorRT takes at once; the few that count the attention mask change their shape at every token and are left out."""


def refusal(options: tuple[str, ...]) -> str | None:
    if unknown := [option for option in options if option not in PROVIDERS]:
        return f"onnxruntime has no option {unknown[0]!r}; it has {', '.join(PROVIDERS)}"
    if len(options) > 1:
        return f"one execution provider at a time, not {' and '.join(options)}"
    if not options:
        return None
    if not library(options[0]):
        version = nvidia.stated("onnxruntime", "capi/build_and_package_info.py", "__version__")
        return f"onnxruntime {version} is built without {PROVIDERS[options[0]]}: {MEND}"
    built = nvidia.stated("onnxruntime", "capi/build_and_package_info.py", "cuda_version")
    if reason := nvidia.refusal("onnxruntime-gpu", built, MEND):
        return reason
    if options[0] == "tensorrt" and not has_tensorrt():
        return "TensorRT's library (libnvinfer) is not here: pip install tensorrt"
    return None


def library(option: str) -> bool:
    """Is the provider's library in the package?"""
    folder = nvidia.package_folder("onnxruntime")
    return folder is not None and any((folder / "capi").glob(f"*onnxruntime_providers_{option}.*"))


def has_tensorrt() -> bool:
    return importlib.util.find_spec("tensorrt_libs") is not None or ctypes.util.find_library("nvinfer") is not None


def providers(option: str) -> list[Any]:
    """What InferenceSession is given. The arena grows by what is asked for, not to the next power of two, so that the memory
    read is the memory needed. TensorRT keeps its timings of tactics between processes; its engines it builds anew, since it
    would not see that a graph of the same name has other weights."""
    cuda = (PROVIDERS["cuda"], {"device_id": "0", "arena_extend_strategy": "kSameAsRequested"})
    if option == "cuda":
        return [cuda, CPU]
    kept = Path(os.environ.get("QUANTADVISOR_CACHE") or Path.home() / ".cache" / "quantadvisor") / "tensorrt"
    kept.mkdir(parents=True, exist_ok=True)
    settings = {
        "device_id": "0",
        "trt_min_subgraph_size": str(LEAST_SUBGRAPH),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(kept),
    }
    return [(PROVIDERS["tensorrt"], settings), cuda, CPU]


def opened(graph: Path, options: Any, option: str) -> Any:
    """A session on the GPU. Raises RuntimeError where ONNX Runtime went on without the provider."""
    import onnxruntime

    if importlib.util.find_spec("tensorrt_libs") is not None and option == "tensorrt":
        importlib.import_module("tensorrt_libs")  # importing it loads libnvinfer, which the provider then finds
    onnxruntime.preload_dlls()
    session = onnxruntime.InferenceSession(str(graph), options, providers=providers(option))
    session.disable_fallback()
    if (got := session.get_providers())[0] != PROVIDERS[option]:
        built = nvidia.stated("onnxruntime", "capi/build_and_package_info.py", "cuda_version")
        needs = f"CUDA {str(built).split('.')[0]}, cuDNN 9" + (" and TensorRT" if option == "tensorrt" else "")
        raise RuntimeError(f"ONNX Runtime could not load {PROVIDERS[option]} and took {got[0]}: it needs {needs}: {MEND}")
    return session


class Buffer:
    """A cache on the GPU: the rows [start, end) of keys or values [batch, kv_heads, capacity, head_dim] that `value` holds."""

    def __init__(self, value: Any, start: int, shape: tuple[int, ...], dtype: Any) -> None:
        self.value, self.start, self.shape, self.dtype = value, start, shape, dtype

    @classmethod
    def of(cls, array: Any) -> Buffer:
        """A copy of an array in the memory of the GPU."""
        from onnxruntime import OrtValue

        return cls(OrtValue.ortvalue_from_numpy(array, nvidia.CUDA, 0), 0, array.shape, array.dtype)

    def __getitem__(self, rows: slice) -> Buffer:
        start, end, _ = rows.indices(self.shape[0])
        return Buffer(self.value, self.start + start, (end - start, *self.shape[1:]), self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self.value.numpy()[self.start : self.start + self.shape[0]]

    def bind(self, binding: Any, before: str, after: str) -> None:
        """The same memory as input and output: present is written into what past is read from."""
        row_bytes = self.dtype.itemsize
        for size in self.shape[1:]:
            row_bytes *= size
        address = self.value.data_ptr() + self.start * row_bytes
        binding.bind_input(before, nvidia.CUDA, 0, self.dtype, list(self.shape), address)
        binding.bind_output(after, nvidia.CUDA, 0, self.dtype, list(self.shape), address)


def known_s(provider: str, duration_us: float) -> float:
    """Seconds that a node of a profile took. On a GPU its duration is that of the host's call, which only enqueues work: 0."""
    return 0.0 if provider in PROVIDERS.values() else duration_us / 1e6


def noted(phase: dict[str, Any], got: list[str]) -> dict[str, Any]:
    """The provider that each node got, and what a profile of a GPU does not tell."""
    nodes: dict[str, int] = {}
    for row in phase["operators"]:
        nodes[row["provider"]] = nodes.get(row["provider"], 0) + row["count"]
    shares = ", ".join(f"{count} by {name}" for name, count in sorted(nodes.items(), key=lambda item: -item[1]))
    notes = [f"providers {', '.join(got)}; nodes a pass: {shares}"]
    left = [row for row in phase["operators"] if row["provider"] == CPU]
    linears = sum(row["count"] for row in left if row["linear"])
    attentions = sum(row["count"] for row in left if "Attention" in row["name"])
    for count, what in ((linears, "linears"), (attentions, "attention nodes, caches copied forth and back,")):
        if count:
            notes.append(f"{count} {what} ran on the CPU: the GPU has no kernel for their number type")
    if PROVIDERS["tensorrt"] in nodes:
        notes.append("what is inside TensorRT's subgraphs, linears too, is not told")
    notes.append("times of nodes on the GPU are not told: they are in other; eager, no CUDA graph; logits are copied to the host")
    known = sum(phase[part] for part in ("linears_s", "attention_s", "cache_s"))
    return phase | {"other_s": phase["wall_s"] - known, "notes": [*phase["notes"], *notes]}
