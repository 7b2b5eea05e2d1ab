"""torch+compile on a tiny random llama: what it computes is what eager does, compiled twice for every length and batch."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quantadvisor.documents import CandidateFailed
from quantadvisor.profiling.runtimes import torch as runtime
from quantadvisor.profiling.runtimes import torch_compile
from quantadvisor.profiling.runtimes.registry import runtime_file
from quantadvisor.profiling.workers import RunningWorker

from ...methods.conftest import write_llama

TOKENS = np.random.default_rng(3).integers(3, 250, (5, 30)).astype(np.int64)
LINEARS = 15


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("compile") / "hf")


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """In inductor's place a backend that runs the graph as it was traced: what it was given, once a compilation."""
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch_compile, "compiled", lambda model, _: torch.compile(model.__call__, dynamic=True, backend=backend))
    yield graphs
    torch._dynamo.reset()


def test_every_length_and_batch_computes_what_eager_does_in_two_programs(traced: list[Any], hf: Path) -> None:
    ours, eager = (runtime.open_session(str(hf), options, 1) for options in (("compile",), ()))
    assert len(traced) == 2
    for rows, length, capacity in ((1, 20, 40), (2, 9, 12), (5, 26, 64)):
        prompt = TOKENS[:rows, :length]
        pairs = [(ours.prefill(prompt, capacity), eager.prefill(prompt, capacity))]
        pairs += [(ours.decode(one), eager.decode(one)) for one in (TOKENS[:rows, [26 + i]] for i in range(3))]
        assert all(np.abs(mine - theirs).max() < 1e-5 for mine, theirs in pairs)
    ours.prefill(TOKENS[:1], 40)
    ours.fill(3, 40)
    eager.prefill(TOKENS[:1], 40)
    repeated, one = ours.decode(TOKENS[[0, 0, 0], :1]), eager.decode(TOKENS[:1, :1])
    assert np.abs(repeated - one).max() < 1e-5
    ours.operators(TOKENS[:2], None)  # looking at it compiles nothing either
    assert len(traced) == 2
    assert ours.decode(TOKENS[:2, :1]).shape == (2, 256)


@pytest.mark.slow
def test_inductor_s_step_shows_its_products_and_what_it_generated(hf: Path, tmp_path: Path) -> None:
    """The real compiler, in the worker: seconds of g++, which load_s holds."""
    reference = tmp_path / "reference.npy"
    with RunningWorker(runtime_file("torch"), hf, (), 1) as worker:
        worker.write_reference(TOKENS[:2], reference)
        expected = worker.generate(TOKENS[:2], 6).generated
    with RunningWorker(runtime_file("torch"), hf, ("compile",), 1) as worker:
        assert worker.generate(TOKENS[:2], 6).generated == expected
        assert worker.steady(TOKENS[:2], 3, 4).rows_equal
        assert np.abs(worker.score(TOKENS[:2], reference, 7)[1]).max() < 1e-4
        seen = worker.operators(TOKENS[:2])
    decode = seen["decode"]
    assert sum(row["count"] for row in decode["operators"] if row["linear"]) == decode["linears"] == LINEARS
    assert any(row["name"].startswith("inductor::cpp_fused") and "silu" in row["name"] for row in decode["operators"])
    assert not any(row["name"].startswith("inductor") for row in seen["prefill"]["operators"])
    assert decode["attention_s"] > 0
    assert any("15 products called" in note for note in decode["notes"])


def test_a_generated_kernel_has_one_name_in_every_session() -> None:
    names = [
        torch_compile.generated(f"graph_{program}_cpp_fused_mul_silu_{number}") for program, number in ((0, 5), (7, 5), (0, 6))
    ]
    assert names == ["inductor::cpp_fused_mul_silu_5", "inductor::cpp_fused_mul_silu_5", "inductor::cpp_fused_mul_silu_6"]
    assert torch_compile.generated("aten::mm") is None


def test_what_inductor_lacks_is_said_with_what_adds_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert runtime.refuse(None, ("compile",), ()) is None
    assert "no option 'compiled'" in str(runtime.refuse(None, ("compiled",), ()))
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    assert f"finds no {tmp_path}/Python.h: apt-get install python3" in str(runtime.refuse(None, ("compile",), ()))
    monkeypatch.setenv("CXX", "no-such-g++")
    assert "finds no no-such-g++: apt-get install g++" in str(runtime.refuse(None, ("compile",), ()))
    assert runtime.refuse(None, (), ()) is None


def test_a_compiler_that_fails_is_said(hf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A g++ that knows its version and compiles nothing, in the worker."""
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'g++ 13' && exit 0\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with (
        pytest.raises(CandidateFailed, match=r"torch.compile failed .*leave `compile` out"),
        RunningWorker(runtime_file("torch"), hf, ("compile",), 1),
    ):
        pass


def test_a_cache_that_is_no_full_attention_is_refused(hf: Path) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(hf)
    config.sliding_window = 8
    with pytest.raises(ValueError, match="StaticSlidingWindowLayer"):
        torch_compile.static_cache(config, 16)
