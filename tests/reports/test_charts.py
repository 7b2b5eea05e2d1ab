"""Pictures say what the numbers say: checked against arithmetic done here."""

from __future__ import annotations

import pytest

from quantadvisor.documents import Candidate, Results
from quantadvisor.reports import charts, facts, kernel_plots, plots, verdict, wording
from quantadvisor.reports.svg import Axis

from . import sample, sample_profile


@pytest.fixture(scope="module")
def results() -> Results:
    return sample.complete()


def test_axis_maps_and_ticks() -> None:
    linear, logarithmic = Axis(0, 10, 100, 200), Axis(0.01, 100, 0, 400, log=True)
    assert [linear.at(value) for value in (0, 5, 10, 99)] == [100, 150, 200, 200]
    assert [round(logarithmic.at(value)) for value in (0.01, 1, 100, 0)] == [0, 200, 400, 0]
    assert linear.ticks(5) == [0, 2, 4, 6, 8, 10]
    assert logarithmic.ticks(5) == pytest.approx([0.01, 0.1, 1, 10, 100])
    assert len(Axis(0.8, 1.3, 0, 1, log=True).ticks(6)) > 2
    assert Axis(3, 3, 0, 10).at(3) == 5


def test_memory_holds_the_ledger_and_the_limit(results: Results) -> None:
    picture = charts.memory(results)
    assert picture is not None
    assert picture.rows[0] == ("weights", "269 MiB", "42.0 %", "modelled")
    assert ("overhead", "240 MiB", "37.4 %", "measured") in picture.rows
    assert picture.rows[-1] == ("limit (memory_limit_gib of the spec)", "1.00 GiB", "", "declared")
    assert "limit 1.00 GiB" in picture.wide


@pytest.mark.parametrize("share", [0.8, 0.9])
def test_the_limit_that_a_run_took_by_itself_is_told_as_it_was(results: Results, share: float) -> None:
    """Of the device's memory: less on a machine than on a GPU."""
    assert results.decision_map is not None
    taken = results.decision_map.model_copy(update={"limit_bytes": int(share * results.device.memory_bytes)})
    open_ = results.model_copy(update={"workload": sample.workload(memory_limit_gib=None), "decision_map": taken})
    assert facts.memory_limit(open_) == (taken.limit_bytes, f"{share * 100:.0f} % of the device's memory")


def test_a_limit_far_away_is_said_and_not_drawn(results: Results) -> None:
    picture = charts.memory(results.model_copy(update={"workload": sample.workload(memory_limit_gib=64)}))
    assert picture is not None
    assert "beyond this scale" in picture.wide
    assert 'class="limit"' not in picture.wide


def test_kernel_speed_is_over_all_linears_of_the_model(results: Results) -> None:
    """8 rows: Σ count · time of the reference over Σ count · time, lm_head apart."""
    assert kernel_plots.reference(results) == "bf16@torch (torch_linear)"
    lines = {item.name: dict(item.points) for item in kernel_plots.kernel_lines(results, "bf16@torch (torch_linear)")}
    old = new = 0.0
    for shape in sample_profile.profile().inventory.linears[:-1]:
        for timing in results.profile.kernels:
            if (timing.m, timing.n, timing.k) == (8, shape.n, shape.k) and timing.time_s is not None:
                old += (
                    shape.count * timing.time_s.median if timing.probe == "torch_linear" and timing.scheme.name == "bf16" else 0
                )
                new += shape.count * timing.time_s.median if timing.probe == "ort_dynamic_quantize_matmul" else 0
    assert lines["w8a8@onnxruntime (ort_dynamic_quantize_matmul)"][8] == pytest.approx(old / new)


def test_the_workloads_m() -> None:
    many = sample.workload(traffic={"prompt_tokens": 512, "output_tokens": 8, "concurrency": 4})
    assert kernel_plots.workload_m(sample.complete(workload=many)) == [("decode", 4), ("prefill", 2048)]


def test_intensity_counts_stored_weights() -> None:
    """W8 g64 in fp32: (1 + 4/64) bytes a weight, 4 bytes an input and an output."""
    timing = next(t for t in sample_profile.kernels() if t.scheme.name == "w8-g64" and t.m == 8 and t.n == 960)
    moved = 960 * 576 * (1 + 4 / 64) + 8 * (960 + 576) * 4
    assert kernel_plots.intensity(timing) == pytest.approx(2 * 8 * 960 * 576 / moved)


def test_the_speed_up_is_told_apart(results: Results) -> None:
    picture = charts.origin(results)
    assert picture is not None
    assert picture.rows == (
        ("Request", "2.21×", "1.40×", "3.09×", "measured"),
        ("Decode step", "2.29×", "2.11×", "4.82×", "measured"),
    )


def of_kind(results: Results, name: str, field: str, kind: str) -> Results:
    """The same with one candidate's figure of another class."""

    def changed(item: Candidate) -> Candidate:
        figure = getattr(item.measured, field).model_copy(update={"kind": kind})
        return item.model_copy(update={"measured": item.measured.model_copy(update={field: figure})})  # type: ignore[union-attr]

    items = tuple(changed(item) if item.name == name else item for item in results.candidates)
    return results.model_copy(update={"candidates": items})


def test_each_table_says_its_numbers_class(results: Results) -> None:
    """But the ledger's, whose columns are the predicted and the measured."""
    assert {picture.key for picture in charts.pictures(results) if "Class" not in picture.head} == {"prediction"}
    for picture in charts.pictures(results):
        if "Class" in picture.head:
            found = {row[picture.head.index("Class")] for row in picture.rows}
            assert found <= {"measured", "modelled", "cited", "declared"}, picture.key


@pytest.mark.parametrize("name", [sample_profile.BASELINE, sample.UNQUANTIZED, sample.CHOICE])
def test_a_speed_up_is_measured_only_where_each_of_its_three_is(results: Results, name: str) -> None:
    first, second = (charts.origin(of_kind(results, name, field, "modelled")) for field in ("ttft_s", "tpot_s"))
    assert first is not None and second is not None
    assert [row[-1] for row in first.rows] == ["modelled", "measured"]
    assert [row[-1] for row in second.rows] == ["modelled", "modelled"]
    assert verdict.effects(of_kind(results, name, "ttft_s", "cited"))[0][2] == "cited"


def test_kernels_have_the_class_of_their_times(results: Results) -> None:
    guessed = tuple(
        t.model_copy(update={"time_s": t.time_s.model_copy(update={"kind": "modelled"})}) if t.time_s and t.m == 8 else t
        for t in results.profile.kernels
        if t.runtime != "openvino" or t.m != 8
    )
    mixed = results.model_copy(update={"profile": results.profile.model_copy(update={"kernels": guessed})})
    roofs, speeds = kernel_plots.roofline(mixed), kernel_plots.kernel_speed(mixed)
    assert roofs is not None and speeds is not None
    assert {(row[1] == "8", row[-1]) for row in roofs.rows} == {(True, "modelled"), (False, "measured")}
    assert {(row[0].split("@")[1].partition(" ")[0], row[-1]) for row in speeds.rows} == {
        ("torch", "modelled"), ("onnxruntime", "modelled"), ("openvino", "measured"),
    }  # fmt: skip
    rows = [dict(zip(wording.KERNELS, row, strict=True)) for row in wording.kernel_rows(mixed)]
    assert {(row["M"] == "8", row["Class"], row["Samples"]) for row in rows} == {
        (True, "modelled", "5"), (False, "measured", "5"), (False, "–", "–"),
    }  # fmt: skip


def test_a_method_that_loses_is_drawn(results: Results) -> None:
    worse = results.verdict.model_copy(
        update={"speedup": results.verdict.speedup.model_copy(update={"total": 1.5, "method": 0.68})}  # type: ignore[union-attr]
    )
    assert charts.origin(results.model_copy(update={"verdict": worse})) is not None


def test_quality_names_the_standing_of_each(results: Results) -> None:
    picture = plots.quality_speed(results)
    assert picture is not None
    table = {row[0]: row[1:] for row in picture.rows}
    assert table["rtn-w4-g64@onnxruntime"] == ("3.80×", "[3.72×–3.87×]", "0.46", "65.0 %", "excluded", "yes", "measured")
    assert table[sample.CHOICE][4] == "advised"
    assert len(table) == 11


def dominated(mine: tuple[str, ...], others: list[tuple[str, ...]]) -> bool:
    """Is another one at least as good in both and better in one? Columns: speed, interval, KL."""

    def of(row: tuple[str, ...]) -> tuple[float, float]:
        return float(row[1].rstrip("×")), -float(row[3].replace("≤ ", ""))

    return any(all(a >= b for a, b in zip(of(other), of(mine), strict=True)) and of(other) != of(mine) for other in others)


def test_the_pareto_front_is_who_nobody_dominates(results: Results) -> None:
    picture = plots.quality_speed(results)
    assert picture is not None
    rows = list(picture.rows)
    assert {row[0] for row in rows if row[6] == "yes"} == {row[0] for row in rows if not dominated(row, rows)}
    assert 1 < sum(row[6] == "yes" for row in rows) < len(rows)
    assert picture.wide.count('class="front"') == 1


def test_a_budget_that_is_not_on_kl_is_said_and_counted(results: Results) -> None:
    """Top-1 agreement has no line in a picture of KL: who is outside it is a cross all the same, and outside in the words."""
    budget = {"kl_mean_max": None, "top1_agreement_min": 0.96, "tasks": {"qa.yaml": {"max_drop": 0.02}}}
    items = tuple(
        c.model_copy(
            update={"excluded": "top-1 agreement is under the budget" if c.quality and c.quality.top1.mean < 0.96 else None}
        )
        for c in results.candidates
    )
    inside = sum(row[9] >= 0.96 for row in sample.MADE)
    bound = results.model_copy(update={"candidates": items, "workload": sample.workload(quality=budget)})
    picture = plots.quality_speed(bound)
    assert picture is not None
    assert 0 < inside < len(sample.MADE)
    assert picture.summary.startswith(f"{inside} of {len(sample.MADE)} measured candidates are inside all constraints")
    assert picture.note.endswith("Quality budget: top-1 agreement ≥ 96.0 %; score of qa.yaml down by ≤ 2.0 %.")
    assert 'class="limit"' not in picture.wide
    assert wording.constraints(bound)[1:] == ["top-1 agreement ≥ 96.0 %", "score of qa.yaml down by ≤ 2.0 %"]
    assert dict(wording.workload_rows(bound))["Time budget"] == "3.00 min to advise"  # what is not acted on is no budget
    with_line = plots.quality_speed(results)
    assert with_line is not None
    assert with_line.summary.startswith("8 of 11 ")
    assert with_line.note.endswith("Quality budget: mean KL ≤ 0.05.")
    assert 'class="limit"' in with_line.wide
    free = plots.quality_speed(results.model_copy(update={"workload": sample.workload(quality={"kl_mean_max": None})}))
    assert free is not None
    assert free.note.endswith("Quality budget: none.")


def test_ties_have_whiskers(results: Results) -> None:
    picture = plots.quality_speed(results)
    assert picture is not None
    assert picture.wide.count("whisker") == 1 + len(results.verdict.tied_with)
    assert picture.linear is not None
    assert picture.linear[0] != picture.wide


def test_time_is_split_before_and_after(results: Results) -> None:
    picture = charts.time_decode(results)
    assert picture is not None
    assert [row[0] for row in picture.rows[::4]] == [sample_profile.BASELINE, sample.UNQUANTIZED, sample.CHOICE]
    assert "not split" not in str(picture.rows)
    old = charts.time_decode(results.model_copy(update={"choice_diagnosis": None}))
    assert old is not None
    assert old.rows[-1][1:] == ("TPOT, not split", "7.40 ms", "", "measured")
    assert {row[-1] for row in picture.rows} == {"modelled"}


def test_layers_are_read_from_names() -> None:
    assert plots.layer_of("model.layers.28.mlp.down_proj", 3) == 28
    assert plots.layer_of("transformer.h.7.attn", 3) == 7
    assert plots.layer_of("lm_head", 3) == 3


def test_only_what_is_wanted_is_drawn(results: Results) -> None:
    for picture in charts.pictures(results):
        assert charts.pictures(results, (picture.key,)) == [picture]


def test_a_picture_without_numbers_is_left_out() -> None:
    assert charts.pictures(sample.minimal()) == []
