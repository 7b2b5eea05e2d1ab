"""The real thing: vLLM's own server on 127.0.0.1 under vLLM's own load generator, and its log-probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantadvisor.kernels.guardian import children
from quantadvisor.methods.formats import compressed
from quantadvisor.profiling.environments import interpreter_of, refusal
from quantadvisor.profiling.runtimes import vllm
from quantadvisor.profiling.served import Launch, OwnServer, Served, free_port
from quantadvisor.profiling.served_quality import cache_config, pool_tokens, server_scores

from ..kernels.test_guardian import alive
from ..methods.conftest import torch_logits, write_llama

PYTHON = interpreter_of("vllm")
pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(refusal("vllm", PYTHON, None, (), ()) is not None, reason="vLLM is not here: make runtime-vllm"),
]


def test_a_real_server_is_timed_judged_and_ended(tmp_path: Path) -> None:
    """W8A8: its KL against fp32 is small, and not nothing."""
    folder = write_llama(tmp_path / "hf", hidden_size=256, intermediate_size=512)
    compressed.quantize_w8a8(folder, tmp_path / "w8a8")
    port = free_port()
    arguments, environment = vllm.server(str(tmp_path / "w8a8"), (f"{vllm.POOL}{64 << 20}",), port, "mine", 2)
    server = OwnServer(PYTHON, Launch(arguments, environment, port, "mine"), 2, 500.0, 6 << 30)
    windows = np.random.default_rng(0).integers(3, 256, (2, 24)).astype(np.int64)
    expected = np.concatenate([torch_logits(folder, window) for window in windows])
    expected = expected - np.log(np.exp(expected).sum(1, keepdims=True))
    np.save(tmp_path / "reference.npy", expected.astype(np.float16))
    with Served(server, folder, "mine", python=PYTHON) as served:
        assert server._process
        processes = [server._process.pid, *children(server._process.pid)]
        assert len(processes) > 1  # its engine is a process of its own
        seen = served.generate(np.zeros((2, 32), np.int64), 5)
        server.go_on()  # it is paused after a round
        scores = server_scores(served.asked, windows, tmp_path / "reference.npy")
        held = pool_tokens(cache_config(served.asked))
    assert not any(map(alive, processes))
    assert seen.ttft_s > 0
    assert len(seen.itl_s) == 2 * 2 * 4  # users x turns x gaps
    assert seen.peak_bytes > 500 << 20
    assert held and held > 1000
    following = np.concatenate([expected[i * 24 + np.arange(23), window[1:]] for i, window in enumerate(windows)])
    assert scores[0] == pytest.approx(-following, abs=0.5)
    assert 0 < scores[1].mean() < 0.05
    assert scores[2].mean() > 0.8
