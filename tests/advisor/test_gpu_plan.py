"""What the planner says, and what it refuses; the times themselves are test_serving_model's."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from quantadvisor.advisor import gpu_plan, plan_map
from quantadvisor.advisor.gpu_plan import plan
from quantadvisor.advisor.plan_candidates import STEMS, options_on
from quantadvisor.advisor.serving_fit import Parameters
from quantadvisor.advisor.serving_model import Prediction, predict_cases
from quantadvisor.advisor.serving_work import Case, case_of
from quantadvisor.documents import BadInput, CapacityPlan, DevicePlan, PlanCandidate, Workload
from quantadvisor.kernels.gpu_devices import gpu
from quantadvisor.profiling.published import config_of
from quantadvisor.reports import plan as drawn

SHIPPED = Parameters.read(Path(__file__).parent.parent.parent / "advisor" / "serving_parameters.json")


def workload(
    prompt: int = 1024, output: int = 256, concurrency: int = 16, model: str = "meta-llama/Llama-3.1-8B", **more: object
) -> Workload:
    traffic = {"prompt_tokens": prompt, "output_tokens": output, "concurrency": concurrency}
    return Workload.model_validate({"schema": "quantadvisor/workload/1", "model": model, "traffic": traffic, **more})


def planned(device: str = "h100", **more: object) -> DevicePlan:
    return plan(workload(**more), [device], SHIPPED).devices[0]  # type: ignore[arg-type]


def named(found: DevicePlan, name: str) -> PlanCandidate:
    return next(one for one in found.candidates if one.name == name)


def test_the_choice_comes_first_and_is_the_best() -> None:
    found = planned(parallel={"tensor": 1})
    timed = [one for one in found.candidates if one.refused is None]
    assert found.candidates[0].name == found.choice
    best = min(one.objective for one in timed if one.excluded is None)  # type: ignore[type-var]
    assert found.candidates[0].objective <= best * 1.05  # type: ignore[operator]
    assert all(one.tpot_ms and one.tpot_ms.low <= one.tpot_ms.value <= one.tpot_ms.high for one in timed)
    assert all(one.tensor == 1 for one in found.candidates)


def test_every_candidate_runs_or_has_a_reason() -> None:
    for one in planned("a100").candidates:
        assert (one.refused is None) == (one.tpot_ms is not None)
    assert "fp8 arithmetic" in str(named(planned("a100"), "fp8@vllmx1").refused)
    assert "FP8 cache" in str(named(planned("a100"), "bf16-kv8@vllmx1").refused)
    assert "leave no room" in str(named(planned(model="meta-llama/Llama-3.1-70B"), "bf16@vllmx1").refused)


def test_every_scheme_that_is_planned_has_words_on_the_page() -> None:
    assert set(STEMS) <= set(drawn.STEMS)


def test_weights_of_8_bit_alone_compete() -> None:
    """INT8 weight-only, which the tables have: half the bytes of bf16 to read and to keep, no other arithmetic."""
    one, plain = (named(planned("a100", concurrency=1, parallel={"tensor": 1}), f"{s}@trtllmx1") for s in ("w8a16", "bf16"))
    assert one.tpot_ms is not None and plain.tpot_ms is not None and one.memory and plain.memory
    assert 1.4 < plain.tpot_ms.value / one.tpot_ms.value < 2
    assert one.memory.weights_bytes < 0.6 * plain.memory.weights_bytes


def test_a_gpu_named_twice_is_planned_for_once() -> None:
    assert [one.device for one in plan(workload(), ["h100", "l40s", "H100_SXM"], SHIPPED).devices] == ["h100_sxm", "l40s"]


def test_nothing_is_planned_across_nodes() -> None:
    """All-reduces were measured inside a node; 16 does divide the heads."""
    found = planned("h100", parallel={"tensor": 16})
    assert found.choice is None
    assert "16 GPUs are more than a node's 8" in found.reason


def test_a_config_without_a_limit_of_the_context_says_so(tmp_path: Path) -> None:
    config = {k: v for k, v in config_of("meta-llama/Llama-3.1-8B").items() if k != "max_position_embeddings"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    notes = plan(workload(model=str(tmp_path)), ["h100"], SHIPPED).notes
    assert any("no max_position_embeddings" in note for note in notes)
    assert not any("max_position_embeddings" in note for note in plan(workload(), ["h100"], SHIPPED).notes)


def test_a_token_faster_than_any_that_was_measured_is_doubted() -> None:
    tiny, usual = (plan(workload(model=m, concurrency=1), ["h100"], SHIPPED) for m in ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen3-32B"))
    assert any("no measured server was below 2.73 ms" in note for note in tiny.notes)
    assert not any("no measured server" in note for note in usual.notes)


def test_the_doubt_of_a_first_token_is_its_own() -> None:
    """Settings that no spec tells move TTFT by far more than TPOT: docs/validation.md."""
    one = planned(parallel={"tensor": 1}).candidates[0]
    assert one.ttft_ms is not None and one.tpot_ms is not None
    assert one.ttft_ms.high / one.ttft_ms.low > 2 * one.tpot_ms.high / one.tpot_ms.low


def test_what_is_declared_and_not_used_is_said() -> None:
    more = {"checkpoints": ["x"], "slo": {"tpot_ms": 90, "percentile": 99}, "traffic": {
        "prompt_tokens": 1024, "output_tokens": 256, "concurrency": 16, "arrivals": {"rate_per_s": 2}}}  # fmt: skip
    spec = {"schema": "quantadvisor/workload/1", "model": "meta-llama/Llama-3.1-8B", **more}
    notes = plan(Workload.model_validate(spec), ["h100"], SHIPPED).notes
    said = {note.split()[0] for note in notes if "does not act on it" in note}
    assert said == {"checkpoints", "traffic.arrivals"}
    assert any("held by 99 % of requests" in note for note in notes)
    assert not any("of requests" in note for note in plan(workload(), ["h100"], SHIPPED).notes)


def test_what_binds_decides() -> None:
    """Weight-only 4 bit for one user, where weights are all that is read; not for 128 with long prompts, where arithmetic
    and caches are (Marlin, arXiv:2408.11743, figures 1 and 12: the gain is gone by batch 128)."""
    assert planned("a100", concurrency=1, prompt=128, parallel={"tensor": 1}).choice.startswith("w4a16")  # type: ignore[union-attr]
    assert not planned("a100", concurrency=128, prompt=2048, output=64, parallel={"tensor": 1}).choice.startswith("w4a16")  # type: ignore[union-attr]


def test_cache_bits_pay_in_requests_that_fit() -> None:
    found = planned(objective="concurrency", prompt=16_384, concurrency=1, parallel={"tensor": 1})
    assert found.candidates[0].scheme.endswith("-kv8")
    assert found.capacity_effect is not None and found.capacity_effect > 1.8


def test_slo_excludes_and_bounds_the_users() -> None:
    found = planned(slo={"tpot_ms": 20}, parallel={"tensor": 1}, concurrency=256)
    for one in found.candidates:
        if one.excluded and "TPOT" in one.excluded:
            assert one.tpot_tail_ms is not None and one.tpot_tail_ms > 20
    loose, tight = (named(planned(slo={"tpot_ms": t}, parallel={"tensor": 1}), "bf16@vllmx1") for t in (40, 12))
    assert 0 < tight.users_within_slo < loose.users_within_slo


def test_where_nothing_serves_the_nearest_is_named() -> None:
    found = planned("l40s", slo={"tpot_ms": 30}, concurrency=2000)
    most = max(found.candidates, key=lambda one: one.users_within_slo)
    assert found.choice is None
    assert f"the most is {most.users_within_slo}, {most.name}" in found.reason
    assert "not even for one" in planned("l40s", slo={"tpot_ms": 2.5}, parallel={"tensor": 8}).reason


def test_users_within_the_slo_are_the_most_that_meet_it() -> None:
    users = named(planned(slo={"tpot_ms": 15}, parallel={"tensor": 1}), "bf16@vllmx1").users_within_slo

    def tpot(concurrency: int) -> float:
        row = {"model_path": "meta-llama/Llama-3.1-8B", "system": "h100", "precision": "", "isl": 1024, "osl": 256,
               "batch_size": concurrency, "tp_size": 1, "backend": "vllm"}  # fmt: skip
        return predict_cases(SHIPPED, [case_of(row)], 95)[0].tpot_tail_ms

    assert tpot(users) <= 15 < tpot(users + 1)


def test_the_percentile_of_the_slo_decides() -> None:
    """More requests that must hold it, fewer users; and what misses it only there is out by its late requests."""
    users = [
        named(planned(slo={"ttft_ms": 1000, "percentile": p}, parallel={"tensor": 1}), "bf16@vllmx1").users_within_slo
        for p in (50, 95, 99)
    ]
    assert users[0] > users[1] > users[2] > 0
    found = named(planned(slo={"ttft_ms": 1000, "percentile": 99}, concurrency=64, parallel={"tensor": 1}), "bf16@vllmx1")
    assert found.ttft_ms is not None and found.ttft_ms.value < 1000
    assert "TTFT p99" in str(found.excluded)


def test_isolated_kernels_are_part_of_a_step() -> None:
    """The products by the tables take most of a decode step of one request, and never more than it."""
    for name in ("bf16@vllmx1", "fp8@vllmx1"):
        one = named(planned(concurrency=1, parallel={"tensor": 1}), name)
        assert one.kernels in ("measured", "interpolated")
        assert one.kernels_ms is not None and one.tpot_ms is not None
        assert 0.5 * one.tpot_ms.value < one.kernels_ms < one.tpot_ms.value


def test_isolated_kernels_are_part_of_a_prompt() -> None:
    """Twice the prompt takes about twice the products, and more attention; a server takes longer than its kernels."""
    short, long = (named(planned(concurrency=1, prompt=p, parallel={"tensor": 1}), "bf16@vllmx1") for p in (4096, 8192))
    for one in (short, long):
        assert one.prompt_kernels in ("measured", "interpolated")
        assert one.prompt_kernels_ms is not None and one.ttft_ms is not None
        assert 0.5 * one.ttft_ms.value < one.prompt_kernels_ms < one.ttft_ms.value
    assert long.prompt_kernels_ms is not None and short.prompt_kernels_ms is not None
    assert 1.8 < long.prompt_kernels_ms / short.prompt_kernels_ms < 3


def test_cost() -> None:
    one = named(planned(price_per_hour=3.6, parallel={"tensor": 1}), "bf16@vllmx1")
    assert one.cost_per_million_tokens == pytest.approx(3.6 / 3600 / one.tokens_per_s_per_gpu * 1e6)


@pytest.mark.parametrize("objective", ["latency", "throughput", "concurrency"])
def test_the_map_and_its_edges_are_what_a_plan_of_that_point_says(objective: str) -> None:
    """The declared cell is the choice; just inside an edge nothing beats it by more than a tie, just past it something does
    (or it fits no more)."""
    more = {"prompt": 256, "parallel": {"tensor": 1}, "objective": objective, "slo": {"tpot_ms": 40}}
    found = planned("a100", concurrency=4, **more)
    drawn = found.decision_map
    assert drawn is not None
    declared = next(one for one in drawn.cells if (one.context_tokens, one.concurrency) == (512, 4))
    assert declared.winner == found.choice
    assert declared.objective == pytest.approx(found.candidates[0].objective)
    edges = [one for one in drawn.edges if one.axis == "concurrency"]
    assert edges or objective == "concurrency"
    for edge in edges:
        step = 1 if edge.at > 4 else -1
        for at, holds in ((edge.at - step, True), (edge.at, False)):
            there = planned("a100", concurrency=at, **more)
            assert (found.choice in (there.choice, *there.tied_with)) is holds
        if edge.winner:
            assert edge.winner == there.choice


def test_family_by_the_scaling_law() -> None:
    found = plan(
        workload(model="Qwen/Qwen2.5-7B", family=["Qwen/Qwen2.5-32B", "Qwen/Qwen2.5-14B"], memory_limit_gib=30, concurrency=2),
        ["l40s"],
        SHIPPED,
    )
    first = found.family[0]
    assert (first.model, first.scheme, first.rank) == ("Qwen/Qwen2.5-32B", "w4a16", 1)
    assert not next(one for one in found.family if one.model.endswith("32B") and one.scheme == "bf16").fits
    assert "2212.09720" in first.source
    assert first.tpot_s is not None and first.why_not is None


def test_a_size_that_misses_the_slo_is_not_ranked() -> None:
    """Of two sizes that fit by bytes the larger is out where it is too slow, with the reason."""
    named = {"model": "Qwen/Qwen2.5-7B", "family": ["Qwen/Qwen2.5-32B"], "concurrency": 2}
    before = plan(workload(**named), ["h100"], SHIPPED).family
    slow = next(one for one in before if one.model.endswith("32B") and one.scheme == "bf16")
    assert slow.fits and slow.tpot_s is not None
    found = plan(workload(**named, slo={"tpot_ms": slow.tpot_s * 1e3 * 0.9}), ["h100"], SHIPPED).family
    there = next(one for one in found if (one.model, one.scheme) == (slow.model, slow.scheme))
    assert not there.fits and there.rank is None and "SLO" in str(there.why_not)
    assert any(one.fits for one in found)


@pytest.mark.parametrize("objective", ["latency", "concurrency"])
def test_ten_thousand_points_take_two_seconds(
    objective: Literal["latency", "concurrency"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the processor (other programs do not lengthen it), for all of a plan: sizes, candidates, map and edges."""
    points = 0

    def counted(parameters: Parameters, cases: Sequence[Case], percentile: float | None = None) -> list[Prediction]:
        nonlocal points
        points += len(cases)
        return predict_cases(parameters, cases, percentile)

    for module in (gpu_plan, plan_map):
        monkeypatch.setattr(module, "predict_cases", counted)
    large = workload(model="meta-llama/Llama-3.1-70B", objective=objective, slo={"tpot_ms": 40})
    start = time.process_time()
    found = plan(large, ["a100", "h100", "b200"], SHIPPED)
    assert points > 10_000
    assert time.process_time() - start < 2 * points / 10_000
    assert CapacityPlan.model_validate_json(found.model_dump_json(by_alias=True)) == found


@pytest.mark.parametrize(
    ("more", "device", "said"),
    [
        ({}, "h10", "did you mean h100_sxm"),
        ({"parallel": {"tensor": 5}}, "h100", "does not divide the 32 attention heads"),
        ({"prompt": 200_000}, "h100", "is beyond the 131,072 of the model"),
        ({"slo": {"tpot_ms": 0.1}}, "h100", "below the physical floor: reading the weights"),
        ({"slo": {"ttft_ms": 0.5}, "prompt": 8192}, "h100", "below the physical floor: the prompt"),
        ({"model": "meta-llama/Lama-3.1-8B"}, "h100", "did you mean"),
        ({"runtimes": ["llama.cpp"]}, "h100", "no kernel tables"),
    ],
)
def test_bad_input_is_one_line(more: dict[str, object], device: str, said: str) -> None:
    with pytest.raises(BadInput, match=said) as found:
        planned(device, **more)
    assert "\n" not in str(found.value)


def test_floors_are_the_data_sheets() -> None:
    """Llama-3.1-8B in bf16: 6.98 billion weights and lm_head's, 2 bytes each, over the bandwidth; 2 operations of each weight
    and row over the peak."""
    h100, products, head = gpu("h100"), 32 * 4096 * (6144 + 4096 + 3 * 14336), 128_256 * 4096
    fits, _ = options_on(h100, config_of("meta-llama/Llama-3.1-8B"), workload(parallel={"tensor": 1}))
    one = next(o for o in fits if o.candidate.name == "bf16@vllmx1")
    assert gpu_plan.weights_s(one) == pytest.approx((products + head) * 2 / h100.read_bytes_per_s)
    assert gpu_plan.prompt_s(one, 1024) == pytest.approx(2 * (products * 1024 + head) / h100.flops_per_s["bf16"])


@pytest.mark.parametrize(("config", "said"), [("{}", "model_type is missing"), ('{"model_type": "rwkv"}', "rwkv"), ("[", "JSON")])
def test_bad_configs(tmp_path: Path, config: str, said: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(BadInput, match=said):
        planned(model=str(tmp_path))
