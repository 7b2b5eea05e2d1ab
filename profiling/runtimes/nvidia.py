"""Can this environment compute on the NVIDIA GPU of this machine? Why not, and the command that mends it.

The option `cuda` of a candidate means "on the GPU": device 0 of those that CUDA_VISIBLE_DEVICES shows. Nothing is imported
and no context is made for an answer, but where torch itself is asked: what a package is built for stands in its files, and
the driver is asked through libcuda (cuDriverGetVersion, cuInit, cuDeviceGetCount of the CUDA driver API).
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from pathlib import Path

CUDA = "cuda"
NVML = "nvidia-ml-py is not installed, and GPU memory, clocks and energy are read through it: pip install nvidia-ml-py"


def refusal(who: str, built_for: str | None, mend: str, without: str = "leave the option cuda out") -> str | None:
    """`built_for`: CUDA version of the build, None for one without CUDA, which `mend` mends; `without`: how to do without."""
    if built_for is None:
        return f"{who} is built without CUDA: {mend}"
    newest = cuda_of_driver()
    if newest is None:
        return f"{who} is built for CUDA {built_for}, and no NVIDIA driver is here: {without}"
    if int(newest.split(".")[0]) < int(built_for.split(".")[0]):
        return f"the NVIDIA driver runs CUDA up to {newest}, {who} is built for CUDA {built_for}: update the driver"
    if reason := no_gpu():
        return reason
    return NVML if importlib.util.find_spec("pynvml") is None else None


def package_folder(package: str) -> Path | None:
    """Where a package lies that is not imported for it."""
    found = importlib.util.find_spec(package)
    return Path(found.origin).parent if found and found.origin else None


def stated(package: str, file: str, variable: str) -> str | None:
    """What a file of a package assigns to a variable, a string in quotes; None without the package, the file or a value."""
    folder = package_folder(package)
    try:
        text = (folder / file).read_text(encoding="utf-8") if folder else ""
    except OSError:
        return None
    said = re.search(rf"^{variable}\b[^=\n]*= *['\"]([^'\"\n]+)['\"]", text, re.MULTILINE)
    return said[1] if said else None


def torch_built_for() -> str | None:
    """The CUDA version that this environment's torch is built for: `cuda` of torch/version.py."""
    return stated("torch", "version.py", "cuda")


def torch_mend() -> str:
    """The command that replaces a CPU build of torch by the CUDA build of the same version."""
    version = (stated("torch", "version.py", "__version__") or "").split("+")[0]
    return f"pip install --force-reinstall torch=={version} (PyPI's build for Linux is the one with CUDA)"


def torch_refusal(without: str = "leave the option cuda out") -> str | None:
    """`refusal` of this environment's torch."""
    return refusal(f"torch {stated('torch', 'version.py', '__version__') or ''}", torch_built_for(), torch_mend(), without)


def no_gpu_for_torch() -> str | None:
    """Why torch finds no GPU; None where it finds one."""
    import torch

    return None if torch.cuda.is_available() else torch_refusal("install it") or "torch finds no CUDA device"


def cuda_of_driver() -> str | None:
    """The newest CUDA version that the NVIDIA driver runs (cuDriverGetVersion: 1000 major + 10 minor); None without one.
    A build runs on every driver of its major version or of a later one (CUDA's minor version compatibility)."""
    number = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return None
    return None if failed or not number.value else f"{number.value // 1000}.{number.value % 1000 // 10}"


def no_gpu() -> str | None:
    """Why the driver offers no GPU to this process; None where it offers one. Asked after cuda_of_driver found a driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = "" if visible is None else f"; CUDA_VISIBLE_DEVICES is {visible!r}"
    driver, count, name = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_char_p()
    code = driver.cuInit(0)
    if code:
        driver.cuGetErrorName(code, ctypes.byref(name))
        return f"the NVIDIA driver gives no GPU: cuInit says {(name.value or b'').decode() or code}{shown}"
    if driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return f"the NVIDIA driver gives no GPU{shown}"
    return None
