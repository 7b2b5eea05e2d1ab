"""Which size of a family at which bits, beside a run: bytes to the byte, times at the run's own pace, order by the law."""

from pathlib import Path

import pytest

from quantadvisor.advisor.decide import breach_of_prediction, with_breach
from quantadvisor.advisor.pipeline import Run
from quantadvisor.advisor.run_family import bits_of, family_of, fastest_by_bits, holds_its_quality, sizes_of
from quantadvisor.advisor.spec import not_acted_on
from quantadvisor.advisor.stages import Quiet
from quantadvisor.documents import BadInput, Candidate, FamilyMember, Interval, Inventory, Predicted
from quantadvisor.profiling.inventory import inventory_from_config
from quantadvisor.profiling.ledger import bytes_of_weights
from quantadvisor.profiling.published import config_of
from quantadvisor.reports.family import of_run
from quantadvisor.reports.html import render_html
from quantadvisor.reports.markdown import render_markdown
from quantadvisor.reports.text import verdict_lines

from ..reports import sample
from .documents import candidate, figure, workload

SMALL, LARGE = "Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-14B"


def ran(kl: float = 0.01, **changes: object) -> tuple[FamilyMember, ...]:
    """The family of the sample's run, as if its model were the smaller of the two, and 4 bit had cost so much."""
    whole = sample.complete(workload=sample.workload(model=SMALL, family=(LARGE, SMALL), **changes))
    inventory = inventory_from_config(config_of(SMALL))
    profile = whole.profile.model_copy(update={"inventory": inventory})
    seen = [with_peak(one, inventory) for one in whole.candidates]
    judged = [with_breach(with_kl(one, kl) if bits_of(one) == 4 else one, whole.workload) for one in seen]
    changed = {"profile": profile, "candidates": tuple(judged)}
    return family_of(whole.model_copy(update=changed), sizes_of(whole.workload))


def with_kl(one: Candidate, kl: float) -> Candidate:
    judged = one.quality and one.quality.model_copy(update={"kl": Interval(mean=kl, low=kl, high=kl)})
    return one.model_copy(update={"quality": judged, "excluded": None})


def with_peak(one: Candidate, inventory: Inventory) -> Candidate:
    """As if it had run the smaller size: its weights and half a GiB of the rest."""
    peak = bytes_of_weights(inventory, one.scheme) + 2**29
    measured = one.measured and one.measured.model_copy(update={"peak_bytes": figure(peak)})
    predicted = one.predicted and one.predicted.model_copy(update={"peak_bytes": peak})
    return one.model_copy(update={"measured": measured, "predicted": predicted})


def of(family: tuple[FamilyMember, ...], model: str, bits: int) -> FamilyMember:
    return next(one for one in family if (one.model, one.bits) == (model, bits))


def test_the_larger_size_at_4_bit_comes_before_the_smaller_at_8() -> None:
    found = ran(memory_limit_gib=16.0)
    first = found[0]
    assert (first.model, first.bits, first.rank) == (LARGE, 4, 1)
    ranks = [one.rank for one in found if one.fits]
    assert ranks == list(range(1, len(ranks) + 1))
    assert not of(found, LARGE, 8).fits and "over the limit of 16 GiB" in str(of(found, LARGE, 8).why_not)
    assert of(found, LARGE, 8).rank is None
    assert of(found, SMALL, 8).rank is not None


def test_bits_that_only_broke_the_quality_budget_are_of_no_size() -> None:
    """4 bit is inside the budget of 0.05, then over it; what only the memory limit is against stays, each size is asked anew."""
    assert {one.bits for one in ran(kl=0.04, memory_limit_gib=16.0)} == {32, 16, 8, 4}
    failed = ran(kl=0.06, memory_limit_gib=16.0)
    assert {one.bits for one in failed} == {32, 16, 8}
    assert "at 4 bit (" not in str(of_run(sample.complete().model_copy(update={"family": failed})))
    assert of(failed, LARGE, 32).why_not and of(failed, SMALL, 32).why_not  # 7B in fp32: 28 GiB


def test_what_only_a_simulation_or_a_prediction_is_against() -> None:
    plain = candidate("rtn-w4-g64@onnxruntime", 1.0).model_copy(update={"measured": None, "quality": None})
    asked = workload(memory_limit_gib=1.0)
    large = plain.model_copy(update={"predicted": Predicted(tpot_s=0.1, peak_bytes=3 * 2**30)})
    over_memory = breach_of_prediction(large.predicted, asked) if large.predicted else None
    assert over_memory
    assert holds_its_quality(large.model_copy(update={"excluded": over_memory}), asked)
    simulated = "simulated mean KL 0.4 is over the budget of 0.05 (fake quantization, 512 tokens)"
    assert not holds_its_quality(large.model_copy(update={"excluded": simulated}), asked)
    assert holds_its_quality(plain, asked) and not holds_its_quality(plain.model_copy(update={"refused": "no kernel"}), asked)


def test_bytes_and_times_follow_the_fastest_of_those_bits() -> None:
    whole = sample.complete()
    like = fastest_by_bits(whole.candidates)[8]
    found = ran(memory_limit_gib=64.0)
    small, large = of(found, SMALL, 8), of(found, LARGE, 8)
    for one in (small, large):
        assert one.weights_bytes == bytes_of_weights(inventory_from_config(config_of(one.model)), like.scheme)
    assert like.measured is not None and like.measured.tpot_s is not None
    assert small.tpot_s == pytest.approx(like.measured.tpot_s.median)  # the model that ran: what was measured
    assert small.tpot_s and large.tpot_s and 1.5 < large.tpot_s / small.tpot_s < 2.5  # about twice the weights


def test_a_size_that_is_too_slow_for_the_slo_is_not_ranked() -> None:
    slow = of(ran(memory_limit_gib=64.0), LARGE, 8).tpot_s
    assert slow is not None
    found = ran(memory_limit_gib=64.0, slo={"tpot_ms": slow * 1e3 * 0.9})
    assert of(found, LARGE, 8).rank is None and "over the SLO" in str(of(found, LARGE, 8).why_not)


def test_every_report_says_it_and_none_without_a_family() -> None:
    whole = sample.complete()
    assert whole.family == () and of_run(whole) is None
    assert "size of the family" not in render_html([whole])
    named = whole.model_copy(update={"family": ran(memory_limit_gib=16.0)})
    said = f"Consider {LARGE} at 4 bit"
    assert any(line.startswith(said) and "did not run here" in line for line in verdict_lines(named))
    assert said in render_html([named]) and "Which size of the family" in render_html([named])
    assert said in render_markdown([named])
    kept = named.model_copy(update={"workload": named.workload.model_copy(update={"model": LARGE})})
    assert str(of_run(kept)).startswith(f"Keep this size: {LARGE}")


def test_an_unknown_size_is_bad_input_before_anything_runs(tmp_path: Path) -> None:
    asked = workload(family=["Qwen/Qwen2.5-7c"])
    with pytest.raises(BadInput, match=r"family.*did you mean Qwen/Qwen2.5-7B"):
        sizes_of(asked)
    with pytest.raises(BadInput, match="family"):
        Run(asked, tmp_path, False, Quiet())
    assert not not_acted_on(workload(family=[SMALL]))
