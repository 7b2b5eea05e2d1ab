"""The page: same bytes, nothing of others runs, nothing is loaded, everything is shown."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from base64 import b64encode
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pytest

from quantadvisor.documents import KernelSource, Quality, Results
from quantadvisor.reports import units
from quantadvisor.reports.html import render_html

from . import sample
from .sample_profile import figure

EVIL = '</title><script>alert("x")</script><img src=http://evil.example/x onerror=alert(1)>'


class Page(HTMLParser):
    """Collects tags, attributes, ids and text."""

    VOID = frozenset({"meta", "link", "input", "br", "wbr", "img", "hr"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def complete() -> str:
    return render_html([sample.complete()])


def evil() -> Results:
    """Every string that a user or a file can bring is hostile."""
    made = sample.complete()
    raw = json.loads(made.model_dump_json(by_alias=True))
    kept = {"schema", "binds", "kind", "target", "objective", "phase", "id", "quantity", "tensor", "number"}
    kept |= {"granularity", "compute", "arrivals", "of", "baseline", "choice", "axis", "device", "runtimes"}
    kept |= {"users_kind", "limited_by", "why"}
    sources = get_args(KernelSource)  # of a kernel's times; a figure's source is anybody's words

    def spoil(value: object, key: str = "") -> object:
        if isinstance(value, dict):
            return {name: spoil(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [spoil(item, key) for item in value]
        return value + EVIL if isinstance(value, str) and key not in kept and value not in sources else value

    raw = spoil(raw)
    return Results.model_validate(raw)


def test_same_input_same_bytes_in_every_process() -> None:
    code = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1])\n"
        "from tests.reports import sample\n"
        "from quantadvisor.reports.html import render_html\n"
        "print(hashlib.sha256(render_html([sample.complete(), sample.minimal()]).encode()).hexdigest())"
    )
    root = str(Path(__file__).parents[2])
    seen = {
        subprocess.run(
            [sys.executable, "-P", "-c", code, root],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1


def test_a_round_trip_through_json_changes_no_byte(complete: str, tmp_path: Path) -> None:
    sample.complete().write(tmp_path / "sample.json")
    assert render_html([Results.read(tmp_path / "sample.json")]) == complete


@pytest.mark.parametrize("make", [sample.complete, sample.minimal, evil])
def test_nothing_is_loaded_and_markup_is_sound(make: object) -> None:
    page = Page(render_html([make()]))  # type: ignore[operator]
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        assert tag not in ("img", "link", "iframe", "object", "embed", "base", "form", "image", "use"), tag
        assert "src" not in attributes
        assert "style" not in attributes, "the policy forbids style attributes"
        assert not [name for name in attributes if name.startswith("on")]
        if "href" in attributes:
            target = attributes["href"] or ""
            assert target.startswith("#")
            assert target[1:] in ids


def test_the_policy_admits_our_two_texts_and_nothing_else(complete: str) -> None:
    found = re.search(r'Content-Security-Policy" content="([^"]+)"', complete)
    assert found is not None
    policy = unescape(found.group(1))
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag, name in (("style", "style-src"), ("script", "script-src")):
        bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", complete, re.DOTALL)
        assert len(bodies) == 1
        digest = b64encode(hashlib.sha256(bodies[0].encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy


def test_hostile_names_are_shown_and_not_run() -> None:
    source = render_html([evil()])
    assert source.count("<script") == 1
    assert "<img" not in source
    assert '<script>alert("x")</script>' in Page(source).words.replace("&quot;", '"')


def test_every_candidate_and_every_reason_is_there(complete: str) -> None:
    made, page = sample.complete(), Page(complete)
    for item in made.candidates:
        assert item.name in page.words
        assert (item.refused or item.excluded or "") in page.words
    assert "Change nothing: 3.10× slower than the advice" in page.words
    assert page.words.index("rtn-w8-g64@onnxruntime 8-bit") < page.words.index("none-bf16@torch baseline")


def test_what_the_issue_asks_for_is_there(complete: str) -> None:
    words = Page(complete).words
    for question in sample.complete().questions:
        assert units.typeset(question.evidence) in words
    for said in (
        "3.09×", "runtime 2.21× · method 1.40×", "4.82×", "≤ 2.94×", "640 tokens × 1", "off by −2.1 %", "Regret",
        "already quantized", "Q4_1", "KL 0.0030", "KL 0.46", "partly this rescaling undone", "onnxruntime_genai.chat",
        "not available: the wheel has no INT4 matmul", "arXiv:2208.07339", "2.13.0+cpu", "TTFT", "W4A16",
    ):  # fmt: skip
        assert said in words, said
    for kind in ("measured", "modelled"):
        assert f'class="badge b-{kind}"' in complete


def test_sentences_and_bounds_have_their_class(complete: str) -> None:
    effects = complete.partition('<dl class="effects">')[2].partition("</dl>")[0]
    assert re.findall(r'<dt>(\w+)</dt>.*?class="badge b-(\w+)"', effects) == [("Speed", "measured"), ("Capacity", "modelled")]
    bounds = complete.partition("<h3>Ceilings")[2].partition("<dl")[0]
    assert 'class="badge b-modelled"' in bounds
    parts = Page(complete.partition('aria-label="Time by part"')[2].partition("<table>")[2].partition("</table>")[0])
    assert parts.words.endswith("1.20 ms measured")


def test_each_kernel_has_the_number_of_its_samples(complete: str) -> None:
    table = complete.partition('aria-label="Kernels"')[2].partition("</table>")[0]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in table.split("<tr>")[1:]]
    assert rows[0][5:8] == ["Time per call", "Samples", "Class"]
    timed = [kernel for kernel in sample.complete().profile.kernels if kernel.time_s]
    assert [row[6:8] for row in rows[1:]].count(["5", "measured"]) == len(timed)


def test_each_picture_has_words_and_a_table(complete: str) -> None:
    page = Page(complete)
    drawn = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("role") == "img"]
    figures = [attributes for tag, attributes in page.tags if tag == "figure"]
    assert len(figures) == 13
    linear = complete.count('data-drawn="linear"')
    assert linear == 2
    assert len(drawn) == 2 * (len(figures) + linear), "a wide and a narrow drawing of each, on each scale"
    assert all(len(attributes["aria-label"] or "") > 30 for attributes in drawn)
    assert complete.count('<details class="pictured">') == len(figures)


@pytest.mark.parametrize(
    "absent",
    [
        "regret",
        "artifact",
        "source_quality",
        "unquantized_diagnosis",
        "choice_diagnosis",
        "decision_map",
        "questions",
        "ledger",
        "candidates",
        "timing_s",
    ],
)
def test_any_optional_part_may_be_missing(absent: str) -> None:
    whole = sample.complete()
    blanks: dict[str, object] = {"questions": (), "ledger": (), "candidates": (), "timing_s": {}}
    empty = blanks.get(absent)
    assert Page(render_html([whole.model_copy(update={absent: empty})])).open == []


@pytest.mark.parametrize("absent", ["activations", "kernels", "phases"])
def test_any_part_of_the_profile_may_be_missing(absent: str) -> None:
    whole = sample.complete()
    empty = None if absent == "activations" else ()
    bare = whole.profile.model_copy(update={absent: empty})
    assert Page(render_html([whole.model_copy(update={"profile": bare})])).open == []


@pytest.mark.parametrize("absent", ["predicted", "measured", "quality", "operators"])
def test_any_part_of_a_candidate_may_be_missing(absent: str) -> None:
    whole = sample.complete()
    bare = tuple(item.model_copy(update={absent: None}) for item in whole.candidates)
    assert Page(render_html([whole.model_copy(update={"candidates": bare})])).open == []


@pytest.mark.parametrize("absent", ["speedup", "decode_speedup", "capacity", "runner_up", "predicted_choice"])
def test_any_part_of_the_verdict_may_be_missing(absent: str) -> None:
    whole = sample.complete()
    bare = whole.verdict.model_copy(update={absent: None})
    assert Page(render_html([whole.model_copy(update={"verdict": bare})])).open == []


@pytest.mark.parametrize("value", [0.0, -1e-9, 1e-12, 1e12])
def test_odd_magnitudes_are_drawn(value: float) -> None:
    whole = sample.complete()
    quality = sample.candidates()[0].quality
    assert isinstance(quality, Quality)
    odd = quality.model_copy(update={"kl": quality.kl.model_copy(update={"mean": value})})
    first = whole.candidates[0].model_copy(update={"quality": odd})
    odd_time = figure(value)
    measured = first.measured.model_copy(update={"ttft_s": odd_time, "tpot_s": odd_time}) if first.measured else None
    items = (first.model_copy(update={"measured": measured}), *whole.candidates[1:])
    assert "nan" not in render_html([whole.model_copy(update={"candidates": items})]).lower().replace("nano", "")


def test_the_minimal_one_says_that_nothing_fits() -> None:
    assert "Nothing meets the constraints" in Page(render_html([sample.minimal()])).words


def test_several_are_put_side_by_side() -> None:
    page = Page(render_html([sample.complete(), sample.minimal()]))
    assert "2 runs side by side" in page.words
    assert [attributes["id"] for tag, attributes in page.tags if tag == "article"] == ["r1", "r2"]
    assert sum(tag == "h1" for tag, _ in page.tags) == 1


def test_the_head_holds_what_a_planner_asks_first(complete: str) -> None:
    """Verdict, three numbers, what holds until when, four questions with links, the command: in this order."""
    words = Page(complete).words
    places = [
        words.index(said)
        for said in (
            "Quantize to 8-bit weights", "Request speed", "Users at once", "Peak memory", "Holds until 18 requests in flight",
            "Was it the right tensor?", "python -m onnxruntime_genai.chat", "Diagnosis: what binds",
        )
    ]  # fmt: skip
    assert places == sorted(places)
    assert complete.count('<span class="big">') == 3
    questions = complete.partition('<ol class="questions">')[2].partition("</ol>")[0]
    assert [item.count("<a href=") > 0 for item in questions.split("<li>")[1:]] == [True] * 4


def test_every_sample_is_shown(complete: str) -> None:
    words = Page(complete).words
    for item in sample.complete().candidates:
        for name in ("ttft_s", "tpot_s", "objective", "load_s"):
            figures = getattr(item.measured, name).samples if item.measured else ()
            assert ", ".join(f"{value:.5g}" for value in figures) in words


def test_it_stays_small(complete: str) -> None:
    """Three MB are allowed; the sample has 15 candidates, 141 kernels and 120 layers."""
    assert len(complete.encode()) < 1.5e6


def test_none_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        render_html([])


def test_a_server_as_the_baseline_is_compared_with_and_the_profile_says_whose_it_is() -> None:
    """Its memory, operators and time by part are unknown: the page has its times, and torch's profile under torch's name."""
    made = sample.complete()
    server = next(item for item in made.candidates if item.name == sample.BASELINE).model_copy(
        update={"name": "given-server@vllm", "runtime": "vllm", "url": "http://127.0.0.1:8000", "phases": (), "operators": None}
    )
    assert server.measured
    server = server.model_copy(update={"measured": server.measured.model_copy(update={"peak_bytes": None})})
    compared = made.profile.model_copy(update={"baseline": server.name})
    page = render_html([made.model_copy(update={"candidates": (*made.candidates, server), "profile": compared})])
    assert "given-server@vllm" in page
    assert f"On {sample.BASELINE} a forward pass takes" in page
    assert f"profiled: {sample.BASELINE}" in page
    assert f"{sample.BASELINE} needs" in page
    assert f"Baseline, by ledger: {server.name}" not in page
    assert "On the baseline a forward pass takes" not in page
    assert "On the baseline a forward pass takes" in render_html([made])


def test_an_unmeasured_candidate_says_why_nothing_is_predicted_of_it() -> None:
    note = "its ghost was not run: the others took the 90 s that ghosts have of budget.advise_s"
    one = (
        sample.complete()
        .candidates[-1]
        .model_copy(
            update={
                "name": "rtn-w3-g64@onnxruntime",
                "notes": (note,),
                "measured": None,
                "predicted": None,
                "refused": None,
                "excluded": None,
            }
        )
    )
    page = render_html([sample.complete(candidates=(*sample.complete().candidates, one))])
    assert f"Not measured; {note}" in page
