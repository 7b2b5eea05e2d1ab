"""A results.json that is none is one line; whatever was changed in one, nobody sees a traceback."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from quantadvisor.advisor.completed import completed
from quantadvisor.advisor.stored_results import LARGEST_BYTES, read_results
from quantadvisor.documents import BadInput
from quantadvisor.reports.html import render_html
from quantadvisor.reports.markdown import render_markdown
from quantadvisor.reports.text import render_text

from ..reports import sample
from . import mutations

SHARES = [range(at, at + 2_500) for at in range(0, 10_000, 2_500)]
"""Ten thousand in four shares, so that processes can divide them."""
PAGES = 4
"""Of so many in a share one becomes a page too: that takes three times as long as text and Markdown together."""


def small() -> dict[str, Any]:
    """The sample with few kernels, layers and candidates: quick to draw, every part there."""
    whole = sample.complete()
    stats = whole.profile.activations
    assert stats
    profile = whole.profile.model_copy(
        update={"kernels": whole.profile.kernels[:6], "activations": stats.model_copy(update={"layers": stats.layers[:3]})}
    )
    kept = tuple(c for c in whole.candidates if c.name in (sample.CHOICE, sample.UNQUANTIZED, profile.baseline) or c.refused)
    phases = profile.phases
    kept = tuple(c.model_copy(update={"phases": phases}) if c.measured else c for c in kept)
    made = whole.model_copy(update={"profile": profile, "candidates": kept, "decision_map": None, "choice_diagnosis": None})
    return dict(json.loads(completed(made).model_dump_json(by_alias=True)))


RAW = small()
TEXT = json.dumps(RAW)


def written(folder: Path, raw: Any) -> Path:
    file = folder / "results.json"
    file.unlink(missing_ok=True)  # ext4 flushes a file that is cut to nothing and written again: eight times as long, or more
    file.write_text(json.dumps(raw))
    return file


def line(file: Path) -> str:
    with pytest.raises(BadInput) as found:
        read_results(file)
    said = str(found.value)
    assert "\n" not in said
    assert len(said) < 800
    return said


def at(raw: Any, *path: str | int) -> Any:
    for part in path:
        raw = raw[part]
    return raw


def test_the_small_one_is_read_and_drawn(tmp_path: Path) -> None:
    made = read_results(written(tmp_path, RAW))
    assert "<h1" in render_html([made])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_cut_short(tmp_path: Path, share: float) -> None:
    text = json.dumps(RAW)
    file = tmp_path / "results.json"
    file.write_text(text[: int(len(text) * share)])
    assert "cut short" in line(file)


def test_a_newer_schema_asks_for_a_newer_advisor(tmp_path: Path) -> None:
    said = line(written(tmp_path, RAW | {"schema": "quantadvisor/results/2"}))
    assert "quantadvisor/results/2" in said
    assert "upgrade" in said


@pytest.mark.parametrize("raw", [[], {}, 7, "x", None, {"schema": 3}, {"schema": "quantadvisor/workload/1"}])
def test_something_else(tmp_path: Path, raw: Any) -> None:
    assert "not a results document" in line(written(tmp_path, raw))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1e40", "1e-40"])
def test_what_is_no_measurement(tmp_path: Path, number: str) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(RAW).replace('"measured_peak_bytes": ', f'"measured_peak_bytes": {number}, "was": ', 1))
    assert "no number" in line(file) or "cannot be" in line(file)


@pytest.mark.parametrize(
    "path",
    [
        ("candidates", 0, "measured", "ttft_s", "median"),
        ("candidates", 0, "measured", "tpot_s", "samples", 1),
        ("profile", "phases", 0, "linears_s"),
        ("profile", "kernels", 0, "time_s", "low"),
        ("candidates", 0, "predicted", "peak_bytes"),
        ("profile", "kernels", 0, "m"),
    ],
)
def test_negative_times_sizes_and_counts(tmp_path: Path, path: tuple[str | int, ...]) -> None:
    raw = json.loads(json.dumps(RAW))
    at(raw, *path[:-1])[path[-1]] = -1
    said = line(written(tmp_path, raw))
    assert "-1 cannot be" in said
    assert str([part for part in path if isinstance(part, str)][-1]) in said


def test_a_residue_may_be_negative(tmp_path: Path) -> None:
    raw = json.loads(json.dumps(RAW))
    raw["profile"]["phases"][0]["residue_s"] = -0.01
    assert read_results(written(tmp_path, raw)).profile.phases[0].residue_s == -0.01


def test_missing_samples(tmp_path: Path) -> None:
    raw = json.loads(json.dumps(RAW))
    del raw["candidates"][0]["measured"]["tpot_s"]["samples"]
    assert "tpot_s has no samples" in line(written(tmp_path, raw))


def test_a_hundred_megabytes(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    with file.open("wb") as made:
        made.truncate(100 * 2**20)
    assert LARGEST_BYTES < 100 * 2**20
    assert "100 MiB" in line(file)


def test_nested_without_end(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(RAW)[:-1] + ', "deep": ' + "[" * 5000 + "]" * 5000 + "}")
    assert line(file)


def test_not_there_and_not_text(tmp_path: Path) -> None:
    assert "cannot be read" in line(tmp_path / "absent.json")
    file = tmp_path / "results.json"
    file.write_bytes(b"\xff\xfe\x00{")
    assert line(file)


ODD = ("<script>alert(1)</script>", "a\nb", "\x1b[31m", "@", "-@", "x" * 3000, "nan", "−1", None, True, False, [], {})
PLACES = [place for place in mutations.paths(RAW) if place]


def odd(rng: random.Random) -> Any:
    """What a place is replaced with: an odd one, a small or any integer, a number or a text."""
    kind = rng.randrange(6)
    if kind < 2:
        return rng.choice(ODD)
    if kind < 4:
        return rng.randint(-3, 3) if kind == 2 else mutations.any_integer(rng)
    return mutations.any_float(rng) if kind == 4 else mutations.any_text(rng, 12)


def judge(folder: Path, seed: int, page: bool = True) -> str:
    """A mutation read, completed and told as text, as Markdown and, if wanted, as a page: or the one line that refuses it."""
    file = written(folder, mutations.mutated(random.Random(seed), RAW, PLACES, odd))
    try:
        made = completed(read_results(file))
    except BadInput as error:
        said = str(error)
        assert "\n" not in said, f"seed {seed}"
        return said
    assert render_text(made) and render_markdown([made]), f"seed {seed}"
    assert not page or render_html([made]), f"seed {seed}"
    return "read"


@pytest.mark.parametrize(
    ("seeds", "pages"),
    [(range(60), 1), *(pytest.param(seeds, PAGES, marks=pytest.mark.slow) for seeds in SHARES)],
)
def test_no_traceback_whatever_was_changed(tmp_path: Path, seeds: range, pages: int) -> None:
    seen = [judge(tmp_path, seed, seed % pages == 0) for seed in seeds]
    assert seen.count("read") > len(seeds) / 20, "those that are read"
    assert len(set(seen)) > 10, "many reasons to refuse"
