"""The option `cuda` refused: in an environment of stand-in packages, on a machine whose libcuda is a stand-in."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from quantadvisor.profiling.environments import asked_there, refusal
from quantadvisor.profiling.runtimes import nvidia
from quantadvisor.profiling.runtimes.registry import runtime

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="a stand-in for libcuda needs a C compiler")
LIBCUDA = """
int cuDriverGetVersion(int *version) {{ *version = {version}; return 0; }}
int cuInit(unsigned flags) {{ return {init}; }}
int cuDeviceGetCount(int *count) {{ *count = {count}; return 0; }}
int cuGetErrorName(int code, const char **name) {{ *name = "CUDA_ERROR_NO_DEVICE"; return 0; }}
"""
Driver = Callable[..., None]
FILES = {
    "torch/__init__.py": "",
    "torch/version.py": "__version__ = '2.99.0'\ncuda: str = '13.0'\n",
    "transformers/__init__.py": "",
    "accelerate/__init__.py": "",
    "pynvml.py": "",
    "onnxruntime/__init__.py": "",
    "onnxruntime/capi/build_and_package_info.py": "__version__ = '1.99'\ncuda_version = '13.0'\n",
    "onnxruntime/capi/libonnxruntime_providers_cuda.so": "",
    "onnxruntime/capi/libonnxruntime_providers_tensorrt.so": "",
    "onnxruntime_genai/__init__.py": "",
    "onnxruntime_genai/libonnxruntime-genai-cuda.so": "",
    "llama_cpp/__init__.py": "def llama_supports_gpu_offload():\n    return True\n",
    "llama_cpp/lib/libggml-cuda.so": "\x7fELF libcudart.so.13 \x00",
    "vllm/__init__.py": "",
}
WITH_CUDA = ("torch", "onnxruntime", "onnxruntime-genai", "llama.cpp", "vllm")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cuda") / "environment"
    venv.create(root)
    site = next((root / "lib").glob("python*/site-packages"))
    for name, text in FILES.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    return root


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    def install(version: int, init: int = 0, count: int = 1) -> None:
        (tmp_path / "cuda.c").write_text(LIBCUDA.format(version=version, init=init, count=count))
        subprocess.run(["cc", "-shared", "-o", tmp_path / "libcuda.so.1", tmp_path / "cuda.c"], check=True)

    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    return install


@pytest.fixture
def ask(environment: Path) -> Callable[..., str | None]:
    def asked(name: str, *options: str) -> str | None:
        asked_there.cache_clear()
        return refusal(name, str(environment / "bin" / "python"), None, options, ())

    return asked


@pytest.mark.parametrize("name", WITH_CUDA)
def test_a_gpu_is_taken(name: str, ask: Callable[..., str | None], driver: Driver) -> None:
    driver(13000)
    assert ask(name, "cuda") is None


@pytest.mark.parametrize("name", WITH_CUDA)
def test_a_driver_older_than_the_build_is_named_with_both_versions(
    name: str, ask: Callable[..., str | None], driver: Driver
) -> None:
    driver(12040)
    said = str(ask(name, "cuda"))
    assert "the NVIDIA driver runs CUDA up to 12.4" in said
    assert "is built for CUDA 13" in said
    assert "update the driver" in said


@pytest.mark.parametrize("name", WITH_CUDA)
def test_no_driver(name: str, ask: Callable[..., str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    if nvidia.cuda_of_driver():
        pytest.skip("this machine has a driver")
    assert "no NVIDIA driver is here" in str(ask(name, "cuda"))


def test_a_driver_without_a_gpu_says_what_cuda_says(
    ask: Callable[..., str | None], driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    driver(13000, init=100)
    assert "gives no GPU: cuInit says CUDA_ERROR_NO_DEVICE; CUDA_VISIBLE_DEVICES is '7'" in str(ask("torch", "cuda"))
    driver(13000, count=0)
    assert "gives no GPU; CUDA_VISIBLE_DEVICES is '7'" in str(ask("onnxruntime", "cuda"))


def test_tensorrt_needs_its_library(ask: Callable[..., str | None], driver: Driver) -> None:
    driver(13000)
    assert "pip install tensorrt" in str(ask("onnxruntime", "tensorrt"))


def test_a_build_of_vllm_for_cuda_has_no_cpu_path(ask: Callable[..., str | None], driver: Driver) -> None:
    driver(13000)
    assert "add the option cuda" in str(ask("vllm"))


def test_llama_cpp_has_the_last_word(environment: Path, ask: Callable[..., str | None], driver: Driver) -> None:
    driver(13000)
    package = next((environment / "lib").glob("python*/site-packages")) / "llama_cpp" / "__init__.py"
    kept = package.read_text()
    package.write_text(
        "import sys\nsys.stderr.write('ggml_cuda_init: failed\\n')\ndef llama_supports_gpu_offload():\n    return False\n"
    )
    try:
        said = str(ask("llama.cpp", "cuda"))
    finally:
        package.write_text(kept)
    assert "finds no GPU to offload to (llama_supports_gpu_offload): ggml_cuda_init: failed" in said


@pytest.mark.parametrize(
    ("name", "option", "words"),
    [
        ("torch", "cuda", ("is built without CUDA", "pip install --force-reinstall torch==")),
        ("onnxruntime", "cuda", ("is built without CUDAExecutionProvider", "pip install 'onnxruntime-gpu")),
        ("onnxruntime", "tensorrt", ("is built without TensorrtExecutionProvider", "pip install 'onnxruntime-gpu")),
        ("onnxruntime-genai", "cuda", ("is built without CUDA", "pip install onnxruntime-genai-cuda")),
        ("openvino", "cuda", ("no option 'cuda'",)),
    ],
)
def test_a_build_for_the_cpu_says_what_replaces_it(name: str, option: str, words: tuple[str, ...]) -> None:
    """For real, on the packages that are installed here."""
    if refusal(name, sys.executable, None, (), ()):
        pytest.skip(f"{name} is not here")
    said = runtime(name).refuse(None, (option,), ())
    if said is None or "built for CUDA" in said:
        pytest.skip(f"{name} is built for CUDA here")
    assert all(word in said for word in words), said
