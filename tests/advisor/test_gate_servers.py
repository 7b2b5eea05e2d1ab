"""Running servers as sides: a real HTTP server on 127.0.0.1 that streams tokens by a clock, and its faults."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantadvisor.advisor.gate_live import gate_live
from quantadvisor.advisor.gate_servers import servers_live
from quantadvisor.documents import BadInput, CandidateFailed, Device
from quantadvisor.profiling import server as client
from quantadvisor.profiling.server import RunningServer, Stream, split_url, token_gaps

from .documents import workload
from .test_gate_command import gate

TTFT_S, ITL_S = 0.010, 0.004
DEVICE = Device(name="here", cores=2, threads=2, memory_bytes=1 << 30, fingerprint="f")
SPEC = """schema: quantadvisor/workload/1
model: m
traffic: {prompt_tokens: 40, output_tokens: 5, concurrency: 1}
"""


class Answers(BaseHTTPRequestHandler):
    """/v1/models, /v1/completions and /v1/chat/completions; `server.faults` say what is wrong."""

    protocol_version = "HTTP/1.1"
    server: "Streaming"

    def log_message(self, *_: object) -> None: ...

    def plain(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        faults = self.server.faults
        if faults.get("no_models"):
            self.plain(404, {"error": "unknown"})
        else:
            self.plain(200, {"data": [{"id": name} for name in faults.get("models", ["served"])]})

    def do_POST(self) -> None:
        faults, asked = self.server.faults, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        chat = self.path.endswith("/chat/completions")
        if (chat and not faults.get("chat")) or (not chat and faults.get("chat")):
            return self.plain(404, {"error": "no such path"})
        for option in faults.get("unknown", ()):
            if option in asked:
                return self.plain(400, {"error": f"unknown field {option}"})
        if len(self.server.asked) > faults.get("fails_after", 1e9):
            return self.plain(500, {"error": "out of memory"})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self.stream(asked, chat)

    def stream(self, asked: dict[str, Any], chat: bool) -> None:
        faults = self.server.faults
        slower = faults.get("slower", 1.0)
        many = min(asked["max_tokens"], faults.get("most", 1 << 20))
        text = asked["messages"][0]["content"] if chat else asked["prompt"]
        due = time.perf_counter() + TTFT_S
        for i in range(many):
            time.sleep(max(0.0, due - time.perf_counter()))
            if faults.get("stalls_at") == i and len(self.server.asked) > faults.get("healthy", 0):
                self.server.released.wait(20)
                return
            if faults.get("cut_at") == i:
                return
            piece = "same " if faults.get("stuck") else f"w{i} "
            choice: dict[str, Any] = {"delta": {"content": piece}} if chat else {"text": piece}
            self.event({"choices": [choice | {"finish_reason": "length" if i == many - 1 else None}]})
            due = time.perf_counter() + ITL_S * slower
        if not faults.get("no_usage") and "stream_options" in asked:
            counted = {"prompt_tokens": 3 + 2 * len(text.split()), "completion_tokens": many * faults.get("per_piece", 1)}
            self.event({"choices": [], "usage": counted})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, body: object) -> None:
        self.wfile.write(b": comment\n\ndata: " + json.dumps(body).encode() + b"\n\n")
        self.wfile.flush()


class Streaming(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, **faults: Any) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.faults, self.asked, self.released = faults, list[dict[str, Any]](), threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None: ...

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving(**faults: Any) -> Iterator[Streaming]:
    made = Streaming(**faults)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield made
    finally:
        made.released.set()
        made.shutdown()
        thread.join()
        made.server_close()


def client_of(url: str, prompt_tokens: int = 40, model: str = "m", stall_s: float = 5.0) -> RunningServer:
    made = RunningServer(url, prompt_tokens, model, seed=1, side="baseline", stall_s=stall_s)
    made.ready()
    return made


@pytest.mark.parametrize("chat", [False, True])
def test_times_are_those_of_the_clock(chat: bool) -> None:
    with serving(chat=chat) as made:
        seen = client_of(made.url).generate(np.zeros((1, 40), np.int64), 9)
    assert TTFT_S <= seen.ttft_s < TTFT_S + 0.03
    assert len(seen.itl_s) == 8
    assert ITL_S * 0.9 <= float(np.median(seen.itl_s)) < ITL_S * 2
    assert len(seen.generated[0]) == 9


def test_prompts_have_the_declared_length_and_none_comes_twice() -> None:
    """The server counts three tokens and two for each word."""
    with serving() as made:
        asked = client_of(made.url)
        for _ in range(3):
            asked.generate(np.zeros((2, 40), np.int64), 2)
        prompts = [one["prompt"] for one in made.asked[3:]]
    assert len(prompts) == 12  # three rounds, two users, two turns each
    assert len({prompt.split()[0] for prompt in prompts}) == 12
    assert {3 + 2 * len(prompt.split()) for prompt in prompts} <= {39, 41}
    assert made.asked[-1]["model"] == "served"
    assert made.asked[-1]["ignore_eos"] is True


def test_what_a_server_does_not_know_is_left_out_and_said() -> None:
    with serving(unknown=("ignore_eos",), no_usage=True, no_models=True) as made:
        asked = client_of(made.url + "/v1/")
        asked.generate(np.zeros((1, 40), np.int64), 2)
        assert "ignore_eos" not in made.asked[-1]
        assert made.asked[-1]["model"] == "m"
    assert any("ignore_eos" in note for note in asked.notes)
    assert any("estimated" in note for note in asked.notes)


def test_several_tokens_in_a_piece_are_counted_by_the_server() -> None:
    stream = Stream(0.1, (0.2, 0.4), ("a", "b", "c"), tokens=7, prompt_tokens=None)
    assert token_gaps(stream) == pytest.approx([0.1] * 6)
    assert token_gaps(stream._replace(tokens=3)) == [0.2, 0.4]
    assert token_gaps(stream._replace(gaps_s=(0.0, 0.4), tokens=None)) == pytest.approx([0.2, 0.2])
    with serving(per_piece=2) as made:
        assert len(client_of(made.url).generate(np.zeros((1, 40), np.int64), 4).itl_s) == 7


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ({"cut_at": 3, "most": 8}, "stopped answering after 3 tokens"),
        ({"cut_at": 0}, "without a single token"),
        ({"fails_after": 0}, "HTTP 500: .*out of memory"),
        ({"models": ["a", "b"]}, "serves a, b"),
        ({"stalls_at": 1}, "stopped answering: nothing for 0.3 s"),
    ],
)
def test_a_server_that_fails_is_one_line(faults: dict[str, Any], said: str) -> None:
    with serving(**faults) as made, pytest.raises((CandidateFailed, BadInput), match=said) as caught:
        client_of(made.url, stall_s=0.3).generate(np.zeros((1, 40), np.int64), 6)
    assert len(str(caught.value).splitlines()) == 1


def test_nobody_there_is_one_line() -> None:
    with serving() as made:
        url = made.url
    with pytest.raises(CandidateFailed, match="does not answer: Connection refused"):
        client_of(url)
    for wrong in ("http://", "http://host:port", "ftp://host", "http://[::1"):
        with pytest.raises(BadInput, match="no URL"):
            split_url(wrong)


def gated(budget_s: float = 30.0, candidate: dict[str, Any] | None = None, **baseline: Any) -> Any:
    """A gate between two servers of this clock, in this process."""
    from dataclasses import replace

    traffic = {"prompt_tokens": 40, "output_tokens": 12, "concurrency": 1}
    with ExitStack() as stack:
        urls = [stack.enter_context(serving(**faults)).url for faults in (baseline, candidate or {})]
        live = servers_live((urls[0], urls[1]), workload(traffic=traffic), DEVICE, seed=3)
        return gate_live(replace(live, budget_s=budget_s))


def test_a_slower_server_is_a_regression_of_its_decode() -> None:
    made = gated(candidate={"slower": 1.3})
    assert made.exit_code == 1
    assert {m.name for m in made.metrics if m.state == "regression"} & {"tpot_s", "itl_s"}
    assert {m.name for m in made.metrics} == {"ttft_s", "tpot_s", "itl_s", "output"}
    assert any("cannot be seen through HTTP" in note for note in made.notes)
    assert made.rejected_blocks == 0


def test_the_same_server_is_no_regression() -> None:
    assert gated().exit_code in (0, 4)


def test_a_server_that_ends_early_is_anomalous() -> None:
    assert gated(candidate={"most": 7}).exit_code in (1, 3)
    made = gated(candidate={"most": 7})
    assert [m.state for m in made.metrics if m.name == "output"] == ["anomalous"]


@pytest.mark.parametrize("side", ["baseline", "candidate"])
def test_a_server_that_stops_answering_is_bad_input(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(client.RunningServer.__init__.__kwdefaults__, "stall_s", 0.3)
    faults = {"stalls_at": 2, "healthy": 12}
    with pytest.raises(BadInput, match=rf"{side} \(http.*stopped answering") as caught:
        gated(candidate=faults) if side == "candidate" else gated(**faults)
    assert caught.value.exit_code == 2


def test_from_a_shell(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC)
    with serving() as made:
        done = gate(made.url, made.url, "--workload", str(spec), "--time-budget", "10", "--json")
    assert done.returncode in (0, 4), done.stderr
    assert json.loads(done.stdout)["device"].startswith("servers, asked from")
    for arguments, said in (
        ((made.url, made.url, "--workload", str(spec)), "Connection refused"),
        ((made.url, made.url), "--workload"),
        ((made.url, str(tmp_path), "--workload", str(spec)), "two of a kind"),
        ((made.url, made.url, "--workload", str(spec), "--runtime", "torch"), "--runtime"),
        (("http://", made.url, "--workload", str(spec)), "no URL"),
    ):
        failed = gate(*arguments, "--quiet")
        assert failed.returncode == 2
        assert said in failed.stderr
        assert len(failed.stderr.strip().splitlines()) == 1
