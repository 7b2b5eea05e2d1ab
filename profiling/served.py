"""A server under load, in the place of a worker: one round is a closed loop of as many users as are declared, streaming.

The load comes from a kept generator (profiling/vllm_bench.py), which runs in the runtime's environment. The server is the
user's, of which only its URL is known, or ours: started on a free port of 127.0.0.1 under a guardian, paused while others
are measured, and ended with everything that it started, whatever happens. TTFT is the mean over the requests of a round, so
that TTFT + TPOT x (output tokens - 1) is their mean latency; prompts are random tokens, none of which comes twice: a prefix
cache holds nothing of them.
"""

from __future__ import annotations

import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from random import SystemRandom
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from quantadvisor.documents import CandidateFailed, Finite
from quantadvisor.kernels.guardian import Guarded
from quantadvisor.kernels.machine import process_memory

from . import nvml
from .memory import visible_gpu
from .server import RunningServer
from .workers import Allowance, Generated, Loaded, Reply, RunningWorker, worker_environment

BENCH = Path(__file__).with_name("vllm_bench.py")
TURNS = 2
"""Requests that each of several users sends in one round, one after the other."""
ERROR = re.compile(r"\b(?:\w*(?:Error|Exception): |Worker proc \S+ died ).+")


class Launch(NamedTuple):
    """How a server of ours is started: `arguments` after the interpreter, and its environment's own variables; an empty one is
    unset."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    port: int
    model: str
    """The name that it serves the model under: of this start only, so that no other server is mistaken for it."""


class Load(Reply):
    """What the generator saw, per request; seconds."""

    ttfts: list[Finite]
    itls: list[list[Finite]]
    output_lens: list[int]
    errors: list[str]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def check_port(port: int) -> None:
    """vLLM binds with SO_REUSEPORT: on a port that another such server holds it would start, and share its requests."""
    with socket.socket() as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError as error:
            raise CandidateFailed(f"port {port} of 127.0.0.1 cannot be had: {error.strerror}") from None


class OwnServer:
    """A server process; entered, it answers."""

    def __init__(
        self, python: str, launch: Launch, threads: int, time_limit_s: float, memory_limit_bytes: int | None = None
    ) -> None:
        """`time_limit_s`: until it answers; `memory_limit_bytes` as of a RunningWorker."""
        self.url = f"http://127.0.0.1:{launch.port}"
        self.launch, self.time_limit_s = launch, time_limit_s
        self.memory_limit_bytes = memory_limit_bytes or process_memory()
        self.peak_bytes, self.load_s = 0, 0.0
        self._command = [python, "-P", *launch.arguments]
        self._environment = {k: v for k, v in (worker_environment(threads) | dict(launch.environment)).items() if v}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        self._process: Guarded | None = None

    def __enter__(self) -> Self:
        try:
            check_port(self.launch.port)
            started = time.monotonic()
            self._process = Guarded(self._command, self._environment, stdout=self._log, stderr=self._log)
            while not self._answers():
                self.check()
                if time.monotonic() - started > self.time_limit_s:
                    raise CandidateFailed(f"the server did not answer within {self.time_limit_s:.0f} s")
                time.sleep(0.1)
            self.load_s = time.monotonic() - started
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._process:
            self._process.close()
            self._process = None
        self._log.close()

    def pause(self) -> None:
        assert self._process
        self._process.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process
        self._process.signal(signal.SIGCONT)

    def check(self) -> None:
        """It lives, and within its memory: CandidateFailed where not."""
        assert self._process
        if self._process.poll() is not None:
            raise CandidateFailed(f"the server ended: {self._last_words()}")
        self.peak_bytes = max(self.peak_bytes, self._process.resident_bytes())
        if reason := self._process.outgrown(self.memory_limit_bytes):
            raise CandidateFailed(f"the server {reason}")

    def _answers(self) -> bool:
        try:
            asked = RunningServer(self.url, 1, self.launch.model, seed=0, side="", stall_s=2.0)
            return self.launch.model in asked.models()
        except CandidateFailed:
            return False

    def _last_words(self) -> str:
        """The first exception that it names, which is the cause of the others, else its last line."""
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        named = [found[0] for line in lines if " WARNING " not in line and (found := ERROR.search(line))]
        return (named or lines[-1:] or ["it said nothing"])[0][:300]


class LoadGenerator(RunningWorker):
    """The generator's process; it looks after our server while it waits for an answer."""

    def __init__(self, python: str, server: OwnServer | None, time_limit_s: float, allowance: Allowance | None) -> None:
        super().__init__(BENCH, Path(), (), 1, python=python, time_limit_s=time_limit_s, allowance=allowance)
        self._server = server

    def bench(self, arguments: Sequence[str]) -> Load:
        found = self._read(Load, self.ask("bench", arguments=list(arguments)))
        if found.errors:
            if self._server:
                self._server.check()  # its own last words say more
            raise CandidateFailed(f"{len(found.errors)} requests failed, the first by: {found.errors[0][:300]}")
        if not found.ttfts:
            raise CandidateFailed("the load generator saw no request answered")
        return found

    def _check_memory(self, op: str) -> None:
        super()._check_memory(op)
        if self._server and op == "bench":
            self._server.check()


class Served:
    """The session of a candidate that is served; made: the generator starts, entered: the server answers."""

    def __init__(
        self,
        server: OwnServer | str,
        tokenizer: Path,
        model: str,
        *,
        python: str = sys.executable,
        time_limit_s: float = 600.0,
        allowance: Allowance | None = None,
    ) -> None:
        """`server`: ours, or the URL of the user's; `tokenizer`: the model's folder, to write prompts of so many tokens; limits
        of time as a RunningWorker's: of the allowance the start of our server is a part."""
        self.own = server if isinstance(server, OwnServer) else None
        self.url = self.own.url if self.own else str(server)
        self.asked = RunningServer(self.url, 1, model, seed=0, side="", allowance=allowance)
        self.tokenizer = tokenizer
        self.generator = LoadGenerator(python, self.own, time_limit_s, allowance)
        self._seed = SystemRandom().randrange(1 << 30)

    def ready(self) -> None:
        self.generator.ready()

    def __enter__(self) -> Self:
        try:
            self.ready()
            with self.generator.allowance.spending():
                if self.own:
                    self.own.__enter__()
            self.asked.ready()
            self.loaded = Loaded(load_s=self.own.load_s if self.own else 0.0, base_bytes=0, loaded_bytes=0)
            self.run(1, 16, 2)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.generator.close()
        if self.own:
            self.own.close()

    def generate(self, tokens: np.ndarray, output_tokens: int) -> Generated:
        """One round of as many users, and prompts of as many tokens, as `tokens` [B, S] has; its values do not travel."""
        users, length = tokens.shape
        with self.watching() as gpu:
            seen = self.run(users, length, output_tokens)
        if output_tokens > 1 and not any(seen.itls):
            raise CandidateFailed("the server ends every answer after its first token: it does not know ignore_eos")
        return Generated(
            ttft_s=float(np.mean(seen.ttfts)),
            itl_s=token_gaps(seen),
            generated=[],
            peak_bytes=self.own.peak_bytes if self.own else 0,
            gpu=gpu.summary(),
        )

    def watching(self) -> AbstractContextManager[nvml.Watch]:
        """The GPU that our server was given; what a server of the user's runs on is not known."""
        environment = self.own.launch.environment if self.own else {}
        on_gpu = "CUDA_VISIBLE_DEVICES" in environment
        return nvml.watching(visible_gpu(environment)) if on_gpu else nullcontext(nvml.Watch())

    def requests(self, users: int) -> int:
        """Of one round."""
        return users if users == 1 else users * TURNS

    def run(self, users: int, prompt_tokens: int, output_tokens: int) -> Load:
        """A closed loop, its prompts of a seed of their own."""
        assert self.asked.endpoint
        self._seed += 1
        if self.own:
            self.own.go_on()
        arguments = [
            "--backend", "openai-chat" if self.asked.endpoint.chat else "openai", "--base-url", self.asked.root,
            "--endpoint", self.asked.endpoint.path, "--model", self.asked.model, "--tokenizer", str(self.tokenizer),
            "--dataset-name", "random", "--random-input-len", str(prompt_tokens),
            "--random-output-len", str(output_tokens), "--random-range-ratio", "0", "--ignore-eos", "--temperature", "0",
            "--max-concurrency", str(users), "--num-prompts", str(self.requests(users)),
            "--seed", str(self._seed), "--save-detailed", "--disable-tqdm",
            "--ready-check-timeout-sec", "0",  # its check would send the first prompt, which the prefix cache then holds
        ]  # fmt: skip
        try:
            return self.generator.bench(arguments)
        finally:  # whoever failed keeps no core
            if self.own:
                self.own.pause()


def token_gaps(seen: Load) -> list[float]:
    """Gaps between tokens, of all requests; where a piece holds several tokens, their mean as often as there were gaps."""
    gaps: list[float] = []
    for itl, tokens in zip(seen.itls, seen.output_lens, strict=True):
        many = max(len(itl), tokens - 1)
        gaps += itl if len(itl) == many else [sum(itl) / many] * many
    return gaps
