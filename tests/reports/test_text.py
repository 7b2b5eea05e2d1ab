"""The terminal's text: the verdict and every candidate with its reason; no markup, no missing units."""

from __future__ import annotations

import pytest

from quantadvisor.documents import Capacity, Speedup
from quantadvisor.reports.text import render_text, verdict_lines

from . import sample
from .sample_profile import BASELINE


def test_the_verdict_comes_first_and_in_one_sentence() -> None:
    lines = verdict_lines(sample.complete())
    assert lines[0] == (
        "Quantize to 8-bit weights in groups of 64 (round to nearest) and serve on ONNX Runtime: "
        "a request takes 1.52 s instead of 4.69 s, 3.09× as fast."
    )
    assert "Decode speed: 4.82× (35.7 ms → 7.40 ms per token; runtime 2.29× · method 2.11×; measured)" in lines
    assert any(line.startswith("Did the bottleneck shrink? no.") for line in lines)


def test_every_candidate_and_every_reason_is_there() -> None:
    made = sample.complete()
    text = render_text(made)
    for item in made.candidates:
        assert item.name in text
        assert (item.refused or item.excluded or "") in text
    assert "none-bf16@torch (baseline)" in text
    assert "Regret: 5.3 % [−1.0 % to 9.0 %]" in text
    assert "<" not in text.replace("< 0.00001", "")


def test_the_minimal_one_is_written_too() -> None:
    assert "Nothing meets the constraints of this workload." in render_text(sample.minimal())


def test_change_nothing() -> None:
    whole = sample.complete()
    stay = whole.verdict.model_copy(update={"choice": BASELINE, "change": False})
    lines = verdict_lines(whole.model_copy(update={"verdict": stay}))
    assert lines[0] == "Change nothing: none-bf16@torch serves this workload best."
    assert "Request latency: 4.69 s (as today; measured)" in lines


def test_only_the_runtime() -> None:
    whole = sample.complete()
    move = whole.verdict.model_copy(update={"choice": sample.UNQUANTIZED, "speedup": None})
    line = verdict_lines(whole.model_copy(update={"verdict": move}))[0]
    assert line.startswith("Keep the weights as they are (fp32) and serve them on OpenVINO (bf16): a request takes 2.12 s")


@pytest.mark.parametrize(("decode", "said"), [(1.03, "capacity, not speed"), (1.3, "a decode step is 1.30× as fast")])
def test_capacity_is_not_called_speed(decode: float, said: str) -> None:
    whole = sample.complete(workload=sample.workload(objective="concurrency"))
    step = Speedup(total=decode, runtime=1.0, method=decode)
    fit = Capacity(max_concurrency=240, over_baseline=3.93)
    changed = {"choice": "rtn-w8-g64-kv8@onnxruntime", "decode_speedup": step, "capacity": fit}
    lines = verdict_lines(whole.model_copy(update={"verdict": whole.verdict.model_copy(update=changed)}))
    assert "240 requests fit instead of 61" in lines[0]
    assert said in lines[0]


def test_throughput_speaks_of_tokens() -> None:
    whole = sample.complete(workload=sample.workload(objective="throughput"))
    assert "tok/s" in verdict_lines(whole)[0]


def test_a_plan_without_measurements_says_predicted() -> None:
    whole = sample.complete()
    bare = tuple(item.model_copy(update={"measured": None, "quality": None}) for item in whole.candidates)
    plan = whole.verdict.model_copy(update={"speedup": None, "decode_speedup": None, "capacity": None})
    lines = verdict_lines(whole.model_copy(update={"candidates": bare, "verdict": plan}))
    assert lines[0].endswith("a request is predicted to take 1.38 s.")
    assert "Time per token: 6.73 ms (predicted; modelled)" in lines


def test_the_headline_is_not_said_twice() -> None:
    whole = sample.complete()
    nothing = whole.verdict.model_copy(update={"choice": None, "reason": "Nothing meets the constraints. a: too slow"})
    assert verdict_lines(whole.model_copy(update={"verdict": nothing}))[1] == "a: too slow"
