"""Servers as candidates: the user's by URL, and ours where vLLM is named; with stand-ins of vLLM as real processes."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from quantadvisor.advisor import prove
from quantadvisor.advisor.candidates import asked_runtimes, baseline_name, recipe, session_options
from quantadvisor.advisor.decide import best_unquantized, decide, ranked
from quantadvisor.advisor.servers import NO_PASSKEY, TASKS_UNASKED, evidence_of, given_servers, serves_here, today
from quantadvisor.documents import BadInput, Candidate, CandidateFailed, Device, Inventory, Workload
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.measure import interleave
from quantadvisor.profiling.quality import budget_breach
from quantadvisor.profiling.runtimes import vllm
from quantadvisor.profiling.served import Served, free_port
from quantadvisor.profiling.server import RunningServer, Stalled
from quantadvisor.profiling.workers import Allowance, RunningWorker

from ..kernels.test_guardian import alive
from ..profiling.test_served import ITL_S, TTFT_S, running
from .documents import candidate, quality, workload
from .test_decide import DIAGNOSIS
from .test_prove import RUNTIME

DEVICE = Device(name="planted", cores=1, threads=1, memory_bytes=1 << 30, fingerprint="f")
TRAFFIC = {"prompt_tokens": 6, "output_tokens": 4, "concurrency": 2}
PASSKEY, LOST = " t7 t8 t9", " t7 t8 t8"


def spec(*runtimes: object) -> Workload:
    return workload(runtimes=runtimes, traffic=TRAFFIC)


def context(tmp_path: Path, python: str, asked: Workload) -> Any:
    """Workers are of the virtual runtime; the model is a text of uniform windows."""
    inventory = Inventory.model_construct(kv_values_per_token=64, head_dim=8)
    Tokenizer(WordLevel({"w": 0, **{f"t{i}": i for i in range(1, 64)}}, unk_token="t1")).save(str(tmp_path / "tokenizer.json"))
    return SimpleNamespace(
        workload=asked, inventory=inventory, model_folder=tmp_path, prompts=np.zeros((2, 6), np.int64),
        device=SimpleNamespace(kind="cpu", threads=1, memory_bytes=1 << 30), allowance=lambda _: Allowance(),
        interpreter=lambda _: python, build_of=lambda _: SimpleNamespace(out=tmp_path), build_all=lambda builds: {},
        options_of=lambda *_: (f"{vllm.POOL}{1 << 20}",),
        worker_of=lambda _: RunningWorker(RUNTIME, Path("nowhere"), (), 1),
        windows=lambda end, start=0: np.arange(64, dtype=np.int64).reshape(1, 64) % 8,
        passkey=lambda: (np.arange(40), np.array([7, 8, 9])),
        evaluation=(None, SimpleNamespace(name="text", licence="none")), progress=SimpleNamespace(say=lambda _: None),
    )  # fmt: skip


def test_a_url_is_a_candidate_and_not_a_runtime_to_start(tmp_path: Path, python: str) -> None:
    with running(python, tmp_path) as url:
        nobody = f"http://127.0.0.1:{free_port()}"
        asked = spec("torch", {"name": "vllm", "url": url}, {"name": "vllm", "url": nobody})
        found = given_servers(asked)
    assert set(asked_runtimes(asked)) == {"torch"}
    assert [c.name for c in found] == ["given-server@vllm", "given-server2@vllm"]
    assert found[0].refused is None
    assert found[1].refused == f"{nobody} does not answer: Connection refused"
    assert not serves_here(asked, found[0])


def test_a_url_that_is_none_is_one_line() -> None:
    with pytest.raises(BadInput, match="give one such as http"):
        asked_runtimes(spec({"name": "vllm", "url": "localhost:8000"}))


@pytest.mark.parametrize("no_logprobs", [False, True])
def test_a_given_server_is_measured_and_judged_by_what_it_tells(
    tmp_path: Path, python: str, monkeypatch: pytest.MonkeyPatch, no_logprobs: bool
) -> None:
    """Uniform over the 8 tokens that it tells, as the reference is: no KL; where it tells none it is measured, not chosen."""
    np.save(tmp_path / "reference.npy", np.full((64, 8), np.log(1 / 8), np.float16))
    monkeypatch.setattr("quantadvisor.advisor.servers.make_reference", lambda _: tmp_path / "reference.npy")
    with running(python, tmp_path, no_logprobs=no_logprobs, continues=PASSKEY) as url:
        asked = spec({"name": "vllm", "url": url, "python": python})
        (given,) = given_servers(asked)
        (trial,) = prove.run_trials(context(tmp_path, python, asked), [given], None, 2).trials  # type: ignore[arg-type]
    assert trial.failed is None
    seen = prove.with_trial(given, trial, context(tmp_path, python, asked))
    assert seen.measured and seen.measured.ttft_s and seen.measured.tpot_s
    assert TTFT_S <= seen.measured.ttft_s.median < TTFT_S + 0.1
    assert ITL_S * 0.9 <= seen.measured.tpot_s.median < ITL_S * 5
    assert seen.measured.peak_bytes is None
    assert seen.measured.max_concurrency and seen.measured.max_concurrency.median == 19  # 12 blocks of 16 tokens, 10 each
    assert seen.operators is None
    assert "operators are unknown" in seen.notes[0]
    others = [seen, candidate("none-bf16@torch", 9.0, target="none")]
    if no_logprobs:
        assert seen.quality is None
        assert "its quality is not known, so it is not chosen: its log-probabilities cannot be had" in seen.notes[-1]
        assert [c.name for c in ranked(others, asked)] == ["none-bf16@torch"]
    else:
        assert seen.quality and seen.quality.kl.mean == pytest.approx(0.0, abs=1e-3)
        assert seen.quality.passkey_found
        assert "lower bound" in seen.notes[-1]
        assert [c.name for c in ranked(others, asked)] == ["given-server@vllm", "none-bf16@torch"]
    plain = best_unquantized(others, None, asked)
    assert plain and plain.name == "none-bf16@torch"  # what a server quantizes is not known


@pytest.mark.parametrize(
    "fault", [{"never_answers": "prompt_logprobs"}, {"drips": "prompt_logprobs"}, {"never_answers": "passkey"}]
)
def test_a_server_that_hangs_while_it_is_scored_is_refused_within_its_candidates_allowance(
    tmp_path: Path, python: str, monkeypatch: pytest.MonkeyPatch, fault: dict[str, str]
) -> None:
    """After rounds in which it answered: it accepts and says nothing, or a byte now and then."""
    np.save(tmp_path / "reference.npy", np.full((64, 8), np.log(1 / 8), np.float16))
    monkeypatch.setattr("quantadvisor.advisor.servers.make_reference", lambda _: tmp_path / "reference.npy")
    allowance = Allowance(1e6, "a larger budget gives it more")
    measured = prove.evidence
    began: list[float] = []

    def scored(*inputs: Any) -> prove.Trial:
        allowance.seconds = allowance.left_s = 2.0  # not before: a start may take longer on a busy machine
        began.append(time.monotonic())
        return measured(*inputs)

    monkeypatch.setattr(prove, "evidence", scored)
    with running(python, tmp_path, **fault) as url:
        asked = spec({"name": "vllm", "url": url, "python": python})
        made = context(tmp_path, python, asked)
        made.allowance = lambda _: allowance
        (given,) = given_servers(asked)
        (trial,) = prove.run_trials(made, [given], None, 2).trials  # type: ignore[arg-type]
    assert 1.9 < time.monotonic() - began[0] < 10
    assert trial.failed == (
        "while its quality was scored: an answer of the server's was not done when the 2 s of one candidate were over; "
        "a larger budget gives it more"
    )
    assert prove.with_trial(given, trial, made).refused == trial.failed
    with pytest.raises(Stalled, match="when the 2 s of one candidate were over"):
        RunningServer("http://127.0.0.1:1", 1, "", seed=0, side="", allowance=allowance).ready()


def test_a_server_that_stalls_at_one_request_is_refused_before_its_allowance_is_over(
    tmp_path: Path, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "reference.npy", np.full((64, 8), np.log(1 / 8), np.float16))
    monkeypatch.setattr("quantadvisor.advisor.servers.make_reference", lambda _: tmp_path / "reference.npy")
    with running(python, tmp_path, never_answers="prompt_logprobs") as url:
        asked = spec({"name": "vllm", "url": url, "python": python})
        with RunningServer(url, 1, "", seed=0, side="") as client:
            client.stall_s = 1.0
            served: Any = SimpleNamespace(asked=client)
            with pytest.raises(CandidateFailed, match="while its quality was scored: does not answer: nothing for 1 s"):
                evidence_of(context(tmp_path, python, asked), given_servers(asked)[0], served)


def test_a_server_is_not_chosen_where_the_spec_has_tasks_which_it_is_not_asked(
    tmp_path: Path, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its log-probabilities alone are inside the budget; the score of a task is no part of them."""
    np.save(tmp_path / "reference.npy", np.full((64, 8), np.log(1 / 8), np.float16))
    monkeypatch.setattr("quantadvisor.advisor.servers.make_reference", lambda _: tmp_path / "reference.npy")
    with running(python, tmp_path, continues=PASSKEY) as url:
        plain = spec({"name": "vllm", "url": url, "python": python})
        asked = workload(runtimes=plain.runtimes, traffic=TRAFFIC, quality={"tasks": {"arc.yaml": {"max_drop": 1.0}}})
        with RunningServer(url, 1, "", seed=0, side="") as client:
            served: Any = SimpleNamespace(asked=client)
            _, seen, notes = evidence_of(context(tmp_path, python, asked), given_servers(asked)[0], served)
            _, _, silent = evidence_of(context(tmp_path, python, plain), given_servers(plain)[0], served)
    assert TASKS_UNASKED in notes and TASKS_UNASKED not in silent
    assert seen and budget_breach(seen, plain) is None
    assert budget_breach(seen, asked) == "arc.yaml of quality.tasks was not asked of it"
    assert budget_breach(seen.model_copy(update={"simulated": True}), asked) is None


@pytest.mark.parametrize(
    ("cache", "says", "fp32", "found", "reason"),
    [
        ("fp8", PASSKEY, None, True, None),
        ("fp8", LOST, True, False, "the passkey at the declared context is not found"),
        ("fp8", LOST, False, False, "nor by the fp32 model: nothing shows what this cache keeps"),
        ("auto", LOST, True, False, "the passkey at the declared context is not found"),
        (None, LOST, True, False, "the passkey at the declared context is not found"),
        (None, LOST, False, None, None),
        ("bfloat16", LOST, None, None, None),
    ],
)
def test_a_server_that_loses_the_passkey_is_not_chosen(
    tmp_path: Path, python: str, monkeypatch: pytest.MonkeyPatch,
    cache: str | None, says: str, fp32: bool | None, found: bool | None, reason: str | None,
) -> None:  # fmt: skip
    """By what it goes on with after the prompt; the fp32 model is asked only where the passkey is lost, and excuses only a cache
    that is not known to be quantized. A server that says that its cache is not quantized is not asked."""
    np.save(tmp_path / "reference.npy", np.full((64, 8), np.log(1 / 8), np.float16))
    monkeypatch.setattr("quantadvisor.advisor.servers.make_reference", lambda _: tmp_path / "reference.npy")
    looked: list[object] = []
    monkeypatch.setattr("quantadvisor.advisor.servers.reference_finds", lambda one: looked.append(one) or fp32)
    with running(python, tmp_path, continues=says, **({"cache_dtype": cache} if cache else {})) as url:
        asked = spec({"name": "vllm", "url": url, "python": python})
        (given,) = given_servers(asked)
        with RunningServer(url, 1, "", seed=0, side="") as client:
            served: Any = SimpleNamespace(asked=client)
            _, seen, notes = evidence_of(context(tmp_path, python, asked), given, served)
    assert seen and len(looked) == (fp32 is not None)
    assert seen.passkey_found is found
    assert reason in str(budget_breach(seen, asked)) if reason else budget_breach(seen, asked) is None
    assert (NO_PASSKEY in notes) == (fp32 is False and found is None)


def test_our_server_is_timed_and_makes_room_for_the_worker(tmp_path: Path, python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = spec("vllm")
    mine = Candidate.model_validate(candidate("none-bf16@vllm", 1.0).model_dump() | {"measured": None})
    assert serves_here(asked, mine)
    assert not serves_here(workload(), mine)  # `auto`: the engine in a worker
    made = context(tmp_path, python, asked)
    (tmp_path / "faults.json").write_text(json.dumps({"engine": True}))
    processes: list[int] = []

    def worker(_: Candidate) -> RunningWorker:
        assert not any(map(alive, processes))
        return RunningWorker(RUNTIME, Path("nowhere"), (), 1)

    made.worker_of = worker
    monkeypatch.setattr(prove, "quality_of_candidate", lambda *_: quality(0.01))
    with ExitStack() as stack:
        sessions, failed = prove.start_workers({mine.name: prove.session_of(made, mine)}, stack)
        assert not failed
        session = sessions[mine.name]
        assert isinstance(session, Served) and session.own and session.own._process
        processes += [session.own._process.pid, int((tmp_path / "engine").read_text())]
        assert all(map(alive, processes))
        rows, _ = interleave(sessions, made.prompts, asked.traffic, 2)
        baseline = SimpleNamespace(name="none-bf16@torch")
        trial = prove.evidence(made, mine, session, rows[mine.name], None, 0.0, baseline)  # type: ignore[arg-type]
    assert trial.failed is None
    assert all(one.served for one in trial.rounds)
    assert trial.operators and trial.operators.linears == 1  # the virtual runtime's
    assert "in a worker" in trial.notes[0]
    measured = prove.with_trial(mine, trial, made).measured
    assert measured and measured.load_s and measured.load_s.source == "until the server answers"
    assert measured.peak_bytes and "imports too" in measured.peak_bytes.source


def test_the_users_server_is_the_baseline_where_it_was_measured() -> None:
    """By itself, or named; not one that did not answer, nor where the spec names another. What is profiled is torch's."""
    torch = candidate("none-fp32@torch", 2.0, target="none", tpot=1e-6)
    server = candidate("none-bf16@vllm", 1.0, target="none", tpot=1e-6)
    server = server.model_copy(update={"name": "given-server@vllm", "url": "http://h"})
    assert today([torch, server], torch.name, spec("torch")) == server.name
    assert today([torch, server.model_copy(update={"measured": None})], torch.name, spec("torch")) == torch.name
    named = spec("torch").model_copy(update={"baseline": server.name})
    assert today([torch, server], torch.name, named) == server.name
    assert baseline_name(named, DEVICE, None, "float32") == torch.name
    assert today([torch, server], torch.name, named.model_copy(update={"baseline": torch.name})) == torch.name
    faster = candidate("rtn-w8-g64@onnxruntime", 0.5, tpot=1e-6)
    found = decide([torch, server, faster], server.name, spec("torch"), DIAGNOSIS, None)
    assert found.choice == faster.name
    assert f"on {DIAGNOSIS.of})" in found.reason  # where its shares were seen
    assert "is 2.00x the baseline" in found.reason
    assert found.speedup and found.speedup.total == pytest.approx(2.0, rel=1e-3)
    kept = decide([torch, server], server.name, spec("torch"), DIAGNOSIS, None)
    assert not kept.change


def test_a_chosen_server_is_said_to_be_one() -> None:
    given = candidate("given-server@vllm".replace("server", "bf16"), 1.0, target="none").model_copy(
        update={"name": "given-server@vllm", "url": "http://127.0.0.1:8000"}
    )
    found = decide([given, candidate("none-bf16@torch", 2.0, target="none")], "none-bf16@torch", spec("torch"), DIAGNOSIS, None)
    assert found.choice == "given-server@vllm"
    assert "Use the server at http://127.0.0.1:8000" in found.reason
    assert "what it quantizes is not known" in found.reason


def test_an_fp8_cache_is_an_option_of_vllm_and_its_server() -> None:
    """The artifact is that of the plain scheme; engine and server are told alike."""
    for method, writes, plain in (("kv_fp8", "none", "bf16"), ("smoothquant", "smoothquant", "w8a8-bf16")):
        assert recipe(method, scheme(f"{plain}-kvf8-unit"), "vllm") == (writes, scheme(plain))
    options = session_options("vllm", (), scheme("bf16-kvf8-unit"))
    assert options == ("kvfp8",)
    assert session_options("vllm", (), scheme("bf16")) == ()
    arguments, _ = vllm.server("folder", options, 8000, "m", 1)
    assert vllm.OPTIONS["kvfp8"] == {"kv_cache_dtype": "fp8"}
    assert ["--kv-cache-dtype", "fp8"] in [arguments[i : i + 2] for i in range(len(arguments))]
