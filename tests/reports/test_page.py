"""The page in a real browser: nothing sticks out, light and dark, accessible, scripts of others harmless, our own helpful."""

from __future__ import annotations

import html
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from quantadvisor.reports.html import render_html

from . import chromium, sample
from .test_html import EVIL, evil

MEASURE = """
  const body = view.getComputedStyle(frame.body);
  const wide = all("main *").filter((item) => !item.closest(".scroll, svg, .hidden, thead")
    && item.getBoundingClientRect().right > root.clientWidth + 1);
  return {scroll: root.scrollWidth, client: root.clientWidth, background: body.backgroundColor,
    wide: wide.slice(0, 5).map((item) => item.tagName + "." + item.className), scripts: all("script").length,
    unready: all("[data-copy][hidden], .tools[hidden], .scale[hidden]").length};
"""
USE = """
  const found = {};
  const table = all("table[data-sortable]").find((item) => item.closest("#r1-p-map"));
  const column = () => Array.from(table.tBodies[0].rows, (row) => Number(row.cells[1].textContent.replace(/,.*/, "")));
  const head = table.tHead.rows[0].cells[1];
  head.querySelector("button").click();
  found.up = [head.getAttribute("aria-sort"), column()];
  head.querySelector("button").click();
  found.down = [head.getAttribute("aria-sort"), column()];

  const filter = frame.getElementById("r1-filter");
  filter.value = "openvino";
  filter.dispatchEvent(new view.Event("input"));
  const rows = all("#r1-table tr[data-place]").filter((row) => !row.hidden);
  found.filtered = [rows.length, rows.every((row) => row.textContent.includes("openvino"))];
  found.said = filter.parentElement.querySelector(".count").textContent;
  found.groups = all("#r1-table .group").filter((row) => !row.hidden).length;
  filter.value = "";
  filter.dispatchEvent(new view.Event("input"));
  found.back = all("#r1-table tr[data-place]").filter((row) => !row.hidden).length;

  const figure = frame.getElementById("r1-p-quality-speed");
  const drawn = () => Array.from(figure.querySelectorAll("[data-drawn]")).map((item) => item.offsetHeight > 0);
  found.before = drawn();
  figure.querySelector("[data-scale=linear]").click();
  found.after = drawn();
  const point = figure.querySelector("[data-drawn=linear] .point");
  point.dispatchEvent(new view.PointerEvent("pointerover", {bubbles: true}));
  found.hint = figure.querySelector(".hint").textContent === point.querySelector("title").textContent;

  const candidate = frame.getElementById("r1-c3").closest("details");
  found.closed = candidate.open;
  view.location.hash = "#r1-c3";
  await new Promise((resolve) => setTimeout(resolve, 300));
  found.opened = candidate.open;
  view.dispatchEvent(new view.Event("beforeprint"));
  found.printed = all("details:not([open])").length;
  return found;
"""


@pytest.mark.slow
@chromium.needed
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1024, 1600])
@pytest.mark.parametrize("kind", ["complete", "several", "evil"])
def test_no_error_and_no_overflow(tmp_path: Path, kind: str, width: int, dark: bool) -> None:
    long = sample.complete(workload=sample.workload(model="/models/" + "endless-" * 60 + EVIL + "x" * 300))
    made = {"complete": [sample.complete()], "several": [sample.complete(), long, sample.minimal()], "evil": [evil()]}
    seen, console = chromium.look(render_html(made[kind]), tmp_path, width, MEASURE, dark)
    assert console == []
    assert seen["background"] == ("rgb(21, 23, 26)" if dark else "rgb(251, 250, 247)")
    assert width - 20 <= seen["client"] <= width, "all but a scroll bar"
    assert seen["scroll"] == seen["client"], seen
    assert seen["wide"] == []
    assert seen["scripts"] == 1
    assert seen["unready"] == 0, "our own script ran: what needs it is shown"


def test_the_short_sample_has_every_kind_of_element() -> None:
    """What axe sees of it stands for the whole: no tag and no class is missing."""
    whole, short = (
        set(re.findall(r'<(\w+)(?: [^<>]*?class="([^"]*)")?', render_html([made])))
        for made in (sample.complete(), sample.short())
    )
    assert len(whole) > 100
    assert whole == short


@pytest.mark.slow
@chromium.needed
@pytest.mark.parametrize(
    ("kind", "width", "dark"),
    [
        ("short", 390, False),
        ("short", 1600, True),
        ("short", 1600, False),
        ("several", 1024, True),
        ("minimal", 390, True),
    ],
)
def test_axe_finds_nothing(tmp_path: Path, kind: str, width: int, dark: bool) -> None:
    """Of every kind of row a few: the time that axe takes of colours grows with the square of the rows."""
    bare = {"profile": sample.minimal().profile, "decision_map": None, "ledger": ()}  # the first one's article has these
    another = sample.short().model_copy(update={"workload": sample.workload(model="another")} | bare)
    made = {
        "short": [sample.short()],
        "several": [sample.short(), another, sample.minimal()],
        "minimal": [sample.minimal()],
    }[kind]
    assert chromium.violations(render_html(made), tmp_path, width, dark) == []


@pytest.mark.slow
@chromium.needed
def test_axe_would_find_something(tmp_path: Path) -> None:
    """The check can fail: pale grey words on white paper."""
    page = render_html([sample.minimal()]).replace("--soft: #5d5a54", "--soft: #d0d0d0")
    assert any(found.startswith("color-contrast") for found in chromium.violations(page, tmp_path, 1024, False))


@pytest.mark.slow
@chromium.needed
def test_sorting_filtering_scales_and_links(tmp_path: Path) -> None:
    seen, console = chromium.look(render_html([sample.complete()]), tmp_path, 1600, USE)
    assert console == []
    assert isinstance(seen, dict), seen
    assert seen["up"][0] == "ascending"
    assert seen["up"][1] == sorted(seen["up"][1])
    assert seen["down"] == ["descending", sorted(seen["down"][1], reverse=True)]
    openvino = sum("openvino" in item.name for item in sample.complete().candidates)
    assert seen["filtered"] == [openvino, True]
    assert seen["said"] == f"{openvino} shown"
    assert seen["groups"] == 1
    assert seen["back"] == len(sample.complete().candidates)
    assert (seen["before"], seen["after"]) == ([True, False], [False, True])
    assert seen["hint"]
    assert (seen["closed"], seen["opened"]) == (False, True)
    assert seen["printed"] == 0


WITHOUT_SCRIPT = """
  const shown = (item) => item.checkVisibility() && item.getBoundingClientRect().height > 0;
  const dead = all("button, input, select").filter(shown).map((item) => item.outerHTML.slice(0, 80));
  all("details").forEach((item) => (item.open = true));
  const pictures = all("figure.picture").filter((item) => !Array.from(item.querySelectorAll("svg")).some(shown));
  const rows = all("tr");
  return {dead, blank: pictures.map((item) => item.id), rows: rows.filter((item) => !shown(item)).length, all: rows.length};
"""
KEYBOARD = """
  all("details").forEach((item) => (item.open = true));
  const stops = all("a[href], button, input, select, summary, [tabindex]").filter((item) => item.checkVisibility());
  const bare = stops.filter((item) => {
    item.focus();
    const style = view.getComputedStyle(item);
    return frame.activeElement !== item || style.outlineStyle === "none" || parseFloat(style.outlineWidth) === 0;
  });
  const wide = all(".scroll").filter((item) => item.scrollWidth > item.clientWidth + 1 && item.tabIndex < 0);
  return {stops: stops.length, bare: bare.map((item) => item.outerHTML.slice(0, 80)), wide: wide.length,
    jumps: stops.filter((item) => item.tabIndex > 0).length};
"""


@pytest.mark.slow
@chromium.needed
def test_complete_without_javascript(tmp_path: Path) -> None:
    """Each picture and each row is there, and nothing that only a script could answer is offered."""
    page = re.sub(r"<script>.*?</script>", "", render_html([sample.complete()]), flags=re.DOTALL)
    seen, _ = chromium.look(page, tmp_path, 1024, WITHOUT_SCRIPT)
    assert seen["all"] > 50
    assert (seen["dead"], seen["blank"], seen["rows"]) == ([], [], 0)


FOLDED = ("a" * 64, "Operators that ran in", "GroupQueryAttention", "Achieved", "the wheel has no INT4 matmul", "Residue")
"""Said only where the page is folded: hashes, operators, the numbers of pictures, kernels, time by part."""


@pytest.mark.slow
@chromium.needed
def test_complete_in_print_without_javascript(tmp_path: Path) -> None:
    """What is folded on a screen is on paper, by the style sheet alone; without its rule it would not be."""
    made = sample.short()
    page = re.sub(r"<script>.*?</script>", "", render_html([made]), flags=re.DOTALL)
    paper = chromium.printed(page, tmp_path)
    names = [item.name for item in made.candidates]
    assert [words for words in (*FOLDED, *names) if "".join(words.split()) not in paper] == []
    assert "orderby" not in paper, "what only a script could answer"
    folder = tmp_path / "folded"
    folder.mkdir()
    folded = chromium.printed(chromium.POLICY.sub("", page).replace("details::details-content", ".nowhere"), folder)
    assert [words for words in FOLDED if "".join(words.split()) in folded] == []


@pytest.mark.slow
@chromium.needed
@pytest.mark.parametrize("width", [390, 1600])
def test_the_keyboard_reaches_everything_and_shows_where_it_is(tmp_path: Path, width: int) -> None:
    seen, _ = chromium.look(render_html([sample.complete()]), tmp_path, width, KEYBOARD)
    assert seen["stops"] > 30
    assert (seen["bare"], seen["wide"], seen["jumps"]) == ([], 0, 0)


@pytest.mark.slow
@chromium.needed
def test_a_script_in_a_models_name_is_shown_and_not_run(tmp_path: Path) -> None:
    name = (
        "<script>document.documentElement.dataset.ran = 1</script><img src=x onerror='document.documentElement.dataset.ran = 1'>"
    )
    page = render_html([sample.complete(workload=sample.workload(model=name))])
    raw = page.replace("<main", name + "<main", 1)
    pages = {"escaped": page, "in the markup, under the policy": raw, "in the markup": chromium.POLICY.sub("", raw)}
    ran = {}
    for what, source in pages.items():
        file = tmp_path / what.replace(" ", "-") / "page.html"
        file.parent.mkdir()
        file.write_text(source, encoding="utf-8")
        shown, _ = chromium.dump(file)
        ran[what] = 'data-ran="1"' in shown.partition(">")[2][:200]
        if what == "escaped":
            assert html.escape(name, quote=False) in shown
    assert ran == {"escaped": False, "in the markup, under the policy": False, "in the markup": True}


@contextmanager
def server() -> Iterator[tuple[str, list[str]]]:
    """An address, and the paths that were asked of it."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}", asked
        made.shutdown()
        thread.join()


@pytest.mark.slow
@chromium.needed
def test_the_policy_keeps_the_network_away(tmp_path: Path) -> None:
    """Even markup that got in by mistake reaches nobody."""
    asked = {}
    for bare in (False, True):
        with server() as (address, paths):
            page = render_html([sample.minimal()]).replace(
                "</main>", f'<img src="{address}/a" alt=""><link rel="stylesheet" href="{address}/b"></main>'
            )
            file = tmp_path / str(bare) / "page.html"
            file.parent.mkdir()
            file.write_text(chromium.POLICY.sub("", page) if bare else page, encoding="utf-8")
            chromium.dump(file)
            asked[bare] = {path for path in paths if path in ("/a", "/b")}
    assert asked == {False: set(), True: {"/a", "/b"}}
