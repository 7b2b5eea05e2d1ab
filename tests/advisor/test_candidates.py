"""Methods that train are candidates where the workload gives them seconds, and not before."""

import json
from pathlib import Path

import pytest

from quantadvisor.advisor.candidates import enumerate_candidates, untrained
from quantadvisor.advisor.catalogue import NOMINAL
from quantadvisor.advisor.risk import schemes_at_risk
from quantadvisor.documents import Device
from quantadvisor.methods import awq
from quantadvisor.methods.registry import METHODS, method, trains
from quantadvisor.methods.schemes import scheme

from .documents import workload

PLAIN = Device(name="d", cores=2, threads=2, memory_bytes=1 << 34, fingerprint="f")


def test_every_method_says_what_it_costs() -> None:
    assert all(len(method(name).COST.split()) > 3 for name in METHODS)
    assert "calibration samples" in method("gptq").COST
    assert "no calibration" in method("rtn").COST


@pytest.mark.parametrize("seconds", [0, 60])
def test_training_takes_a_budget(seconds: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(NOMINAL))
    work = workload(budget={"train_s": seconds})
    found = enumerate_candidates(work, tmp_path, PLAIN)
    reasons = {trains(c.method): set() for c in found}
    for each in found:
        reasons[trains(each.method)].add(each.excluded)
    excluded = "it trains, and budget.train_s is 0: set the seconds that it may take"
    assert reasons == {False: {None}, True: {None if seconds else excluded}}


def test_what_trains_is_not_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awq, "COST", "training")
    assert list(schemes_at_risk([("awq", scheme("w4-g64")), ("gptq", scheme("w4-g64"))])) == ["gptq-w4-g64"]
    assert list(schemes_at_risk([("lkd", scheme("w4a8-g64"))], trained=True)) == ["lkd-w4a8-g64"]
    assert untrained("gptq", workload()) is None


@pytest.mark.parametrize("crashes", [True, False])
def test_plain_is_a_candidate_where_the_fast_layout_crashes(
    crashes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(NOMINAL))
    words = "its process died at q8_0_llama_cpp (signal SIGSEGV)" if crashes else "AMX"
    monkeypatch.setattr("quantadvisor.profiling.runtimes.llama_cpp.refuse", lambda *_: None)
    monkeypatch.setattr("quantadvisor.methods.gguf.refuse", lambda *_: None)
    monkeypatch.setattr("quantadvisor.kernels.llama_layouts.layouts", lambda _: {"q8_0": words})
    tiles = PLAIN.model_copy(update={"isa": ("amx_tile", "amx_int8")})
    found = {c.name: c for c in enumerate_candidates(workload(runtimes=["llama.cpp"]), tmp_path, tiles)}
    fast, plain = found["gguf-q8_0@llama.cpp+fa"], found["gguf-q8_0@llama.cpp+fa+plain"]
    assert (fast.refused is not None, plain.refused, plain.excluded is None) == (crashes, None, crashes)
    assert not crashes or "the option plain avoids it" in str(fast.refused)
    assert crashes or "plain only avoids" in str(plain.excluded)
    assert found["none-bf16@llama.cpp"].refused is None
