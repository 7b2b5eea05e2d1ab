"""ONNX Runtime's side of a GPU: its providers, the refusal to fall back, and caches bound by address (in the CPU's memory)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime_genai")

import onnxruntime

from quantadvisor.methods.registry import method
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.runtimes import nvidia, onnxruntime_cuda, onnxruntime_genai
from quantadvisor.profiling.runtimes import onnxruntime as runtime

from ...methods.conftest import write_llama

pytestmark = pytest.mark.filterwarnings(r"ignore:.*(torch\.jit|`torch_dtype`|swigvarlink|SwigPy).*")
TOKENS = np.random.default_rng(3).integers(3, 250, (3, 24)).astype(np.int64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cuda")
    hf = write_llama(root / "hf")
    method("none").apply(hf, scheme("fp32"), "onnxruntime", TOKENS, root / "onnx")
    return root / "onnx"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU provider and its memory under the names of CUDA's."""
    monkeypatch.setattr(nvidia, "CUDA", "cpu")
    monkeypatch.setattr(onnxruntime_cuda, "PROVIDERS", {"cuda": onnxruntime_cuda.CPU, "tensorrt": "TensorrtExecutionProvider"})
    monkeypatch.setattr(onnxruntime_cuda, "providers", lambda option: [onnxruntime_cuda.CPU])


def test_the_providers_in_their_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QUANTADVISOR_CACHE", str(tmp_path))
    (name, settings), last = onnxruntime_cuda.providers("cuda")
    assert (name, last) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert settings["arena_extend_strategy"] == "kSameAsRequested"
    (first, settings), (second, _), _ = onnxruntime_cuda.providers("tensorrt")
    assert (first, second) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert Path(settings["trt_timing_cache_path"]).is_dir()


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="onnxruntime is built for CUDA")
def test_a_session_that_went_on_without_the_gpu_is_an_error(folder: Path) -> None:
    """For real: this build has no CUDA, and ONNX Runtime only warns."""
    with pytest.raises(RuntimeError, match=r"could not load CUDAExecutionProvider and took CPUExecutionProvider.*pip install"):
        runtime.open_session(str(folder), ("cuda",), 1)


@pytest.mark.usefixtures("stand_in")
def test_caches_bound_by_address_compute_what_arrays_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows in groups of two, then steps, then copies of one row: all rows of the buffers are found again."""
    monkeypatch.setattr(runtime, "TOKENS_PER_PASS", 40)
    plain, bound = (runtime.open_session(str(folder), options, 1) for options in ((), ("cuda",)))
    for session in (plain, bound):
        session.first = session.prefill(TOKENS[:, :20], 24)
        session.steps = [session.decode(TOKENS[:, at : at + 1]) for at in range(20, 24)]
        session.prefill(TOKENS[1:2, :20], 24)
        session.fill(5, 24)
        session.filled = session.decode(np.repeat(TOKENS[1:2, 20:21], 5, 0))
        session.scores = list(session.score(TOKENS[0], 7))
    assert isinstance(bound.buffers[0], onnxruntime_cuda.Buffer)
    np.testing.assert_allclose(bound.first, plain.first, atol=1e-5)
    np.testing.assert_allclose(bound.steps, plain.steps, atol=1e-5)
    np.testing.assert_allclose(bound.filled, plain.filled, atol=1e-5)
    np.testing.assert_allclose(np.concatenate(bound.scores), np.concatenate(plain.scores), atol=1e-5)
    seen = bound.operators(TOKENS, None)
    assert seen["decode"]["notes"][0].startswith("providers CPUExecutionProvider; nodes a pass: ")


def test_nodes_on_a_gpu_have_counts_and_no_times() -> None:
    def node(operator: str, provider: str) -> dict[str, Any]:
        return {"name": f"/{operator}_kernel_time", "dur": 2e6, "args": {"op_name": operator, "provider": provider}}

    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    run = [node("MatMulNBits", cuda), node("MatMulNBits", cuda), node("MatMul", cpu), node("Mul", cuda),
           node("GroupQueryAttention", cpu), node("Mul", cpu)]  # fmt: skip
    found = onnxruntime_cuda.noted(runtime.phase_of_runs([run], 1, [10.0]), [cuda, cpu])
    rows = {(row["name"], row["provider"]): (row["count"], row["time_s"]) for row in found["operators"]}
    assert rows[("MatMulNBits", cuda)] == (2, 0.0)
    assert rows[("MatMul", cpu)] == (1, 2.0)
    assert (rows[("Mul", cuda)], rows[("Mul", cpu)]) == ((1, 0.0), (1, 2.0))
    assert (found["linears"], found["quantized_linears"], found["linears_s"], found["other_s"]) == (3, 2, 2.0, 6.0)
    assert any(note.startswith("1 linears ran on the CPU") for note in found["notes"])
    assert any(note.startswith("1 attention nodes") for note in found["notes"])
    assert f"nodes a pass: 3 by {cpu}, 3 by {cuda}" in found["notes"][0]


def test_genai_is_given_the_provider(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its configuration and model are stand-ins that keep what they are asked."""
    import onnxruntime_genai as og

    asked: list[tuple[str, ...]] = []

    class Config:
        def __init__(self, path: str) -> None:
            asked.append(("path", path))

        def overlay(self, text: str) -> None:
            pass

        def clear_providers(self) -> None:
            asked.append(("clear",))

        def append_provider(self, name: str) -> None:
            asked.append(("append", name))

        def set_provider_option(self, *words: str) -> None:
            asked.append(("set", *words))

    monkeypatch.setattr(og, "Config", Config)
    monkeypatch.setattr(og, "Model", lambda config: None)
    onnxruntime_genai.open_session(str(folder), (), 1)
    assert asked == [("path", str(folder))]
    onnxruntime_genai.open_session(str(folder), ("cuda",), 1)
    assert asked[2:] == [("clear",), ("append", "cuda"), ("set", "cuda", "arena_extend_strategy", "kSameAsRequested")]
