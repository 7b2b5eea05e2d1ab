"""Servers under load, ours and others', with stand-ins of vLLM's server and load generator as real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pynvml
import pytest

from quantadvisor.documents import CandidateFailed
from quantadvisor.profiling.runtimes import vllm
from quantadvisor.profiling.served import Launch, Load, OwnServer, Served, free_port, token_gaps

from ..kernels.test_guardian import alive
from .fake_nvml import OK, fake

TTFT_S, ITL_S = 0.03, 0.01
MODEL = "of-this-start"


def own(
    python: str, folder: Path, time_limit_s: float = 30.0, port: int | None = None, gpu: str | None = None, **faults: object
) -> OwnServer:
    (folder / "faults.json").write_text(json.dumps(faults))
    port = port or free_port()
    arguments, environment = vllm.server(str(folder), (), port, MODEL, 1)
    environment |= {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
    return OwnServer(python, Launch(arguments, environment, port, MODEL), 1, time_limit_s, 400 << 20)


@contextmanager
def running(python: str, folder: Path, **faults: object) -> Iterator[str]:
    """The URL of a server that is not ours."""
    with own(python, folder, **faults) as server:
        yield server.url


def prompts(users: int, tokens: int = 5) -> np.ndarray:
    return np.zeros((users, tokens), np.int64)


def test_our_server_is_measured_by_the_clock_and_ended(python: str, tmp_path: Path) -> None:
    with Served(own(python, tmp_path, engine=True), tmp_path, MODEL, python=python) as served:
        seen = served.generate(prompts(3), 6)
        assert 0 < served.loaded.load_s < 30
        engine = int((tmp_path / "engine").read_text())
        assert alive(engine)
    assert TTFT_S <= seen.ttft_s < TTFT_S + 0.1
    assert ITL_S * 0.9 <= float(np.median(seen.itl_s)) < ITL_S * 3
    assert len(seen.itl_s) == 3 * 2 * 5  # users x turns x gaps
    assert seen.peak_bytes > 5 << 20
    assert not alive(engine)
    asked = [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]
    assert all(one["stream"] for one in asked)
    assert len({one["prompt"] for one in asked if len(one["prompt"].split()) == 5}) == 6  # none comes twice


def test_the_gpu_of_our_server_is_watched(python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a fake of NVML: the one that it was given, and none where it was given none."""
    asked: list[int] = []

    def by_index(index: Any, _: Any) -> int:
        asked.append(index.value)
        return OK

    monkeypatch.setattr(pynvml, "nvmlLib", fake(nvmlDeviceGetHandleByIndex_v2=by_index))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    with Served(own(python, tmp_path, gpu="5"), tmp_path, MODEL, python=python) as served:
        seen = served.generate(prompts(1), 4).gpu
    assert seen and (seen.sm_mhz, seen.mig, asked) == ((1410, 1410, 1410), True, [5])
    with Served(own(python, tmp_path), tmp_path, MODEL, python=python) as served:
        assert served.generate(prompts(1), 4).gpu is None


def test_a_server_of_the_user_is_measured_and_left_running(python: str, tmp_path: Path) -> None:
    with running(python, tmp_path) as url:
        with Served(url, tmp_path, "", python=python) as served:
            seen = served.generate(prompts(1), 4)
            assert served.asked.model == MODEL
        with Served(url, tmp_path, "", python=python) as again:
            again.generate(prompts(1), 4)
    assert TTFT_S <= seen.ttft_s < TTFT_S + 0.1
    assert (len(seen.itl_s), seen.peak_bytes) == (3, 0)


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ({"error": "ValueError: no kernel for this scheme"}, "the server ended: ValueError: no kernel for this scheme"),
        ({"hangs": True}, "the server did not answer within 2 s"),
        ({"dies_after": 5}, "the server ended: RuntimeError: the engine is dead|requests failed, the first by"),
        ({"refuses_after": 5}, "5 requests failed, the first by: HTTP 503"),
        ({"hog": True}, "more than its limit of 0.39 GiB"),
    ],
)
def test_a_fault_of_the_server_is_a_reason(python: str, tmp_path: Path, faults: dict[str, object], reason: str) -> None:
    limit_s = 2.0 if "hangs" in faults else 30.0
    server = own(python, tmp_path, limit_s, engine=True, **faults)
    with pytest.raises(CandidateFailed, match=reason), Served(server, tmp_path, MODEL, python=python) as served:
        try:
            for _ in range(20):
                served.generate(prompts(3), 6)
        finally:
            if "hangs" in faults:  # others are measured before it is closed
                assert "T (stopped)" in Path(f"/proc/{int((tmp_path / 'engine').read_text())}/status").read_text()
    assert not alive(int((tmp_path / "engine").read_text()))


def test_a_port_that_is_taken_is_a_reason(python: str, tmp_path: Path) -> None:
    """Also by one that would share it, as vLLM's own server would: its answers are not ours."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = int(holder.getsockname()[1])
        with pytest.raises(CandidateFailed, match=f"port {port} of 127.0.0.1 cannot be had: Address already in use"):
            own(python, tmp_path, port=port).__enter__()


def test_a_url_where_nobody_answers_is_a_reason(python: str, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(CandidateFailed, match="does not answer: Connection refused"), Served(url, tmp_path, "", python=python):
        pass


def test_an_environment_without_the_load_generator_is_a_reason(tmp_path: Path) -> None:
    said = f"vLLM's generator, which {sys.executable} does not have: make runtime-vllm, or name an interpreter that does"
    with pytest.raises(CandidateFailed, match=re.escape(said)), Served("http://127.0.0.1:1", tmp_path, ""):
        pass


def test_nothing_of_a_server_is_left_when_we_are_killed(python: str, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from tests.profiling.test_served import own\n"
        "with own(sys.argv[2], Path(sys.argv[3]), engine=True) as server:\n"
        "    print(server._process.pid, flush=True); server.pause(); import time; time.sleep(600)"
    )
    root = str(Path(__file__).parents[2])
    owner = subprocess.Popen([sys.executable, "-c", code, root, python, str(tmp_path)], stdout=subprocess.PIPE)
    assert owner.stdout
    pids = [int(owner.stdout.readline()), int((tmp_path / "engine").read_text())]
    assert all(map(alive, pids))
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, pids))


def test_gaps_are_between_tokens_where_a_piece_holds_several() -> None:
    seen = Load(ttfts=[0.1, 0.1], itls=[[0.2, 0.4], [0.6]], output_lens=[3, 4], errors=[])
    assert token_gaps(seen) == pytest.approx([0.2, 0.4, 0.2, 0.2, 0.2])
