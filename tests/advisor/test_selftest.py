"""The record: CI fails when regret rises above what it was when the verdicts were last looked at."""

import json
from pathlib import Path

import pytest

from quantadvisor.advisor.selftest import PublicVerdict, VerdictCandidate, choose, replay, summary, verdicts
from quantadvisor.advisor.serving_fit import Parameters

from .test_cli import advisor

SHIPPED = Parameters.read(Path(__file__).parent.parent.parent / "advisor" / "serving_parameters.json")
MEAN_REGRET, WORST_REGRET = 0.011, 0.195
"""Just above what they were on 2026-11-29; the worst of those that no other source contradicts."""
MISSED = {
    "h200-fp8-70b-tp-128-4096", "modelopt-70b-b64", "modelopt15-8b-b64", "modelopt15-70b-b32", "accelmark-a100-v020",
    "qwen25-0.5b-1", "qwen25-0.5b-14336",
}  # fmt: skip
"""Known misses, with their reasons in docs/validation.md: no other verdict may be missed."""


def test_the_record_is_large_and_cited() -> None:
    """Half of it, and more than the forty asked for, are choices between schemes on one GPU."""
    found = verdicts()
    schemes = [one for one in found if len({c.scheme for c in one.candidates}) > 1 == len({c.device for c in one.candidates})]
    assert len(schemes) >= 60
    assert len(found) >= 100
    assert len({one.id for one in found}) == len(found)
    assert all(len(one.source) > 20 and "http" not in one.source and len(one.candidates) >= 2 for one in found)


def test_regret_does_not_rise() -> None:
    replays = [replay(one, SHIPPED) for one in verdicts()]
    assert {one.verdict.id for one in replays if not one.right} <= MISSED
    assert summary(replays)["mean_regret"] <= MEAN_REGRET
    assert summary([one for one in replays if not one.verdict.contradicts])["worst_regret"] <= WORST_REGRET


def test_what_contradicts_is_kept_on_both_sides() -> None:
    """Two versions of one benchmark page, and of one runtime: same model, GPU, lengths and batch, another winner."""
    by_id = {one.id: one for one in verdicts()}
    pairs = [(one, by_id[one.contradicts]) for one in by_id.values() if one.contradicts]
    assert len(pairs) >= 6
    for one, other in pairs:
        assert other.contradicts == one.id
        assert (one.model, one.concurrency, one.prompt_tokens) == (other.model, other.concurrency, other.prompt_tokens)
        assert len({max(each.candidates, key=lambda c: c.value).scheme for each in (one, other)}) == 2


def test_some_say_that_nothing_should_change() -> None:
    quantized_for_nothing = [
        one
        for one in verdicts()
        if "bf16" in {c.scheme for c in one.candidates}
        and max(c.value for c in one.candidates) <= 1.05 * next(c.value for c in one.candidates if c.scheme == "bf16")
    ]
    assert len(quantized_for_nothing) >= 19


def test_a_wrong_choice_is_a_regret_with_its_reason() -> None:
    """Measured the other way round than any model would have it: the choice must count as wrong."""
    slow, fast = (
        VerdictCandidate(device="h100_sxm", scheme=scheme, tensor=1, value=value)
        for scheme, value in (("bf16", 3.0), ("fp8", 2.0))
    )
    verdict = PublicVerdict(
        id="x", source="made up", model="meta-llama/Llama-3.1-8B", prompt_tokens=128, output_tokens=128, concurrency=1,
        metric="tokens_per_s_per_gpu", candidates=(slow, fast),
    )  # fmt: skip
    found = replay(verdict, SHIPPED)
    assert (found.chosen.scheme, found.right) == ("fp8", False)
    assert found.regret == pytest.approx(0.5)
    assert "predicted" in found.reason


def test_ties_go_to_better_quality_on_the_same_gpus_only() -> None:
    one = VerdictCandidate(device="h100_sxm", scheme="w4a16", tensor=1, value=1)
    plain, elsewhere = one.model_copy(update={"scheme": "bf16"}), one.model_copy(update={"scheme": "bf16", "device": "a100_sxm"})
    assert choose([one, plain], [1.0, 0.97]) == 1
    assert choose([one, plain], [1.0, 0.90]) == 0
    assert choose([one, elsewhere], [1.0, 0.99]) == 0


def test_command() -> None:
    done = advisor("selftest", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["verdicts"]) == (0, len(verdicts()))
    assert all(one["right"] or one["reason"] for one in found["replays"])
