"""llama.cpp against transformers on a tiny model: prefill, decode, rows, filled caches, scoring, and what really ran."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quantadvisor.profiling.runtimes import llama_cpp as runtime

from ...methods.conftest import torch_logits, write_llama

needs_llama = pytest.mark.skipif(runtime.refuse(None, (), ()) is not None, reason="llama.cpp is not here: make runtime-llama")
TOKENS = np.random.default_rng(0).integers(3, 256, (3, 24)).astype(np.int64)


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("hf") / "hf")


@pytest.fixture(scope="module")
def folders(hf: Path) -> dict[str, Path]:
    from quantadvisor.methods.formats import gguf

    gguf.export_base(hf, hf.parent / "f32")
    gguf.quantize(hf.parent / "f32", hf.parent / "q8_0", "q8_0")
    return {name: hf.parent / name for name in ("f32", "q8_0")}


def opened(folder: Path, *options: str) -> runtime.LlamaSession:
    return runtime.open_session(str(folder), options, 2)


def test_refusals_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "make runtime-llama" in str(runtime.refuse(None, (), ()))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert "has no option 'amx'" in str(runtime.refuse(None, ("amx",), ()))
    assert "add the option fa" in str(runtime.refuse(None, ("kvq8",), ()))
    assert "holds no model.gguf" in str(runtime.refuse(str(tmp_path), (), ()))
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert "Metal" in str(runtime.refuse(None, (), ()))


def test_a_build_that_never_says_whether_it_offloads_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package whose import hangs, as a driver in trouble makes it."""
    from quantadvisor.profiling import environments

    assert runtime.OFFLOADS_S < environments.LIMIT_S
    for name, text in (("__init__.py", "import time\ntime.sleep(20)\n"), ("lib/libggml-cuda.so", "libcudart.so.12")):
        (tmp_path / "llama_cpp" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "llama_cpp" / name).write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(runtime.nvidia, "package_folder", lambda _: tmp_path / "llama_cpp")
    monkeypatch.setattr(runtime.nvidia, "refusal", lambda *_: None)
    monkeypatch.setattr(runtime, "OFFLOADS_S", 0.5, raising=False)
    runtime.no_offload.cache_clear()
    try:
        said = str(runtime.no_offload())
    finally:
        runtime.no_offload.cache_clear()
    assert said == "llama.cpp does not say within 0.5 s whether it can offload to a GPU (llama_supports_gpu_offload)"


@needs_llama
@pytest.mark.parametrize("options", [(), ("fa",), ("plain",)])
def test_every_row_computes_what_torch_does(options: tuple[str, ...], hf: Path, folders: dict[str, Path]) -> None:
    session = opened(folders["f32"], *options)
    exact = [torch_logits(hf, row) for row in TOKENS]
    np.testing.assert_allclose(session.prefill(TOKENS[:, :20], 24), [rows[19] for rows in exact], atol=0.02)
    for at in range(20, 24):
        step = session.decode(TOKENS[:, at : at + 1])
        np.testing.assert_allclose(step, [rows[at] for rows in exact], atol=0.02)
    session.close()


@needs_llama
def test_filled_rows_continue_the_first_one(hf: Path, folders: dict[str, Path]) -> None:
    session = opened(folders["f32"])
    session.prefill(TOKENS[:1, :20], 24)
    session.fill(4, 24)
    following = np.repeat(TOKENS[:1, 20:21], 4, 0)
    expected = torch_logits(hf, TOKENS[0])[20]
    np.testing.assert_allclose(session.decode(following), [expected] * 4, atol=0.02)


@needs_llama
@pytest.mark.parametrize("chunk", [None, 7])
def test_scores_are_logits_of_every_position(chunk: int | None, hf: Path, folders: dict[str, Path]) -> None:
    session = opened(folders["f32"])
    got = np.concatenate(list(session.score(TOKENS[0], chunk)))
    np.testing.assert_allclose(got, torch_logits(hf, TOKENS[0]), atol=0.02)


@needs_llama
@pytest.mark.parametrize(("name", "quantized"), [("f32", 0), ("q8_0", 15)])
def test_the_operators_that_ran(name: str, quantized: int, folders: dict[str, Path]) -> None:
    phases = opened(folders[name], "fa").operators(TOKENS[:1], 3)
    for phase in phases.values():
        assert (phase["linears"], phase["quantized_linears"]) == (15, quantized)
        parts = sum(phase[key] for key in ("linears_s", "attention_s", "cache_s", "other_s"))
        assert parts == pytest.approx(phase["wall_s"], rel=1e-6)
        assert any(row["name"] == "MUL_MAT" and row["linear"] for row in phase["operators"])
        assert phase["cache_s"] > 0 and phase["cache"] == "f16"
        types = {row["precision"] for row in phase["operators"] if row["quantized"]}
        assert types == ({"q8_0"} if quantized else set()), "neither indices nor operators without an input are quantized"
        assert {row["precision"] for row in phase["operators"]} - types >= {"f32"}


@needs_llama
def test_a_quantized_cache_changes_the_logits_a_little(tmp_path: Path) -> None:
    from quantadvisor.methods.formats import gguf

    hf = write_llama(tmp_path / "hf", num_attention_heads=2, num_key_value_heads=1)  # blocks of 32 need heads of 32
    gguf.export_base(hf, tmp_path / "f32")
    session = opened(tmp_path / "f32", "fa", "kvq8")
    exact = torch_logits(hf, TOKENS[0])
    got = np.concatenate(list(session.score(TOKENS[0], 4)))
    error = np.abs(got - exact).max()
    assert 1e-4 < error < 0.5
    assert {phase["cache"] for phase in session.operators(TOKENS[:1], None).values()} == {"q8_0"}


@needs_llama
def test_a_broken_file_is_an_error_with_its_words(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(ValueError, match="cannot load"):
        opened(tmp_path)


@pytest.mark.parametrize(("options", "layers"), [((), 0), (("cuda", "fa"), -1)])
def test_all_layers_go_to_the_gpu_or_none(options: tuple[str, ...], layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp is a stand-in that keeps its parameters and logs as a build for CUDA does."""
    api = stand_in(
        ["load_tensors: offloaded 31/31 layers to GPU\n", "load_tensors:        CUDA0 model buffer size =    96.00 MiB\n"]
    )
    monkeypatch.setitem(sys.modules, "llama_cpp", api)
    session = runtime.open_session("model.gguf", options, 2)
    assert api.model.n_gpu_layers == layers
    assert getattr(api.model, "split_mode", None) == (0 if layers else None)
    assert len(session._buffers()) == (2 if layers else 1)
    session._open(1, 8)
    assert api.context.op_offload is bool(layers)


def test_weights_that_stayed_on_the_cpu_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", stand_in(["load_tensors:   CPU model buffer size =    96.00 MiB\n"]))
    with pytest.raises(RuntimeError, match=r"no weights on the GPU: load_tensors:   CPU model buffer size"):
        runtime.open_session("model.gguf", ("cuda",), 2)


def stand_in(log: list[str]) -> Any:
    """The functions of llama-cpp-python's low-level interface that opening a session calls."""
    api = SimpleNamespace(model=SimpleNamespace(), context=SimpleNamespace(), said=None)

    def load(path: bytes, params: Any) -> int:
        for line in log:
            api.said(2, line.encode(), None)
        return 1

    api.llama_log_callback = lambda function: function
    api.llama_log_set = lambda function, _: setattr(api, "said", function)
    api.llama_model_default_params = lambda: api.model
    api.llama_context_default_params = lambda: api.context
    api.llama_model_load_from_file = load
    api.llama_model_get_vocab = api.llama_vocab_n_tokens = lambda _: 256
    api.llama_batch_init = lambda *_: None
    api.llama_init_from_model = lambda *_: 1
    return api
