"""Pictures say what the numbers say: checked against arithmetic done here."""

from __future__ import annotations

import pytest

from quantadvisor.documents import Results
from quantadvisor.reports import charts, kernel_plots, plots
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
    assert picture.rows == (("Request", "2.21×", "1.40×", "3.09×"), ("Decode step", "2.29×", "2.11×", "4.82×"))


def test_a_method_that_loses_is_drawn(results: Results) -> None:
    worse = results.verdict.model_copy(
        update={"speedup": results.verdict.speedup.model_copy(update={"total": 1.5, "method": 0.68})}  # type: ignore[union-attr]
    )
    assert charts.origin(results.model_copy(update={"verdict": worse})) is not None


def test_quality_names_the_standing_of_each(results: Results) -> None:
    picture = plots.quality_speed(results)
    assert picture is not None
    table = {row[0]: row[1:] for row in picture.rows}
    assert table["rtn-w4-g64@onnxruntime"][::2] == ("3.80×", "0.46", "yes")
    assert table[sample.CHOICE][3] == "advised"
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
    assert {row[0] for row in rows if row[5] == "yes"} == {row[0] for row in rows if not dominated(row, rows)}
    assert 1 < sum(row[5] == "yes" for row in rows) < len(rows)
    assert picture.wide.count('class="front"') == 1


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
    assert old.rows[-1][1] == "TPOT, not split"


def test_layers_are_read_from_names() -> None:
    assert plots.layer_of("model.layers.28.mlp.down_proj", 3) == 28
    assert plots.layer_of("transformer.h.7.attn", 3) == 7
    assert plots.layer_of("lm_head", 3) == 3


def test_a_picture_without_numbers_is_left_out() -> None:
    assert charts.pictures(sample.minimal()) == []
