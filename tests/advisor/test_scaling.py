"""The time model against laws worked out by hand: its own point, doubled prompts, doubled users, doubled contexts."""

from __future__ import annotations

import pytest

from quantadvisor.advisor.predict import Probes
from quantadvisor.advisor.scaling import TimeModel, roofline, time_model
from quantadvisor.documents import Candidate, Inventory, KernelTiming, LinearShape, PhaseTime, Traffic
from quantadvisor.methods.schemes import scheme

from .documents import candidate, figure

TRAFFIC = Traffic(prompt_tokens=512, output_tokens=128, concurrency=4)


def phase(name: str, batch: int, tokens: int, context: int, **parts: float) -> PhaseTime:
    times = {"linears_s": 0.0, "attention_s": 0.0, "cache_s": 0.0, "other_s": 0.0, "residue_s": 0.0} | parts
    made = {"phase": name, "batch": batch, "tokens": tokens, "context_tokens": context, "wall_s": figure(sum(times.values()))}
    return PhaseTime.model_validate(made | times)


def seen(prefill: dict[str, float], decode: dict[str, float]) -> Candidate:
    """Profiled at the declared point: 4 prompts of 512 tokens, decode at the middle of the output."""
    phases = (phase("prefill", 4, 2048, 512, **prefill), phase("decode", 4, 4, 576, **decode))
    return candidate("rtn-w8-g64@openvino", latency=3.0, tpot=0.02).model_copy(update={"phases": phases})


def inventory() -> Inventory:
    shape = LinearShape(name="only", n=64, k=64, count=2)
    head = LinearShape(name="lm_head", n=128, k=64, count=1, lm_head=True)
    return Inventory(
        architecture="Llama", layers=1, hidden=64, vocabulary=128, heads=1, kv_heads=1, head_dim=64, max_context_tokens=8192,
        tied_embeddings=True, linears=(shape, head), embedding_parameters=1, linear_parameters=1, other_parameters=1,
        kv_values_per_token=128,
    )  # fmt: skip


def model(prefill: dict[str, float], decode: dict[str, float], kernels: tuple[KernelTiming, ...] = ()) -> TimeModel:
    made = time_model(seen(prefill, decode), TRAFFIC, Probes(kernels, inventory(), 0.5))
    assert isinstance(made, TimeModel), made
    return made


def test_the_declared_point_gives_back_what_was_measured() -> None:
    made = model({"linears_s": 1.0, "attention_s": 0.3, "other_s": 0.1}, {"linears_s": 0.01, "cache_s": 0.004, "other_s": 0.002})
    assert made.ttft(512, 4) == pytest.approx(3.0 - 127 * 0.02)
    assert made.tpot(512, 4) == pytest.approx(0.02)


def test_attention_over_the_prompt_grows_with_its_square() -> None:
    """Linears negligible: four times as long a prompt costs sixteen times, four times as many prompts four times."""
    made = model({"linears_s": 1e-12, "attention_s": 1.0}, {"linears_s": 1e-12, "attention_s": 1.0})
    assert made.ttft(2048, 4) / made.ttft(512, 4) == pytest.approx(16, rel=1e-6)
    assert made.ttft(512, 16) / made.ttft(512, 4) == pytest.approx(4, rel=1e-6)


def test_a_step_reads_every_cached_token() -> None:
    made = model({"linears_s": 1.0}, {"linears_s": 1e-12, "attention_s": 1.0, "cache_s": 1.0})
    assert made.tpot(512, 8) / made.tpot(512, 4) == pytest.approx(2, rel=1e-6)
    assert made.tpot(1088, 4) / made.tpot(512, 4) == pytest.approx((1088 + 64) / (512 + 64), rel=1e-6)


def test_what_is_neither_linear_nor_cache_stays_in_a_step() -> None:
    made = model({"linears_s": 1.0}, {"linears_s": 1e-12, "other_s": 1.0, "residue_s": -0.2})
    assert made.tpot(4096, 64) == pytest.approx(0.02)


def probe(m: int, seconds: float, n: int = 64) -> KernelTiming:
    return KernelTiming(probe="p", scheme=scheme("w8-g64"), runtime="openvino", m=m, n=n, k=64, time_s=figure(seconds))


def test_linears_follow_the_probes() -> None:
    """Flat to M = 16, then proportional: 64 users decode four times as slowly as 4, whatever the roofline would say."""
    kernels = tuple(
        probe(m, seconds * (2 if n == 128 else 1), n)
        for n in (64, 128)
        for m, seconds in ((4, 1e-3), (16, 1e-3), (64, 4e-3), (256, 16e-3), (2048, 128e-3))
    )
    made = model({"linears_s": 1.0}, {"linears_s": 0.01}, kernels)
    assert made.basis == "linears by kernel probes"
    assert made.tpot(512, 16) == pytest.approx(0.02)
    assert made.tpot(512, 64) == pytest.approx(0.08)
    shape = 2 * 256e-3 + 2 * 1e-3  # two linears at M = 4096, the head at 8 rows: flat, twice as slow
    assert made.ttft(512, 8) / made.ttft(512, 4) == pytest.approx(shape / (2 * 128e-3 + 2 * 1e-3))


def test_without_probes_linears_follow_their_own_roofline() -> None:
    """0.01 s for a step of 4 rows, 1 s for 2,048: flat up to M = 20.48, then proportional."""
    prefill, decode = phase("prefill", 4, 2048, 512, linears_s=1.0), phase("decode", 4, 4, 576, linears_s=0.01)
    rows = roofline(prefill, decode)
    assert (rows(1, 1), rows(20, 20)) == (0.01, 0.01)
    assert rows(4096, 8) == pytest.approx(2.0)
    assert model({"linears_s": 1.0}, {"linears_s": 0.01}).basis.startswith("linears by the roofline")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"measured": None}, "not measured"),
        ({"phases": ()}, "its time was not taken apart"),
        ({"phases": (phase("prefill", 4, 2048, 512), phase("decode", 4, 4, 576))}, "its linears' time is not known"),
    ],
)
def test_what_cannot_be_modelled_says_why(change: dict[str, object], said: str) -> None:
    bare = seen({"linears_s": 1.0}, {"linears_s": 0.01}).model_copy(update=change)
    assert time_model(bare, TRAFFIC, Probes((), inventory(), 0.5)) == said
