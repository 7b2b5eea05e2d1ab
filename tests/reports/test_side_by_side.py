"""Runs beside each other: each number is that run's own."""

from __future__ import annotations

import pytest

from quantadvisor.reports import side_by_side

from . import sample, sample_map


def test_before_and_after_of_each_run() -> None:
    other = sample.complete(workload=sample.workload(model="another"))
    pictures = {picture.key: picture for picture in side_by_side.pictures([sample.complete(), other, sample.minimal()])}
    assert set(pictures) == {"side-speed", "side-users", "side-memory"}
    ratio = (161 + 127 * 35.7) / (577 + 127 * 7.4)
    assert [row[2] for row in pictures["side-speed"].rows] == [f"{ratio:.2f}×"] * 2
    users = [(row[1], row[3]) for row in pictures["side-users"].rows]
    assert users[:2] == [("today", str(9_000 // 640)), ("advised", str(12_000 // 640))]
    assert [row[3] for row in pictures["side-memory"].rows] == ["655 MiB", "402 MiB"] * 2
    assert pictures["side-speed"].rows[1][0].startswith("2. another")


def test_candidates_are_compared_where_two_runs_measured_them() -> None:
    whole = sample.complete()
    fewer = whole.model_copy(update={"candidates": whole.candidates[:5]})
    head, rows = side_by_side.candidates([whole, fewer])
    assert head == ("Candidate", "1. builtin:smollm2-135m", "2. builtin:smollm2-135m", "Class")
    found = {row[0]: row[1:] for row in rows}
    assert set(found) == {item.name for item in whole.candidates[:5]}
    before, after = (465 + 127 * 31.8, 577 + 127 * 7.4)
    ratio = float(found[sample_map.CHOICE][0].partition("×")[0]) / float(found["none-fp32@torch"][0].partition("×")[0])
    assert ratio == pytest.approx(before / after, rel=1e-2)
    assert found[sample_map.CHOICE][0].endswith("(advised)")


def test_the_class_of_a_row_is_the_least_certain_of_its_runs() -> None:
    whole = sample.complete()
    first = next(item for item in whole.candidates if item.name == sample_map.CHOICE)
    assert first.measured and first.measured.ttft_s
    guessed = first.measured.model_copy(update={"ttft_s": first.measured.ttft_s.model_copy(update={"kind": "modelled"})})
    items = tuple(item.model_copy(update={"measured": guessed}) if item.name == first.name else item for item in whole.candidates)
    _, rows = side_by_side.candidates([whole, whole.model_copy(update={"candidates": items})])
    assert {row[0]: row[-1] for row in rows if row[-1] != "measured"} == {first.name: "modelled"}


def test_one_run_has_nobody_beside_it() -> None:
    assert side_by_side.pictures([sample.complete()]) == []


def test_runs_are_told_apart_by_what_differs() -> None:
    run = sample.complete()
    model, traffic = run.workload.model, run.workload.traffic.model_copy(update={"concurrency": 7})
    other = run.model_copy(update={"workload": run.workload.model_copy(update={"traffic": traffic})})
    assert side_by_side.run_names([run, other]) == ["1. 512 + 128 tokens × 1", "2. 512 + 128 tokens × 7"]
    assert side_by_side.run_names([run, run]) == [f"1. {model}", f"2. {model}"]
    moved = other.model_copy(update={"device": other.device.model_copy(update={"name": "elsewhere"})})
    assert side_by_side.run_names([run, moved])[1] == "2. 512 + 128 tokens × 7 · elsewhere"
