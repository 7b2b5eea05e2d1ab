"""A running server as its users see it: OpenAI-compatible streaming, /v1/completions or /v1/chat/completions.

TTFT runs from the request to the first piece of text, over a connection that was made before; ITL are the gaps between
pieces, seconds. Prompts are real text, and none begins as an earlier one did: a prefix cache holds nothing of it. Only the
standard library is needed. What goes wrong is one line (CandidateFailed): a stall, a cut stream, an error of the server's.
"""

from __future__ import annotations

import http.client
import itertools
import json
import math
import random
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import numpy as np

from quantadvisor.documents import BadInput, CandidateFailed

from .text import builtin_paragraphs
from .workers import Allowance, Generated

STALL_S = 60.0
"""Nothing for so long: the server has stopped answering."""
LONGEST_S = 900.0
"""One request."""
WORDS_PER_TOKEN = 0.75
TURNS = 2
"""Requests that each of several users sends in one round, one after the other: a closed loop."""
LARGEST_LINE = 1 << 20
LARGEST_ANSWER = 1 << 28
GREETING = "Good morning. I hope that this finds you well, and that you will answer me in a few short words, if you can."
"""The first request. Not of one token: vLLM 0.32's attention on a CPU uses AMX tiles without asking the kernel for them, and
dies of SIGILL unless a product of several rows, whose library does ask, came before (seen on tiny models)."""
UNKNOWN_HERE = (404, 405)
ANSWER = "an answer of the server's"


class Stream(NamedTuple):
    """One answer. `tokens`: what the server counted, None where it does not say."""

    ttft_s: float
    gaps_s: tuple[float, ...]
    pieces: tuple[str, ...]
    tokens: int | None
    prompt_tokens: int | None


class Endpoint(NamedTuple):
    path: str
    chat: bool


class HttpError(CandidateFailed):
    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"HTTP {status}: {said}")
        self.status = status


class Stalled(CandidateFailed):
    """It does not answer in time, whatever it is asked."""


class RunningServer:
    """The client of one server; what it learns about it (endpoint, model, words of a prompt) stays when it is left."""

    pid = 0
    """Its processes are not ours to watch."""

    def __init__(
        self, url: str, prompt_tokens: int, model: str, *, seed: int, side: str, stall_s: float = STALL_S,
        allowance: Allowance | None = None,
    ) -> None:  # fmt: skip
        """`seed` gives both sides of a gate the same texts, `side` different beginnings; `allowance`: of all that it is asked."""
        parts = split_url(url)
        self.url, self.stall_s, self.allowance = url, stall_s, allowance or Allowance()
        self.root = f"{parts.scheme}://{parts.netloc}"
        self.https, self.host, self.path = parts.scheme == "https", parts.netloc, parts.path.rstrip("/")
        self.prompt_tokens, self.model = prompt_tokens, model
        self.endpoint: Endpoint | None = None
        self.options: dict[str, Any] = {"stream_options": {"include_usage": True}, "ignore_eos": True}
        self.words = max(1, round(prompt_tokens * WORDS_PER_TOKEN))
        self.notes: list[str] = []
        self._text = " ".join(builtin_paragraphs("calibration")).split()
        self._places, self._names = random.Random(seed), random.Random(f"{side}{seed}")

    def __enter__(self) -> Self:
        self.ready()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def close(self) -> None:
        return None

    def ready(self) -> None:
        """Find the endpoint, the model and the length of a prompt, once."""
        if self.endpoint is None:
            self.model = self._served(self.model)
            self.endpoint = self._find()
            self._fit_words()

    def generate(self, tokens: np.ndarray, output_tokens: int) -> Generated:
        """As many users as `tokens` has rows (its values do not travel), in a closed loop; times of all their requests."""
        users = len(tokens)
        prompts = [[self.prompt() for _ in range(1 if users == 1 else TURNS)] for _ in range(users)]
        with ThreadPoolExecutor(users) as pool:
            done = list(pool.map(lambda own: [self.stream(prompt, output_tokens) for prompt in own], prompts))
        streams = [stream for own in done for stream in own]
        return Generated(
            ttft_s=float(np.median([stream.ttft_s for stream in streams])),
            itl_s=[gap for stream in streams for gap in token_gaps(stream)],
            generated=[[zlib.crc32(piece.encode()) for piece in own[0].pieces] for own in done],
            peak_bytes=0,
        )

    def greedy(self, prompt: str, output_tokens: int) -> tuple[str, ...]:
        """The pieces of one answer to a prompt that both sides get alike."""
        return self.stream(prompt, output_tokens).pieces

    def prompt(self, words: int | None = None) -> str:
        """Text of about the declared tokens (or of so many words) that starts as no other did."""
        at = self._places.randrange(len(self._text))
        body = itertools.islice(itertools.cycle(self._text), at, at + (words or self.words))
        return f"{self._names.randrange(10**8):08d} {' '.join(body)}"

    def stream(self, prompt: str, output_tokens: int) -> Stream:
        """One request, its pieces timed."""
        assert self.endpoint is not None
        return self._stream(self.endpoint, prompt, output_tokens)

    def models(self) -> list[str]:
        """The names that it serves; none where it does not say."""
        try:
            return [str(row["id"]) for row in self._ask("GET", f"{self._base()}/models", None)["data"]]
        except (HttpError, KeyError, TypeError):
            return []

    def _stream(self, endpoint: Endpoint, prompt: str, output_tokens: int) -> Stream:
        body = self._body(endpoint, prompt, output_tokens) | {"stream": True} | self.options
        with self._asking("stopped answering", self.stall_s) as connection:
            return read_stream(connection, endpoint, json.dumps(body).encode())

    def _body(self, endpoint: Endpoint, prompt: str, output_tokens: int) -> dict[str, Any]:
        asked = {"messages": [{"role": "user", "content": prompt}]} if endpoint.chat else {"prompt": prompt}
        return {"model": self.model, "max_tokens": output_tokens, "temperature": 0} | asked

    @contextmanager
    def _asking(self, failed: str, stall_s: float) -> Iterator[http.client.HTTPConnection]:
        """A connection for one request. It is cut when its candidate's time is over: to whom a byte comes now and then, nothing
        stalls. `failed`: what to say of it where there is no answer."""
        left_s = self.allowance.left_s
        if left_s <= 0:
            raise Stalled(self.allowance.over(ANSWER))
        try:
            with self.allowance.spending():
                connection = self._connect(min(stall_s, left_s))
                try:
                    with cut(connection, left_s):
                        yield connection
                finally:
                    connection.close()
        except (CandidateFailed, OSError, http.client.HTTPException, ValueError) as error:
            if self.allowance.left_s <= 0:
                raise Stalled(self.allowance.over(ANSWER)) from None
            if isinstance(error, CandidateFailed):
                raise
            if isinstance(error, TimeoutError):
                raise Stalled(f"{failed}: nothing for {stall_s:g} s") from None
            raise CandidateFailed(f"{failed}: {reason(error)}") from None

    def _connect(self, stall_s: float) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self.https else http.client.HTTPConnection
        connection = kind(self.host, timeout=stall_s)
        try:
            connection.connect()
        except (OSError, http.client.HTTPException) as error:
            raise CandidateFailed(f"does not answer: {reason(error)}") from None
        return connection

    def _served(self, wanted: str) -> str:
        """The model's name over there: the spec's where it is served, else the only one."""
        names = self.models()
        if wanted in names or not names:
            return wanted
        if len(names) > 1:
            raise BadInput(self.url, f"serves {', '.join(names[:8])}", "name one of them as model in the spec")
        return names[0]

    def _base(self) -> str:
        base: str = self.path.removesuffix("/completions").removesuffix("/chat")
        return base if base.endswith("/v1") else base + "/v1"

    def _find(self) -> Endpoint:
        """The endpoint that answers; options that the server does not know are left out."""
        named = self.path.endswith("/completions")
        tried = [Endpoint(f"{self._base()}/completions", False), Endpoint(f"{self._base()}/chat/completions", True)]
        wanted = [Endpoint(self.path, self.path.endswith("/chat/completions"))] if named else tried
        failed: HttpError | None = None
        for endpoint in wanted:
            try:
                return self._understood(endpoint)
            except HttpError as error:
                failed = error
                if error.status not in UNKNOWN_HERE:
                    break
        raise failed or CandidateFailed("no endpoint")

    def _understood(self, endpoint: Endpoint) -> Endpoint:
        while True:
            try:
                self._stream(endpoint, GREETING, 2)
                return endpoint
            except HttpError as error:
                if error.status not in (400, 422) or not self.options:
                    raise
                name, _ = self.options.popitem()
                self.notes.append(f"the server does not know {name}")

    def _fit_words(self) -> None:
        """Words for the declared prompt tokens, on the line through two prompts that the server counted."""
        counted: list[tuple[int, int]] = []
        for words in (self.words, max(1, self.words // 2)):
            seen = self.stream(self.prompt(words), 1).prompt_tokens
            if seen is None:
                self.notes.append("the server does not count a prompt's tokens: its length is estimated from words")
                return
            counted.append((words, seen))
        (w1, t1), (w0, t0) = counted
        slope = (t1 - t0) / (w1 - w0) if w1 > w0 and t1 > t0 else 1 / WORDS_PER_TOKEN
        self.words = max(1, round(w1 + (self.prompt_tokens - t1) / slope))

    def post(self, body: Mapping[str, Any], stall_s: float | None = None) -> Any:
        """The JSON of one answer that is not streamed, from the endpoint; `body` without the model. `stall_s`: what it may take,
        where that is another time than the client's."""
        assert self.endpoint is not None
        return self._ask("POST", self.endpoint.path, json.dumps({"model": self.model} | dict(body)).encode(), stall_s=stall_s)

    def metrics(self) -> str:
        """What it tells in Prometheus' format; nothing where it does not."""
        try:
            return str(self._ask("GET", "/metrics", None, read=str))
        except HttpError:
            return ""

    def _ask(self, method: str, path: str, body: bytes | None, read: Callable[[str], Any] = json.loads,
             stall_s: float | None = None) -> Any:  # fmt: skip
        with self._asking("does not answer", stall_s or self.stall_s) as connection:
            connection.request(method, path, body, {"Accept": "application/json", "Content-Type": "application/json"})
            with connection.getresponse() as response:
                return read(checked(response))


@contextmanager
def cut(connection: http.client.HTTPConnection, seconds: float) -> Iterator[None]:
    """Who reads from the connection gets nothing more after so many seconds; math.inf: never."""

    def end(line: socket.socket = connection.sock) -> None:  # a response may have taken it from the connection by then
        with suppress(OSError):
            line.shutdown(socket.SHUT_RDWR)

    if math.isinf(seconds):
        yield
        return
    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def split_url(url: str) -> Any:
    """The parts of an http(s) URL with a host, or BadInput."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 80) > 0
    except ValueError as error:
        raise BadInput(url, f"is no URL of a server: {error}", "give one such as http://127.0.0.1:8000") from None
    if not good:
        raise BadInput(url, "is no URL of a server", "give one such as http://127.0.0.1:8000")
    return parts


def read_stream(connection: http.client.HTTPConnection, endpoint: Endpoint, body: bytes) -> Stream:
    """Send, then time every piece of text until the stream says that it ends."""
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    start = time.perf_counter()
    connection.request("POST", endpoint.path, body, headers)
    with connection.getresponse() as response:
        if response.status != 200:
            checked(response)
        at, pieces, ended = list[float](), list[str](), False
        usage: Mapping[str, Any] = {}
        for event in events(response, start + LONGEST_S):
            now = time.perf_counter()
            if event is None:
                ended = True
                break
            if "error" in event:
                raise CandidateFailed(f"answered with an error: {shortened(event['error'])}")
            usage = event.get("usage") or usage
            for choice in event.get("choices") or ():
                piece = text_of(choice)
                if piece:
                    at.append(now)
                    pieces.append(piece)
                ended = ended or choice.get("finish_reason") is not None
    if not pieces:
        raise CandidateFailed("answered without a single token")
    if not ended:
        raise CandidateFailed(f"stopped answering after {len(pieces)} tokens")
    gaps = tuple(float(gap) for gap in np.diff(at))
    return Stream(at[0] - start, gaps, tuple(pieces), count(usage, "completion_tokens"), count(usage, "prompt_tokens"))


def events(response: http.client.HTTPResponse, deadline: float) -> Iterator[Mapping[str, Any] | None]:
    """The JSON of each `data:` line of a server-sent stream; None for [DONE]."""
    while line := response.readline(LARGEST_LINE):
        if time.perf_counter() > deadline:
            raise CandidateFailed(f"a request took more than {LONGEST_S:g} s")
        name, _, data = line.strip().partition(b":")
        if name != b"data":
            continue
        if data.strip() == b"[DONE]":
            yield None
            return
        event = json.loads(data)
        if not isinstance(event, dict):
            raise CandidateFailed(f"streams what is no completion: {shortened(event)}")
        yield event


def text_of(choice: Mapping[str, Any]) -> str:
    """The text of one choice, of a completion's event or a chat's."""
    delta = choice.get("delta") or {}
    found = choice.get("text") or delta.get("content") or delta.get("reasoning_content") or ""
    return str(found)


def count(usage: Mapping[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if isinstance(value, int) and value > 0 else None


def token_gaps(stream: Stream) -> list[float]:
    """Gaps between tokens: those between pieces where each is one token, else their mean, as often as there were tokens."""
    gaps = list(stream.gaps_s)
    many = max(len(gaps), (stream.tokens or 0) - 1)
    if many == len(gaps) and all(gap > 0 for gap in gaps):
        return gaps
    total = sum(gaps)
    return [total / many] * many if total > 0 else []


def checked(response: http.client.HTTPResponse) -> str:
    """The text of an answer, or HttpError with what the server says."""
    said = response.read(LARGEST_ANSWER).decode(errors="replace")
    if response.status != 200:
        raise HttpError(response.status, shortened(said or response.reason))
    return said


def shortened(said: object) -> str:
    return " ".join(str(said).split())[:200]


def reason(error: Exception) -> str:
    return shortened(getattr(error, "strerror", None) or error or type(error).__name__)
