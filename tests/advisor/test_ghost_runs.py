"""Ghosts within their time, on the virtual runtime: in the order of their promise, and a shared process where that is dear."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quantadvisor.advisor import ghost_runs
from quantadvisor.advisor.expected import Expected
from quantadvisor.advisor.ghost_runs import Seats, in_turn
from quantadvisor.advisor.ghosts import ghost_of
from quantadvisor.documents import Candidate
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.ledger import bytes_of_weights, pool_bytes
from quantadvisor.profiling.measure import Round
from quantadvisor.profiling.nvml import Summary
from quantadvisor.profiling.workers import Allowance, RunningWorker

from ..kernels.test_guardian import alive
from .documents import candidate, workload
from .test_diagnose import INVENTORY
from .test_prove import RUNTIME, TRAFFIC

ADVISE_S = 100.0


def context(options: dict[str, tuple[str, ...]] | None = None) -> Any:
    """Workers of the virtual runtime; `options`: faults by the candidate's runtime."""

    def options_of(runtime: str, *_: object) -> tuple[str, ...]:
        return (options or {}).get(runtime, ())

    return SimpleNamespace(
        workload=workload(traffic=TRAFFIC, budget={"advise_s": ADVISE_S}), inventory=INVENTORY, prompts=np.ones((2, 8), np.int64),
        device=SimpleNamespace(threads=1, kind="cpu"), progress=SimpleNamespace(say=lambda _: None), options_of=options_of,
        worker=lambda runtime, path, *_: RunningWorker(RUNTIME, path, options_of(runtime), 1), allowance=lambda _: Allowance(),
    )  # fmt: skip


def ran(made: Any, order: list[Candidate], expectations: dict[str, Expected | None] | None = None) -> tuple[Any, Any, Any]:
    return in_turn(made, order, {c.name: Path(c.name) for c in order}, {}, expectations or {})


A, B = candidate("rtn-w8-g64@onnxruntime", 1.0), candidate("rtn-w4-g64@onnxruntime", 1.0)
V, W = candidate("none-bf16@vllm", 1.0), candidate("dynamic_int8-w8a8-bf16@vllm", 1.0)


def test_everybody_has_its_rounds_while_there_is_time() -> None:
    rows, failed, unused = ran(context(), [A, V, W])
    assert {name: len(made) for name, made in rows.items()} == {c.name: ghost_runs.ROUNDS for c in (A, V, W)}
    assert not failed
    assert not unused


def test_two_of_which_a_ratio_is_taken_have_their_rounds_where_others_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """GenAI is predicted through ONNX Runtime by the ratio of their ghosts of one scheme."""
    monkeypatch.setattr(ghost_runs, "FURTHER_SHARE", 0.0)
    twin = candidate("rtn-w8-g64@onnxruntime-genai", 1.0)
    rows, failed, unused = ran(context(), [A, B, twin])
    assert [len(rows[c.name]) for c in (A, B, twin)] == [ghost_runs.ROUNDS, 1, ghost_runs.ROUNDS]
    assert not failed
    assert not unused


def test_who_comes_last_is_not_run_when_the_time_is_over_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of which each look takes 20 s: the first has its one round; the half of 100 s is over before the second."""
    clock = count(0, 20)
    monkeypatch.setattr(ghost_runs, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    rows, failed, unused = ran(context(), [A, B])
    assert set(rows) == {A.name}
    assert not failed
    assert unused == {B.name: "not run: the others took the 50 s that ghosts have of budget.advise_s"}


def test_a_runtime_that_starts_slowly_runs_its_ghosts_in_one_process() -> None:
    order = [V, W, A, B]
    with Seats(context(), {c.name: Path(c.name) for c in order}) as seats:
        assert not seats.start(order)
        workers = [seats.load(c) for c in order]
        pids = [worker.pid for worker in workers]
    assert pids[0] == pids[1]
    assert len(set(pids)) == 3
    assert not any(map(alive, pids))


@pytest.mark.parametrize("crowded", [True, False])
def test_on_a_crowded_gpu_each_leaves_when_it_is_done(monkeypatch: pytest.MonkeyPatch, crowded: bool) -> None:
    """With all of its rounds, and before the next is loaded."""
    order, held = [A, B, V], []

    def parts(_: Any, candidates: list[Candidate]) -> list[list[Candidate]]:
        return [[one] for one in candidates] if crowded else [candidates]

    class Watched(Seats):
        def load(self, candidate: Candidate) -> RunningWorker:
            held.append(sum(alive(worker.pid) for worker in self._workers.values() if hasattr(worker, "loaded")))
            made = super().load(candidate)
            made.loaded = True  # type: ignore[assignment]
            return made

    monkeypatch.setattr(ghost_runs, "in_parts", parts)
    monkeypatch.setattr(ghost_runs, "Seats", Watched)
    rows, failed, unused = ran(context(), order)
    assert {name: len(made) for name, made in rows.items()} == {c.name: ghost_runs.ROUNDS for c in order}
    assert not failed
    assert not unused
    assert held == ([0, 0, 0] if crowded else [0, 1, 2])


def test_one_that_breaks_leaves_the_next_a_fresh_process() -> None:
    made = context()
    faults: Iterator[tuple[str, ...]] = iter([("crash",), ()])
    made.options_of = lambda *_: next(faults)
    made.worker = lambda runtime, path, *_: RunningWorker(RUNTIME, path, (), 1)
    rows, failed, _ = ran(made, [V, W])
    assert "SIGSEGV" in failed[V.name]
    assert set(rows) == {W.name}


def test_one_that_does_not_answer_takes_no_more_than_all_of_them_may() -> None:
    made = context({"onnxruntime": ("hang",)})
    made.workload = workload(traffic=TRAFFIC, budget={"advise_s": 3.0})
    rows, failed, _ = ran(made, [A])
    assert failed == {A.name: "no answer to generate within 2 s"}  # 1.5
    assert not rows


def test_one_that_has_used_up_its_time_fails_alone_in_a_process_of_several() -> None:
    made = context()
    made.allowance = lambda name: Allowance(0.0 if name == V.name else 100.0, "a larger budget.advise_s gives it more")
    rows, failed, _ = ran(made, [V, W])
    assert failed == {V.name: "load was not done when the 0 s of one candidate were over; a larger budget.advise_s gives it more"}
    assert set(rows) == {W.name}


def test_a_time_that_cannot_be_is_measured_again_and_then_not_believed() -> None:
    """The virtual runtime takes 50 ms for the first token: 0.1 ms cannot be what it takes, 20 ms can."""
    rows, failed, unused = ran(context(), [A, B], {A.name: Expected(1e-4, 1e-3), B.name: Expected(0.02, 0.01)})
    assert not failed
    assert len(rows[A.name]) == 1
    assert unused[A.name].startswith("not believed: TTFT of 0.05")
    assert "times the 0.0001 s that its kernels and the baseline's other parts take" in unused[A.name]
    assert set(unused) == {A.name}


def test_six_pools_of_long_context_fit_into_16_gib() -> None:
    """Six of vLLM's at once, with weights and a load's second copy of them: as many as a catalogue has."""
    from quantadvisor.profiling.inventory import inventory_from_config

    smollm2 = inventory_from_config(SMOLLM2)
    names = ("bf16", "w8a8-bf16", "w4-g64-bf16", "bf16-kvf8-unit", "w8a8-bf16-kvf8-unit", "bf16")
    pools = [pool_bytes(smollm2, scheme(name), "vllm", 2048, 24) for name in names]
    held = smollm2.kv_values_per_token * 2048 * 24
    for name, pool in zip(names, pools, strict=True):
        assert held * (1 if "kvf8" in name else 2) < pool < held * (1 if "kvf8" in name else 2) * 1.1
    assert sum(pools) + sum(2 * bytes_of_weights(smollm2, scheme(name)) for name in names) < 16 << 30


SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
    "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip


def test_what_the_gpu_did_goes_with_a_ghost() -> None:
    did = [Summary(1.0, 3, (mhz, mhz, mhz), 2619, 300.0, 8.0, "counter", 60, 1 << 30, ()) for mhz in (1400, 1800)]
    rounds = [Round(ttft_s=1, itl_s=(1,), peak_bytes=5, gpu=one) for one in did]
    found = ghost_of("w8a8", "vllm", ("cuda",), 2, rounds).gpu
    assert found and (found.readings, found.sm_mhz, found.throttling) == (6, (1400, 1600, 1800), ())
    assert ghost_of("w8a8", "vllm", (), 2, [Round(ttft_s=1, itl_s=(1,), peak_bytes=5)]).gpu is None
